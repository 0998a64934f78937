from __future__ import annotations

import sys
from typing import Any

import pytest

from scheduler.errors import ConfigError
from scheduler.model import Source
from scheduler.settings import AssembleSettings, Example
from scheduler.stages.assemble import AssembleStage
from scheduler.stages.base import PromptContext
from scheduler.stages.messages import last_user_index, question_of, text_of
from scheduler.stages.tokens import estimate_tokens
from workers.errors import ContextOverflow

PASSAGES = [Source(path="a.md", score=2.0, text="Alpha."), Source(path="b.md", score=1.0, text="Beta.")]
EXAMPLES = [Example(user="2+2?", assistant="4"), Example(user="3+3?", assistant="6")]
BLOCK = "Use these sources where they help.\n\n[1] a.md\nAlpha.\n\n[2] b.md\nBeta.\n\n---\n\n"


def make_context(
    prompt: str | None = None,
    messages: list[dict[str, Any]] | None = None,
    passages: list[Source] | None = None,
    metadata: dict[str, Any] | None = None,
) -> PromptContext:
    return PromptContext(
        job_id="j1",
        attempt=1,
        route="chat",
        tenant="default",
        priority=5,
        prompt=prompt,
        messages=messages,
        params={},
        request={"metadata": metadata},
        passages=list(passages or ()),
    )


async def assembled(context: PromptContext, **settings: Any) -> PromptContext:
    await AssembleStage(AssembleSettings(**settings), "chat").run(context)
    return context


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


SHOWN = [
    user("2+2?"),
    {"role": "assistant", "content": "4"},
    user("3+3?"),
    {"role": "assistant", "content": "6"},
]


@pytest.mark.parametrize(
    ("settings", "noop"),
    [
        ({}, True),
        ({"system": "Be brief."}, False),
        ({"examples": EXAMPLES}, False),
        ({"budget_tokens": 100}, False),
        ({"template": "{{ prompt }}"}, False),
    ],
)
def test_with_nothing_configured_there_is_nothing_to_do(settings: dict[str, Any], noop: bool) -> None:
    assert AssembleStage(AssembleSettings(**settings), "chat").is_noop is noop


async def test_a_plain_prompt_stays_as_it_is() -> None:
    context = await assembled(make_context("Why?"))
    assert (context.prompt, context.messages) == ("Why?", None)


async def test_passages_go_in_front_of_a_plain_prompt() -> None:
    context = await assembled(make_context("Why?", passages=PASSAGES))
    assert (context.prompt, context.messages) == (BLOCK + "Why?", None)


async def test_a_system_prompt_and_examples_make_a_chat_of_a_plain_prompt() -> None:
    context = await assembled(make_context("Why?", passages=PASSAGES), system="Be brief.", examples=EXAMPLES)
    assert context.prompt is None
    assert context.messages == [system("Be brief."), *SHOWN, user(BLOCK + "Why?")]


async def test_a_chat_gets_system_prompt_examples_and_passages_in_their_places() -> None:
    history = [user("Hello"), {"role": "assistant", "content": "Hi"}, user("Why?")]
    context = await assembled(
        make_context(messages=history, passages=PASSAGES), system="Be brief.", examples=EXAMPLES
    )
    assert context.messages == [system("Be brief."), *SHOWN, *history[:2], user(BLOCK + "Why?")]


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_a_chat_keeps_the_system_prompt_that_it_has(role: str) -> None:
    own = {"role": role, "content": "Mine."}
    context = await assembled(make_context(messages=[own, user("Why?")]), system="Yours.", examples=EXAMPLES)
    assert context.messages == [own, *SHOWN, user("Why?")]


async def test_passages_become_a_part_of_a_message_made_of_parts() -> None:
    parts = [{"type": "text", "text": "Why?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    context = await assembled(make_context(messages=[user(parts)], passages=PASSAGES))
    assert context.messages == [user([{"type": "text", "text": BLOCK}, *parts])]


async def test_passages_without_a_question_become_a_message_of_their_own() -> None:
    context = await assembled(make_context(messages=[system("Sum up.")], passages=PASSAGES))
    assert context.messages == [system("Sum up."), user(BLOCK)]


async def test_the_request_itself_is_never_changed() -> None:
    message = user("Why?")
    messages = [message]
    await assembled(make_context(messages=messages, passages=PASSAGES), system="Be brief.", examples=EXAMPLES)
    assert messages == [message] == [user("Why?")]


async def test_a_template_takes_the_place_of_a_plain_prompt() -> None:
    template = (
        "{% for p in passages %}{{ p.number }} {{ p.path }}: {{ p.text }}\n{% endfor %}"
        "{% for e in examples %}{{ e.user }}{{ e.assistant }} {% endfor %}"
        "{{ metadata.who }} & {{ messages | length }}: {{ prompt }}"
    )
    context = await assembled(
        make_context("Why <b>?", passages=PASSAGES, metadata={"who": "Ann"}),
        template=template,
        examples=EXAMPLES,
    )
    assert context.prompt == "1 a.md: Alpha.\n2 b.md: Beta.\n2+2?4 3+3?6 Ann & 0: Why <b>?"
    assert context.messages is None


async def test_a_template_takes_the_place_of_the_last_user_message() -> None:
    history = [user("Hello"), {"role": "assistant", "content": "Hi"}, user("Why?")]
    context = await assembled(make_context(messages=history), template="Q: {{ prompt }}", system="Be brief.")
    assert context.messages == [system("Be brief."), *history[:2], user("Q: Why?")]


async def test_a_template_replaces_text_parts_and_keeps_the_others() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [{"type": "text", "text": "What"}, image, {"type": "text", "text": "is it?"}]
    context = await assembled(make_context(messages=[user(parts)]), template="Q: {{ prompt }}")
    assert context.messages == [user([{"type": "text", "text": "Q: What\nis it?"}, image])]


def test_a_syntax_error_names_setting_and_line() -> None:
    with pytest.raises(ConfigError, match=r"^routes\.chat\.assemble\.template: line 2: .*'endfor'"):
        AssembleStage(AssembleSettings(template="{{ prompt }}\n{% endfor %}"), "chat")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Hi\n{{ nobody }}", r"template: line 2: 'nobody' is undefined"),
        ("{{ metadata.city }}", r"line 1: 'dict object' has no attribute 'city'"),
        ("{{ 1 / 0 }}", r"line 1: it fails with ZeroDivisionError"),
        (
            "{{ prompt.__class__.__mro__ }}",
            r"line 1: access to attribute '__class__' of 'str' object is unsafe",
        ),
        ("{{ messages.append(1) }}", r"line 1: access to attribute 'append'"),
        ("{% include 'secrets' %}", r"line 1: it fails with TypeError"),
        ("{{ 'a' * 99999999999 }}", r"line 1: it repeats something to more than 2,000,000 items"),
        ("{{ 9 ** 99999999 }}", r"line 1: it raises to the power of 99,999,999"),
        ("{{ lipsum(9) }}", r"line 1: 'lipsum' is undefined"),
        ("{% for a in range(100001) %}{% endfor %}", r"line 1: its ranges have more than 100,000 items"),
        (
            "{% for a in range(999) %}{% for b in range(999) %}{% endfor %}{% endfor %}",
            r"line 1: its ranges have more than 100,000 items",
        ),
        (
            "{% for a in range(9) %}{{ 'x' * 999999 }}{% endfor %}",
            r"its output has more than 2,000,000 characters",
        ),
    ],
)
async def test_a_template_that_fails_is_an_error_of_the_configuration(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^routes\.chat\.assemble\..*{message}") as caught:
        await assembled(make_context("Hi", metadata={"name": "Ann"}), template=template)
    assert not caught.value.retryable


async def test_what_python_says_of_values_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        await assembled(make_context("s3cret"), template="{{ '%d' % prompt }}{{ prompt.index('k') }}")
    assert "s3cret" not in str(caught.value)


async def test_each_rendering_has_the_whole_bound_of_ranges() -> None:
    stage = AssembleStage(
        AssembleSettings(template="{% for a in range(60000) %}{% endfor %}{{ prompt }}"), "chat"
    )
    for _ in range(2):
        context = make_context("Hi")
        await stage.run(context)
        assert context.prompt == "Hi"


def test_a_template_without_jinja_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scheduler.stages.templates", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        ConfigError, match=r"template: templates need jinja2; pip install 'prompt-scheduler\[templates\]'"
    ):
        AssembleStage(AssembleSettings(template="{{ prompt }}"), "chat")


def budget_passages(*words: int) -> list[Source]:
    """Passages of so many four-byte words each; the first scores least."""
    return [
        Source(path=f"{number}.md", score=float(number), text="abc " * count)
        for number, count in enumerate(words, start=1)
    ]


async def test_within_the_budget_nothing_is_trimmed() -> None:
    context = await assembled(make_context("Why?", passages=PASSAGES), budget_tokens=100)
    assert context.prompt == BLOCK + "Why?"


async def test_over_the_budget_the_passages_with_the_lowest_scores_go_first() -> None:
    context = await assembled(
        make_context("Why?", passages=budget_passages(50, 50, 50, 50)), budget_tokens=150
    )
    assert [passage.path for passage in context.passages] == ["3.md", "4.md"]
    assert context.prompt is not None
    assert "[1] 3.md" in context.prompt
    assert "2.md" not in context.prompt
    assert estimate_tokens(context.prompt) <= 150


async def test_the_last_passage_is_cut_to_what_fits() -> None:
    context = await assembled(make_context("Why?", passages=budget_passages(10, 500)), budget_tokens=100)
    assert context.prompt is not None
    assert 95 <= estimate_tokens(context.prompt) <= 100
    assert [passage.path for passage in context.passages] == ["2.md"]
    assert context.passages[0].text.endswith("abc …")
    assert context.passages[0].text in context.prompt
    assert context.prompt.endswith("\n\n---\n\nWhy?")


async def test_a_passage_that_would_be_a_few_words_is_left_out() -> None:
    context = await assembled(make_context("Why?", passages=budget_passages(500)), budget_tokens=20)
    assert (context.prompt, context.passages) == ("Why?", [])


async def test_examples_go_after_the_passages_and_the_first_stays_longest() -> None:
    examples = [Example(user=f"{number}?" + "x" * 60, assistant="yes") for number in range(3)]
    context = await assembled(
        make_context("Why?", passages=budget_passages(100)), examples=examples, budget_tokens=45
    )
    assert context.passages == []
    assert context.messages is not None
    assert [message["content"][:2] for message in context.messages] == ["0?", "ye", "1?", "ye", "Wh"]


@pytest.mark.parametrize("settings", [{}, {"system": "Be brief."}, {"template": "{{ prompt }}"}])
async def test_the_users_own_words_are_never_cut(settings: dict[str, Any]) -> None:
    context = make_context("word " * 1000, passages=PASSAGES)
    with pytest.raises(
        ContextOverflow, match=r"about 1,25\d tokens .*budget_tokens is 100: shorten"
    ) as caught:
        await assembled(context, budget_tokens=100, **settings)
    assert not caught.value.retryable


async def test_a_template_is_held_to_the_budget_too() -> None:
    template = "{% for p in passages %}{{ p.text }}{% endfor %}{{ prompt }}"
    context = await assembled(
        make_context("Why?", passages=budget_passages(50, 50, 50)), template=template, budget_tokens=110
    )
    assert context.prompt == "abc " * 100 + "Why?"


async def test_earlier_messages_and_tool_calls_count() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": "x" * 400}}
    history = [user("y" * 400), {"role": "assistant", "content": None, "tool_calls": [call]}, user("Why?")]
    await assembled(make_context(messages=history), budget_tokens=210)
    with pytest.raises(ContextOverflow):
        await assembled(make_context(messages=history), budget_tokens=200)


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 1), ("abc", 1), ("a" * 400, 101), ("水" * 400, 301), ("\ud800" * 4, 2)]
)
def test_tokens_are_guessed_from_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_the_question_is_the_prompt_or_the_last_message_of_the_user() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    messages = [user("first"), user(parts), {"role": "assistant", "content": "c"}]
    assert question_of("Hi", None) == "Hi"
    assert question_of(None, messages) == "a\nb"
    assert question_of(None, [system("x")]) == question_of(None, None) == ""
    assert last_user_index(messages) == 1
    assert text_of(None) == ""
