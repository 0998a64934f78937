from __future__ import annotations

import asyncio
import logging
import runpy
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import pytest

from scheduler.errors import ConfigError
from scheduler.model import Source
from scheduler.settings import AssembleSettings, EndpointSettings, PostSettings, RagSettings, RouteSettings
from scheduler.stages import pipeline as pipeline_module
from scheduler.stages.assemble import AssembleStage
from scheduler.stages.base import PromptContext, Stage
from scheduler.stages.pipeline import (
    OTHERS_EVERY,
    DeadlinePassed,
    Pipeline,
    StageGate,
    build_pipeline,
    resolve_stage,
)
from workers.base import Completed, Piece

EXAMPLE = Path(__file__).parents[2] / "examples/custom_stage.py"


def make_context(prompt: str = "Hi", *, expires_at: float | None = None) -> PromptContext:
    return PromptContext(
        job_id="j1",
        attempt=1,
        route="chat",
        tenant="default",
        priority=5,
        prompt=prompt,
        messages=None,
        params={},
        request={},
        expires_at=expires_at,
    )


class Recorded:
    """A stage that does what it is told and notes that it ran."""

    def __init__(
        self, name: str, log: list[str], do: Callable[[PromptContext], Awaitable[None]] | None = None
    ) -> None:
        self.name = name
        self._log = log
        self._do = do

    async def run(self, context: PromptContext) -> None:
        self._log.append(self.name)
        if self._do:
            await self._do(context)


class Started(Recorded):
    async def start(self) -> None:
        self._log.append(f"{self.name} start")

    async def stop(self) -> None:
        self._log.append(f"{self.name} stop")


class Answering:
    name = "inference"

    async def run(self, context: PromptContext) -> None:
        context.deliver(Piece(member=0, text=f" {context.prompt} "))
        context.completed = Completed(member=0, finish_reason="stop")


class Silent:
    name = "stream"

    async def run(self, context: PromptContext) -> None:
        return


def make_route(**settings: Any) -> RouteSettings:
    return RouteSettings(endpoints=[EndpointSettings(backend="echo")], **settings)


def build(**settings: Any) -> Pipeline:
    return build_pipeline("chat", make_route(**settings), inference=Answering(), stream=Silent())


def pipeline_of(*stages: Stage, limit: int = 10) -> Pipeline:
    return Pipeline([(stage, StageGate(limit)) for stage in stages])


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("my_stages")
    monkeypatch.setitem(sys.modules, "my_stages", made)
    return made


async def test_the_default_pipeline_answers_and_reports_every_stage() -> None:
    pipeline, context = build(), make_context()
    await pipeline.run(context)
    assert context.texts == [" Hi "]
    assert list(context.stages_ms) == ["assemble", "inference", "post", "stream"]
    assert all(milliseconds >= 0 for milliseconds in context.stages_ms.values())
    assert {name: gate.passed for name, gate in pipeline.gates.items()} == dict.fromkeys(context.stages_ms, 1)
    assert [gate.running for gate in pipeline.gates.values()] == [0, 0, 0, 0]


async def test_retrieval_puts_its_passages_into_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The sky is blue.")
    pipeline, context = build(rag=RagSettings(documents=tmp_path)), make_context("Why is the sky blue?")
    await pipeline.start()
    await pipeline.run(context)
    assert list(context.stages_ms) == ["rag", "assemble", "inference", "post", "stream"]
    assert "[1] a.txt\nThe sky is blue." in "".join(context.texts)
    assert pipeline.gates["rag"].limit == 4


async def test_a_folder_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    pipeline = build(rag=RagSettings(documents=tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"^routes\.chat\.rag\.documents: there is no folder"):
        await pipeline.start()


def test_a_template_that_is_wrong_stops_the_building() -> None:
    with pytest.raises(ConfigError, match=r"^routes\.chat\.assemble\.template: line 1"):
        build(assemble=AssembleSettings(template="{{"))


async def test_stages_left_out_of_the_settings_do_not_run() -> None:
    pipeline, context = (
        build(stages=["inference", "stream"], post=PostSettings(redact=["email"])),
        make_context(),
    )
    await pipeline.run(context)
    assert list(pipeline.gates) == ["inference", "stream"]
    assert context.texts == [" Hi "]


async def test_a_noop_stage_runs_all_the_same_after_a_stage_that_may_have_changed_something() -> None:
    async def add(context: PromptContext) -> None:
        context.passages.append(Source(path="x", score=1.0, text="Fact."))

    assemble = AssembleStage(AssembleSettings(), "chat")
    first, second = make_context(), make_context()
    await pipeline_of(assemble, Answering()).run(first)
    await pipeline_of(Recorded("facts", [], add), assemble, Answering()).run(second)
    assert first.texts == [" Hi "]
    assert "Fact." in second.texts[0]


async def test_stages_run_in_order_and_an_error_ends_the_way() -> None:
    async def fail(context: PromptContext) -> None:
        raise ConfigError("no")

    log: list[str] = []
    pipeline = pipeline_of(Recorded("one", log), Recorded("two", log, fail), Recorded("three", log))
    context = make_context()
    with pytest.raises(ConfigError, match=r"^no$"):
        await pipeline.run(context)
    assert log == ["one", "two"] == list(context.stages_ms)
    assert [gate.passed for gate in pipeline.gates.values()] == [1, 0, 0]
    assert [gate.running for gate in pipeline.gates.values()] == [0, 0, 0]


async def test_the_deadline_is_looked_at_before_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pipeline_module, "monotonic", lambda: now)

    async def take_long(context: PromptContext) -> None:
        nonlocal now
        now += 5.0

    log: list[str] = []
    pipeline = pipeline_of(Recorded("one", log, take_long), Recorded("two", log))
    await pipeline.run(make_context(expires_at=105.1))
    now = 100.0
    with pytest.raises(DeadlinePassed, match=r"before the stage two$") as caught:
        await pipeline.run(make_context(expires_at=105.0))
    assert caught.value.stage == "two"
    assert log == ["one", "two", "one"]
    assert pipeline.gates["two"].running == 0


async def test_filters_are_opened_right_before_inference_in_the_order_of_stages() -> None:
    log: list[str] = []

    class Opening(Recorded):
        def open(self, context: PromptContext) -> None:
            self._log.append(f"{self.name} open")

    await pipeline_of(
        Recorded("rag", log), Opening("a", log), Recorded("inference", log), Opening("b", log)
    ).run(make_context())
    assert log == ["rag", "a", "a open", "b open", "inference", "b"]


async def test_start_and_stop_reach_every_stage_once() -> None:
    log: list[str] = []
    pipeline = pipeline_of(Started("one", log), Silent(), Started("two", log))
    for _ in range(2):
        await pipeline.start()
    for _ in range(2):
        await pipeline.stop()
    assert log == ["one start", "two start", "two stop", "one stop"]
    await pipeline.start()
    assert log[4:] == ["one start", "two start"]


async def test_a_stage_that_does_not_start_stops_those_before_it() -> None:
    class Broken(Started):
        async def start(self) -> None:
            raise ConfigError("cannot")

    log: list[str] = []
    pipeline = pipeline_of(Started("one", log), Broken("two", log), Started("three", log))
    with pytest.raises(ConfigError, match="cannot"):
        await pipeline.start()
    assert log == ["one start", "two stop", "one stop"]


async def test_a_stage_that_does_not_stop_is_logged_and_keeps_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Started):
        async def stop(self) -> None:
            raise RuntimeError("stuck")

    log: list[str] = []
    pipeline = pipeline_of(Started("one", log), Broken("two", log))
    await pipeline.start()
    await pipeline.stop()
    assert log[-1] == "one stop"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "the stage two did not stop cleanly")
    ]


def test_two_stages_of_one_name_are_refused(module: ModuleType) -> None:
    module.Twin = lambda: Recorded("post", [])  # type: ignore[attr-defined]  # a module made here
    with pytest.raises(ConfigError, match=r"^routes\.chat\.stages: two stages are called 'post'"):
        build(stages=["inference", "my_stages:Twin", "post", "stream"])


async def test_limits_hold_for_the_stages_they_name() -> None:
    pipeline = build_pipeline(
        "chat", make_route(), inference=Answering(), stream=Silent(), limits={"inference": 2, "other": 1}
    )
    assert pipeline.gates["inference"].limit == 2
    assert pipeline.gates["stream"].limit == pipeline_module.UNBOUNDED


async def test_a_full_stage_lets_others_wait_in_order() -> None:
    go_on = asyncio.Event()
    entered: list[str] = []

    async def wait(context: PromptContext) -> None:
        entered.append(context.job_id)
        await go_on.wait()

    pipeline = pipeline_of(Recorded("slow", [], wait), limit=2)
    gate = pipeline.gates["slow"]
    contexts = [make_context() for _ in range(5)]
    for number, context in enumerate(contexts):
        context.job_id = str(number)
    async with asyncio.TaskGroup() as tasks:
        for context in contexts:
            tasks.create_task(pipeline.run(context))
        while len(entered) < 2 or gate.waiting < 3:
            await asyncio.sleep(0)
        assert (gate.running, gate.waiting, gate.passed) == (2, 3, 0)
        assert not gate.try_enter()
        go_on.set()
    assert entered == ["0", "1", "2", "3", "4"]
    assert (gate.running, gate.waiting, gate.passed) == (0, 0, 5)


async def test_a_gate_keeps_newcomers_behind_those_who_wait() -> None:
    gate = StageGate(1)
    assert gate.try_enter()
    waiting = asyncio.create_task(gate.enter())
    while not gate.waiting:
        await asyncio.sleep(0)
    gate.leave()
    assert not gate.try_enter()
    await waiting
    assert gate.running == 1


async def test_the_urgent_are_let_in_before_others_that_wait() -> None:
    gate = StageGate(1)
    assert gate.try_enter()
    order: list[str] = []

    async def come(name: str, *, urgent: bool) -> None:
        await gate.enter(urgent=urgent)
        order.append(name)
        gate.leave()

    async with asyncio.TaskGroup() as tasks:
        for name in ("first", "second", "urgent", "urgent too"):
            tasks.create_task(come(name, urgent=name.startswith("urgent")))
        while gate.waiting < 4:
            await asyncio.sleep(0)
        gate.leave()
    assert order == ["urgent", "urgent too", "first", "second"]


async def test_the_urgent_do_not_keep_others_out_for_ever() -> None:
    gate = StageGate(1)
    assert gate.try_enter()
    other = asyncio.create_task(gate.enter())
    while not gate.waiting:
        await asyncio.sleep(0)
    for _ in range(OTHERS_EVERY):
        urgent = asyncio.create_task(gate.enter(urgent=True))
        while gate.waiting < 2:
            await asyncio.sleep(0)
        gate.leave()
        await asyncio.wait([urgent, other], return_when=asyncio.FIRST_COMPLETED)
        if other.done():
            break
    assert other.done()
    assert not urgent.done()
    gate.leave()
    await urgent


@pytest.mark.parametrize("leave_first", [False, True])
async def test_a_cancelled_waiter_takes_no_place(leave_first: bool) -> None:
    gate = StageGate(1)
    assert gate.try_enter()
    cancelled, next_one = asyncio.create_task(gate.enter()), asyncio.create_task(gate.enter())
    while gate.waiting < 2:
        await asyncio.sleep(0)
    if leave_first:
        gate.leave()
        cancelled.cancel()
    else:
        cancelled.cancel()
        gate.leave()
    await next_one
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (gate.running, gate.waiting) == (1, 0)
    gate.leave()
    assert gate.running == 0


async def test_a_cancelled_waiter_leaves_the_line() -> None:
    gate = StageGate(1)
    assert gate.try_enter()
    waiting = asyncio.create_task(gate.enter())
    while not gate.waiting:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (gate.running, gate.waiting) == (1, 0)


async def test_a_gate_as_context_counts_who_came_through() -> None:
    gate = StageGate(1)
    async with gate:
        assert gate.running == 1
    with pytest.raises(ValueError, match="no"):
        async with gate:
            raise ValueError("no")
    assert (gate.running, gate.passed) == (0, 1)


def test_a_gate_without_room_for_anybody_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit is 0"):
        StageGate(0)


class Plain(Silent):
    name = "plain"


class WithRoute(Silent):
    name = "with_route"

    def __init__(self, route: RouteSettings) -> None:
        self.route = route


class Options(Silent):
    name = "options"

    def __init__(self, route: RouteSettings, size: int = 3, *, other: str = "") -> None:
        self.route = route


def make_plain() -> Plain:
    return Plain()


def make_with_route(route: RouteSettings) -> WithRoute:
    return WithRoute(route)


def test_a_stage_of_ones_own_is_a_class_an_instance_or_what_makes_one(module: ModuleType) -> None:
    route = make_route()
    instance = Plain()
    for name, found in (
        ("Class", Plain),
        ("instance", instance),
        ("make", make_plain),
        ("Nested", type("Nested", (), {"Inner": Plain})),
    ):
        setattr(module, name, found)

    def resolve(entry: str) -> Stage:
        return resolve_stage(entry, route, setting="s")

    assert isinstance(resolve("my_stages:Class"), Plain)
    assert resolve("my_stages:instance") is instance
    assert isinstance(resolve("my_stages:make"), Plain)
    assert isinstance(resolve("my_stages:Nested.Inner"), Plain)


@pytest.mark.parametrize("factory", [WithRoute, Options, make_with_route])
def test_a_stage_that_wants_one_argument_gets_the_settings_of_its_route(
    module: ModuleType, factory: Callable[..., Any]
) -> None:
    module.Name = factory  # type: ignore[attr-defined]  # a module made here
    route = make_route()
    stage: Any = resolve_stage("my_stages:Name", route, setting="s")
    assert stage.route is route


def refuse() -> Stage:
    raise OSError("no disk")


def complain() -> Stage:
    raise ConfigError("glossary.path: is missing")


class NotAsync:
    name = "sync"

    def run(self, context: PromptContext) -> None: ...


@pytest.mark.parametrize(
    ("entry", "found", "message"),
    [
        (
            "no_such_module:Name",
            None,
            "routes.chat.stages: no_such_module:Name: importing no_such_module fails: Module",
        ),
        ("workers.mine:Name", None, "the name 'workers' is prompt-scheduler's: rename that package"),
        (
            "my_stages:Missing",
            None,
            "routes.chat.stages: my_stages:Missing: there is no Missing in my_stages",
        ),
        ("my_stages:", None, "routes.chat.stages: 'my_stages:' is not of the form 'package.module:Name'"),
        (":Name", None, "routes.chat.stages: ':Name' is not of the form"),
        ("my_stages:Name", 5, "routes.chat.stages: my_stages:Name is no stage: give it a `name`"),
        ("my_stages:Name", object, "my_stages:Name is no stage: give it a `name`"),
        (
            "my_stages:Name",
            type("S", (Silent,), {"name": "Two words"}),
            "is no stage: give it a `name`, one word",
        ),
        ("my_stages:Name", NotAsync, "my_stages:Name is no stage: give it `async def run(self, context)`"),
        ("my_stages:Name", type("S", (), {"name": "s"}), "give it `async def run(self, context)`"),
        (
            "my_stages:Name",
            lambda a, b: Plain(),
            "my_stages:Name needs 2 arguments; let it take none, or one",
        ),
        ("my_stages:Name", refuse, "my_stages:Name cannot be made: OSError: no disk"),
        ("my_stages:Name", complain, "glossary.path: is missing"),
    ],
)
def test_what_is_no_stage_is_refused_by_name(
    module: ModuleType, entry: str, found: object, message: str
) -> None:
    if found is not None:
        module.Name = found  # type: ignore[attr-defined]  # a module made here
    with pytest.raises(ConfigError) as caught:
        build(stages=["inference", entry, "stream"])
    assert message in str(caught.value)


def test_a_module_that_fails_while_it_is_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_stages.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing broken_stages fails: RuntimeError: no licence"):
        resolve_stage("broken_stages:Name", make_route(), setting="s")


def test_the_example_of_a_custom_stage_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == "Why is the sky blue?\n\nAnswer in Danish. \n-- echo\n"


async def test_a_stage_with_nothing_to_do_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AssembleStage, "run", lambda self, context: pytest.fail("ran for nothing"))
    pipeline, context = build(), make_context(expires_at=monotonic() + 60)
    await pipeline.run(context)
    assert context.stages_ms["assemble"] == 0.0
