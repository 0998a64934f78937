"""A route's stages in order, each with a limit and counts."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from types import MappingProxyType, TracebackType
from typing import ClassVar, cast

from scheduler.errors import ConfigError
from scheduler.logs import traced
from scheduler.model import Kind, is_urgent
from scheduler.settings import RouteSettings
from scheduler.stages.assemble import AssembleStage
from scheduler.stages.base import PromptContext, Stage
from scheduler.stages.post import PostStage
from scheduler.stages.rag import RagStage

logger = logging.getLogger(__name__)

DEFAULT_LIMITS: Mapping[str, int] = MappingProxyType({"rag": 4})
"""Default limits of prompts in a stage at once. Retrieval takes CPU, so four are enough."""

UNBOUNDED = 100_000
"""More than a process may run (`max_running`): such a stage only counts."""

OTHERS_EVERY = 8
"""Of this many places that become free in a stage, one goes to work that is not urgent."""

_OURS = frozenset({"scheduler", "workers"})
_STAGE_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


class DeadlinePassed(Exception):
    """The job's deadline passed before the stage named by `stage` could begin."""

    code: ClassVar[str] = "expired"

    def __init__(self, stage: str) -> None:
        super().__init__(f"the deadline passed before the stage {stage}")
        self.stage = stage


class StageGate:
    """Limits and counts the prompts in a stage. Waiting prompts enter in order, urgent ones first.

    One slot in `OTHERS_EVERY` goes to the others first, so that they do not wait for ever.

    `limit`, `running` and `waiting` are numbers of prompts now. `passed` counts those that left without an
    error since the start.
    """

    __slots__ = ("_left", "_others", "_urgent", "limit", "passed", "running")

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigError(f"a stage's limit is {limit}; let at least one prompt in")
        self.limit = limit
        self.running = 0
        self.passed = 0
        self._left = 0
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many prompts wait to enter."""
        return len(self._urgent) + len(self._others)

    def try_enter(self) -> bool:
        """Enter if a slot is free and no prompt waits. If it returns true, call `leave` afterwards."""
        if self.running >= self.limit:
            return False
        self.running += 1
        return True

    async def enter(self, *, urgent: bool = False) -> None:
        """Enter, waiting for a slot if needed. Call `leave` afterwards."""
        if self.try_enter():
            return
        waiter = asyncio.get_running_loop().create_future()
        waiters = self._urgent if urgent else self._others
        waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave()  # admitted and cancelled at once: the slot goes to the next
            elif waiter in waiters:
                waiters.remove(waiter)
            raise

    def leave(self) -> None:
        """Leave; the slot goes straight to the next waiting prompt."""
        self._left += 1
        lines = (self._urgent, self._others)
        for waiters in lines if self._left % OTHERS_EVERY else reversed(lines):
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return
        self.running -= 1

    async def __aenter__(self) -> StageGate:
        await self.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.passed += 1
        self.leave()


@dataclass(frozen=True, slots=True)
class _Step:
    """A stage prepared for `Pipeline.run`, with nothing left to look up. `run` is None for a no-op."""

    name: str
    gate: StageGate
    run: Callable[[PromptContext], Awaitable[None]] | None
    openers: tuple[Callable[[PromptContext], None], ...] = ()


class Pipeline:
    """The stages of a route, in order, with their gates. Shared by all jobs of the route.

    Beside `run`, a stage may have `open(context)`, called right before inference, to add filters; coroutines
    `start()` and `stop()`; and `is_noop`, true if it changes nothing that no earlier stage has changed.

    Raises:
        ConfigError: two stages have the same name.
    """

    def __init__(self, stages: Sequence[tuple[Stage, StageGate]], *, setting: str = "stages") -> None:
        self.stages = tuple(stage for stage, _ in stages)
        self.gates: Mapping[str, StageGate] = MappingProxyType({stage.name: gate for stage, gate in stages})
        if len(self.gates) < len(stages):
            raise ConfigError(
                f"{setting}: two stages are called {_repeated(self.stages)!r}; name each differently"
            )
        self._steps = tuple(_steps(stages))
        self._started: list[Stage] = []

    async def run(self, context: PromptContext) -> None:
        """Run a job through all stages. `stages_ms` gets the time in each, without the wait for a slot.

        Raises:
            DeadlinePassed: `context.expires_at` passed before a stage could begin.
            WorkerError: the attempt failed.
            ConfigError: the job cannot succeed with this configuration.
        """
        for step in self._steps:
            gate, run = step.gate, step.run
            if run is None:
                gate.passed += 1
                context.stages_ms[step.name] = 0.0
                continue
            if not gate.try_enter():
                await gate.enter(urgent=is_urgent(context.priority))
            began = perf_counter()
            watcher = context.watcher
            if watcher is not None:
                watcher.stage_began(step.name)
            try:
                if context.expires_at is not None and monotonic() >= context.expires_at:
                    raise DeadlinePassed(step.name)
                if step.openers:
                    context.openers = step.openers
                    for open_filters in step.openers:
                        open_filters(context)
                await run(context)
                gate.passed += 1
            except BaseException as error:
                if watcher is not None:
                    watcher.stage_ended(step.name, error)
                raise
            else:
                if watcher is not None:
                    watcher.stage_ended(step.name, None)
            finally:
                context.stages_ms[step.name] = (perf_counter() - began) * 1000.0
                gate.leave()

    async def start(self) -> None:
        """Start the stages that have a `start()`. Safe to call twice.

        If one fails, those before it are stopped and its error is raised.
        """
        if self._started:
            return
        for stage in self.stages:
            self._started.append(stage)
            try:
                await _call(stage, "start")
            except BaseException:
                await self.stop()
                raise

    async def stop(self) -> None:
        """Stop the started stages in reverse order. Safe to call twice; errors of a stage are logged."""
        while self._started:
            stage = self._started.pop()
            try:
                await _call(stage, "stop")
            except Exception as error:
                cause = traced(error, logger)
                logger.error("the stage %s did not stop cleanly", stage.name, exc_info=cause)


async def _call(stage: Stage, method: str) -> None:
    function = getattr(stage, method, None)
    if function is not None:
        await function()


def _repeated(stages: tuple[Stage, ...]) -> str:
    names = [stage.name for stage in stages]
    return next(name for name in names if names.count(name) > 1)


def _steps(stages: Sequence[tuple[Stage, StageGate]]) -> Iterator[_Step]:
    openers = tuple(stage.open for stage, _ in stages if hasattr(stage, "open"))
    untouched = True
    for stage, gate in stages:
        if untouched and getattr(stage, "is_noop", False):
            yield _Step(stage.name, gate, None)
            continue
        untouched = False
        yield _Step(stage.name, gate, stage.run, openers if stage.name == "inference" else ())


def build_pipeline(
    route_name: str,
    route: RouteSettings,
    *,
    inference: Stage,
    stream: Stage,
    limits: Mapping[str, int] | None = None,
) -> Pipeline:
    """Make the pipeline of `routes.<name>.stages`. `limits` limits stages by name.

    Raises:
        ConfigError: naming the setting, when a stage of one's own or a template is wrong.
    """
    if route.kind is not Kind.GENERATE:
        return Pipeline([(inference, StageGate(UNBOUNDED))])
    setting = f"routes.{route_name}.stages"
    bounds = {**DEFAULT_LIMITS, **(limits or {})}
    stages = [
        (stage, StageGate(bounds.get(stage.name, UNBOUNDED)))
        for entry in route.stages
        if (stage := _stage(entry, route_name, route, inference, stream)) is not None
    ]
    return Pipeline(stages, setting=setting)


def _stage(
    entry: str, route_name: str, route: RouteSettings, inference: Stage, stream: Stage
) -> Stage | None:
    match entry:
        case "rag":
            return RagStage(route.rag, route_name) if route.rag else None
        case "assemble":
            return AssembleStage(route.assemble, route_name)
        case "inference":
            return inference
        case "post":
            return PostStage(route.post)
        case "stream":
            return stream
        case _:
            return resolve_stage(entry, route, setting=f"routes.{route_name}.stages")


def resolve_stage(entry: str, route: RouteSettings, *, setting: str) -> Stage:
    """Make a stage from `"package.module:Name"`: a stage, or a class or function that makes one.

    A class or function that needs one argument gets the route's settings.

    Raises:
        ConfigError: it cannot be imported or made, or is no stage.
    """
    found = _imported(entry, setting)
    if inspect.isclass(found) or (callable(found) and not hasattr(found, "run")):
        found = _made(entry, found, route, setting)
    name = getattr(found, "name", None)
    if not isinstance(name, str) or not _STAGE_NAME.match(name):
        raise ConfigError(f"{setting}: {entry} is no stage: give it a `name`, one word in lower case")
    if not inspect.iscoroutinefunction(getattr(found, "run", None)):
        raise ConfigError(f"{setting}: {entry} is no stage: give it `async def run(self, context)`")
    return cast("Stage", found)


def _imported(entry: str, setting: str) -> object:
    module_name, _, path = entry.partition(":")
    if not module_name or not path:
        raise ConfigError(f"{setting}: {entry!r} is not of the form 'package.module:Name'")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:
        taken = module_name.partition(".")[0]
        hint = f"; the name {taken!r} is prompt-scheduler's: rename that package" if taken in _OURS else ""
        raise ConfigError(
            f"{setting}: {entry}: importing {module_name} fails: {type(error).__name__}: {error}{hint}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{setting}: {entry}: there is no {part} in {module_name}")
        found = getattr(found, part)
    return found


def _made(entry: str, factory: Callable[..., object], route: RouteSettings, setting: str) -> object:
    wanted = _required_arguments(factory)
    if wanted > 1:
        raise ConfigError(
            f"{setting}: {entry} needs {wanted} arguments; let it take none, or one for its route's settings"
        )
    try:
        return factory(route) if wanted else factory()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{setting}: {entry} cannot be made: {type(error).__name__}: {error}") from error


def _required_arguments(factory: Callable[..., object]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(factory).parameters.values()
    return sum(each.kind in positional and each.default is inspect.Parameter.empty for each in parameters)
