"""Carries out calls, one task each, and passes outputs to the members as they arrive."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from scheduler.batching import failures
from scheduler.batching.bounded import let_go
from scheduler.batching.call import Call, Member
from scheduler.batching.kinds import ENDS, BatchWorker, End
from scheduler.batching.patience import CallPatience
from scheduler.batching.window import Window
from scheduler.logs import speak_for
from workers.base import Output, Piece
from workers.errors import RequestRejected, WorkerError, WorkerFailed

logger = logging.getLogger(__name__)

LET_GO_S = 2.0
"""How long a model worker may take to end a cancelled call, in seconds."""

LOOK_S = 0.25
"""The shortest time between two checks for overdue calls."""


class CallWatcher(Protocol):
    """Watches an endpoint's calls. Its methods must be cheap and must not raise."""

    @property
    def admits(self) -> bool:
        """Whether the endpoint accepts calls now."""
        ...

    def call_began(self, members: Sequence[Member]) -> Any:
        """A call begins; called in its task. The returned value is passed back when the call ends."""
        ...

    def call_ended(self, call: Any, prompts: int, error: WorkerError | None) -> None:
        """A call has ended by itself, with or without an error."""
        ...

    def call_given_up(self, call: Any) -> None:
        """A call was aborted, or not read to its end, because all its callers have left."""
        ...


class CallRunner:
    """Runs calls on one model worker. A member holds a slot in the window until the engine is done with it.

    `on_quiet` is called whenever no call is left.
    """

    def __init__(
        self,
        worker: BatchWorker,
        window: Window,
        *,
        on_quiet: Callable[[], None],
        watcher: CallWatcher | None = None,
        patience: CallPatience | None = None,
    ) -> None:
        self._worker = worker
        self._patience = patience
        self._look_handle: asyncio.TimerHandle | None = None
        self._window = window
        self._on_quiet = on_quiet
        self._watcher = watcher
        self._calls: set[Call] = set()
        self._closed = False

    @property
    def calls(self) -> int:
        """How many calls are running."""
        return len(self._calls)

    def send(self, members: Sequence[Member]) -> None:
        """Start a call. The window must have room for its members."""
        self._window.acquire(len(members))
        self._start(members)

    async def give_up(self, call: Call, member: Member) -> None:
        """Drop a member's further outputs. If nobody listens, abort the call and wait for its end."""
        call.leave(member)
        if call.abandoned and call.task is not None and not call.task.done():
            call.task.cancel()
            await asyncio.wait([call.task], timeout=LET_GO_S)
            self._leave_behind(call)

    async def aclose(self) -> None:
        """Abort all calls; their members fail with a retryable error. Safe to call twice."""
        self._closed = True
        if self._look_handle is not None:
            self._look_handle.cancel()
            self._look_handle = None
        calls = tuple(self._calls)
        tasks = [call.task for call in calls if call.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LET_GO_S)
        for call in calls:
            self._leave_behind(call)

    def _start(self, members: Sequence[Member]) -> None:
        loop = asyncio.get_running_loop()
        call = Call(members, loop.time())
        self._calls.add(call)
        if self._look_handle is None and self._patience is not None:
            self._look_handle = loop.call_later(self._patience.soonest_s, self._look, self._patience)
        call.task = loop.create_task(self._carry_out(call))
        # A task cancelled before its first step never runs, so cleanup that must happen is in a callback.
        call.task.add_done_callback(partial(self._end, call))

    async def _carry_out(self, call: Call) -> None:
        # The call may have been started from another job's task.
        speak_for(call.members[0].ids if len(call.members) == 1 else None)
        watcher = self._watcher
        call.watched = watcher.call_began(call.members) if watcher is not None else None
        try:
            error = await self._read(call)
        except BaseException:
            if watcher is not None and not call.left:
                watcher.call_given_up(call.watched)
            raise
        if not call.left:
            self._settle(call, call.overdue or error)

    def _settle(self, call: Call, error: WorkerError | None) -> None:
        """Give every member an end after the call has ended by itself or is overdue."""
        if self._watcher is not None:
            _report(self._watcher, call.watched, call, error)
        left = call.unended()
        refused = isinstance(error, RequestRejected)
        again = self._to_try_again(call, left) if refused or self._may_be_one_prompts(error) else {}
        if refused and len(call.members) > 1:
            error = failures.beside_a_refused()
        for member in left:
            if member not in again:
                self._fail(call, member, error or failures.no_end())
        for half in _halves(tuple(again)):
            self._start(half)

    def _may_be_one_prompts(self, error: WorkerError | None) -> bool:
        """Whether one prompt of the call may have caused a failure inside the engine.

        If the endpoint is unused by now, it has failed itself: its members need not find that out one by one.
        """
        return isinstance(error, WorkerFailed) and (self._watcher is None or self._watcher.admits)

    def _to_try_again(self, call: Call, left: Sequence[Member]) -> dict[Member, None]:
        """Return the members to try again: nothing has arrived for them, and their callers still listen."""
        if len(call.members) == 1 or self._closed:
            return {}
        return {member: None for member in left if member.listening and not member.streamed}

    async def _read(self, call: Call) -> WorkerError | None:
        """Read all outputs of a call; return the error of the call as a whole, if any."""
        now = asyncio.get_running_loop().time
        try:
            outputs = self._worker.generate([member.work for member in call.members])
            try:
                async for output in outputs:
                    if call.overdue is not None or call.left:
                        break
                    call.heard_at = now()
                    self._take_in(call, output)
                    if call.abandoned:
                        break
            finally:
                await close_outputs(outputs)
        except WorkerError as error:
            return error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if call.overdue is None or task is None or task.uncancel():
                raise
        except Exception as error:
            return failures.wrapped(error)
        return None

    # Calls that are silent for too long

    def _look(self, patience: CallPatience) -> None:
        """End overdue calls, and schedule the next check while calls are running."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        next_at = math.inf
        for call in tuple(self._calls):
            ends_at = patience.ends_at(call) + (LET_GO_S if call.overdue is not None else 0.0)
            if ends_at <= now:
                self._end_overdue(call)
                ends_at += LET_GO_S
            next_at = min(next_at, ends_at)
        more = next_at < math.inf
        self._look_handle = loop.call_at(max(next_at, now + LOOK_S), self._look, patience) if more else None

    def _end_overdue(self, call: Call) -> None:
        """Cancel a call. If it was cancelled for this before and still runs, leave it to itself."""
        if call.overdue is not None:
            self._leave_behind(call)
        elif call.task is not None:
            call.overdue = failures.overdue()
            call.task.cancel()

    def _leave_behind(self, call: Call) -> None:
        """Stop waiting for a call whose task ignores its cancellation."""
        if call.task is None or call.task.done() or call.left:
            return
        logger.error("a model worker ignores that its call was cancelled; the call is left to itself")
        call.left = True
        self._calls.discard(call)
        let_go(call.task)
        if call.overdue is not None:
            self._settle(call, call.overdue)
        elif self._watcher is not None:
            self._watcher.call_given_up(call.watched)
        self._end(call, None)

    def _take_in(self, call: Call, output: Output | End) -> None:
        if not 0 <= output.member < len(call.members):
            raise failures.no_such_member(output.member, len(call.members))
        member = call.members[output.member]
        if not member.open:
            return
        if isinstance(output, Piece):
            self._deliver(call, member, output)
        elif isinstance(output, ENDS):
            self._complete(call, member, output)
        else:
            call.error = output.error
            self._fail(call, member, output.error)

    def _deliver(self, call: Call, member: Member, piece: Piece) -> None:
        member.streamed = True
        if not member.listening:
            return
        if piece.member:
            piece = piece._replace(member=0)
        try:
            member.deliver(piece)
        except Exception as error:
            call.completed = True  # the engine did its part, whatever happened here
            self._refuse(call, member, error)

    def _complete(self, call: Call, member: Member, completed: End) -> None:
        if completed.member:
            completed = completed._replace(member=0)
        call.completed = True
        if not member.future.done():
            member.future.set_result(completed)
        self._free(call, member)

    def _fail(self, call: Call, member: Member, error: WorkerError) -> None:
        self._refuse(call, member, error if len(call.members) == 1 else failures.own_copy(error))
        self._free(call, member)

    def _refuse(self, call: Call, member: Member, error: Exception) -> None:
        if isinstance(error, StopIteration):  # a future refuses it
            error = RuntimeError("StopIteration out of deliver")
        if not member.future.done():
            member.future.set_exception(error)
        call.leave(member)

    def _free(self, call: Call, member: Member) -> None:
        call.leave(member)
        if call.close(member):
            self._window.release(1)

    def _end(self, call: Call, task: asyncio.Task[None] | None) -> None:
        """Clean up after a call. `task` is None if it ignored its cancellation."""
        self._calls.discard(call)
        for member in call.unended():
            self._fail(call, member, failures.closed() if self._closed else failures.cancelled())
        if task is not None and not task.cancelled():
            task.exception()
        call.forget()
        if not self._calls:
            self._on_quiet()


def _report(watcher: CallWatcher, watched: Any, call: Call, error: WorkerError | None) -> None:
    if error is not None or call.completed or not call.abandoned:
        watcher.call_ended(watched, len(call.members), error or (None if call.completed else call.error))
    else:
        watcher.call_given_up(watched)


def _halves(members: Sequence[Member]) -> list[Sequence[Member]]:
    middle = (len(members) + 1) // 2
    return [half for half in (members[:middle], members[middle:]) if half]


async def close_outputs(outputs: AsyncIterator[Any]) -> None:
    """Stop the call that yields these outputs, if the iterator can be closed."""
    aclose = getattr(outputs, "aclose", None)
    if aclose is not None:
        await aclose()
