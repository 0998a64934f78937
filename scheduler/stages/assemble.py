"""The assemble stage: builds the prompt from its parts within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scheduler.errors import ConfigError
from scheduler.model import Source
from scheduler.settings import AssembleSettings, Example
from scheduler.stages.base import PromptContext
from scheduler.stages.messages import SYSTEM_ROLES, is_text_part, last_user_index, question_of, text_of
from scheduler.stages.tokens import BYTES_PER_TOKEN, estimate_tokens
from workers.errors import ContextOverflow, RequestRejected

if TYPE_CHECKING:
    from scheduler.stages.templates import PromptTemplate

# A passage cut shorter than this is not worth its heading.
MIN_PASSAGE_TOKENS = 16

_CUT_MARK = " …"


@dataclass(frozen=True, slots=True)
class _Draft:
    """An assembled prompt with its estimated number of tokens."""

    prompt: str | None
    messages: list[dict[str, Any]] | None
    passages: list[Source]
    tokens: int


class AssembleStage:
    """Builds the prompt from system prompt, examples, passages and question.

    Without a template, passages go in front of the question; a system prompt or examples turn a plain prompt
    into a chat. A template's output replaces the question, and the template places passages and examples
    itself. Over the budget, passages are dropped first, the lowest score first, then examples, the last
    first. The user's words are never changed.

    Raises:
        ConfigError: the template has a syntax error, or jinja2 is not installed.
    """

    name: Final = "assemble"

    def __init__(self, settings: AssembleSettings, route: str) -> None:
        self._system = settings.system
        self._examples = tuple(settings.examples)
        self._budget = settings.budget_tokens
        self._setting = f"routes.{route}.assemble"
        self._template = _compiled(settings.template, f"{self._setting}.template")

    @property
    def is_noop(self) -> bool:
        """Whether it changes no prompt, unless an earlier stage has added passages."""
        return self._template is None and self._system is None and not self._examples and self._budget is None

    async def run(self, context: PromptContext) -> None:
        """Replace the context's prompt or messages with the assembled prompt.

        `passages` keeps those that are part of it.

        Raises:
            ConfigError: the template failed.
            ContextOverflow: the user's own words exceed the budget.
        """
        if self.is_noop and not context.passages:
            return
        if context.token_ids is not None:
            raise RequestRejected("prompt: this route adds text, which token ids cannot take; give text")
        draft = self._fitted(context)
        context.prompt, context.messages, context.passages = draft.prompt, draft.messages, draft.passages

    def _fitted(self, context: PromptContext) -> _Draft:
        def compose(passages: Sequence[Source], examples: Sequence[Example]) -> _Draft:
            return self._compose(context, passages, examples)

        draft = compose(context.passages, self._examples)
        if self._budget is None or draft.tokens <= self._budget:
            return draft
        if context.passages:
            draft = self._with_fewer_passages(compose, context.passages)
        kept = len(self._examples)
        while draft.tokens > self._budget and kept:
            kept -= 1
            draft = compose((), self._examples[:kept])
        if draft.tokens > self._budget:
            raise ContextOverflow(
                f"the prompt has about {draft.tokens:,} tokens without passages and examples, and "
                f"{self._setting}.budget_tokens is {self._budget:,}: shorten the prompt or raise the budget"
            )
        return draft

    def _with_fewer_passages(
        self, compose: Callable[[Sequence[Source], Sequence[Example]], _Draft], passages: Sequence[Source]
    ) -> _Draft:
        """Keep as many of the best passages as fit. If even the best one is too long, keep a part of it."""
        by_score = sorted(range(len(passages)), key=lambda number: -passages[number].score)
        fitting = compose((), self._examples)
        least, most = 1, len(passages) - 1
        while least <= most:
            count = (least + most) // 2
            draft = compose([passages[number] for number in sorted(by_score[:count])], self._examples)
            if self._fits(draft):
                fitting, least = draft, count + 1
            else:
                most = count - 1
        if fitting.passages or not self._fits(fitting):
            return fitting
        best = passages[by_score[0]]
        shortened = _shortened(best, compose([best], self._examples).tokens - (self._budget or 0))
        draft = compose([shortened], self._examples) if shortened else fitting
        return draft if self._fits(draft) else fitting

    def _fits(self, draft: _Draft) -> bool:
        return self._budget is None or draft.tokens <= self._budget

    def _compose(
        self, context: PromptContext, passages: Sequence[Source], examples: Sequence[Example]
    ) -> _Draft:
        if self._template:
            rendered = self._template.render(_variables(context, passages, examples))
            return self._chat_or_plain(context, lambda content: _replaced(content, rendered), passages, ())
        block = _passage_block(passages)
        return self._chat_or_plain(context, lambda content: _prefixed(content, block), passages, examples)

    def _chat_or_plain(
        self,
        context: PromptContext,
        rewrite: Callable[[Any], Any],
        passages: Sequence[Source],
        examples: Sequence[Example],
    ) -> _Draft:
        if context.prompt is not None and self._system is None and not examples:
            prompt = rewrite(context.prompt)
            return _Draft(prompt, None, list(passages), estimate_tokens(prompt))
        messages = (
            context.messages if context.prompt is None else [{"role": "user", "content": context.prompt}]
        )
        messages = _with_opening(_rewritten(messages or [], rewrite), self._system, examples)
        return _Draft(None, messages, list(passages), sum(map(_message_tokens, messages)))


def _compiled(template: str | None, setting: str) -> PromptTemplate | None:
    if template is None:
        return None
    try:
        from scheduler.stages.templates import PromptTemplate  # noqa: PLC0415  an optional extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{setting}: templates need {error.name}; pip install 'prompt-scheduler[templates]'"
        ) from None
    return PromptTemplate(template, setting=setting)


def _variables(
    context: PromptContext, passages: Sequence[Source], examples: Sequence[Example]
) -> dict[str, Any]:
    return {
        "prompt": question_of(context.prompt, context.messages),
        "messages": context.messages or [],
        "metadata": context.request.get("metadata") or {},
        "examples": [{"user": example.user, "assistant": example.assistant} for example in examples],
        "passages": [
            {"number": number, "path": passage.path, "score": passage.score, "text": passage.text}
            for number, passage in enumerate(passages, start=1)
        ],
    }


def _rewritten(messages: list[dict[str, Any]], rewrite: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Rewrite the user's last message. Without one, add the rewritten empty text as a message."""
    asked = last_user_index(messages)
    if asked is None:
        content = rewrite("")
        return [*messages, {"role": "user", "content": content}] if content else messages
    changed = messages[asked] | {"content": rewrite(messages[asked].get("content"))}
    return [*messages[:asked], changed, *messages[asked + 1 :]]


def _with_opening(
    messages: list[dict[str, Any]], system: str | None, examples: Sequence[Example]
) -> list[dict[str, Any]]:
    """Prepend the system prompt, unless there is one, and insert the examples after it."""
    if system is not None and not any(message.get("role") in SYSTEM_ROLES for message in messages):
        messages = [{"role": "system", "content": system}, *messages]
    opening = 0
    while opening < len(messages) and messages[opening].get("role") in SYSTEM_ROLES:
        opening += 1
    shown = [
        message
        for example in examples
        for message in (
            {"role": "user", "content": example.user},
            {"role": "assistant", "content": example.assistant},
        )
    ]
    return [*messages[:opening], *shown, *messages[opening:]]


def _passage_block(passages: Sequence[Source]) -> str:
    if not passages:
        return ""
    sources = "\n\n".join(
        f"[{number}] {passage.path}\n{passage.text}" for number, passage in enumerate(passages, start=1)
    )
    return f"Use these sources where they help.\n\n{sources}\n\n---\n\n"


def _prefixed(content: Any, block: str) -> Any:
    """Prepend text to a message's content, in any of its forms."""
    if not block:
        return content
    if isinstance(content, list):
        return [{"type": "text", "text": block}, *content]
    return block + (content or "")


def _replaced(content: Any, text: str) -> Any:
    """Replace a message's text. Other parts, such as images, stay."""
    if isinstance(content, list):
        return [{"type": "text", "text": text}, *(part for part in content if not is_text_part(part))]
    return text


def _message_tokens(message: Mapping[str, Any]) -> int:
    calls = message.get("tool_calls") or ()
    arguments = "".join(str((call.get("function") or {}).get("arguments") or "") for call in calls)
    return estimate_tokens(text_of(message.get("content")) + arguments)


def _shortened(passage: Source, excess_tokens: int) -> Source | None:
    """Cut a number of tokens from the end of a passage, at a word; None if too little would be left."""
    excess_chars = excess_tokens * BYTES_PER_TOKEN + len(_CUT_MARK.encode())
    kept = passage.text[: max(0, len(passage.text) - excess_chars)]
    kept = kept.rsplit(maxsplit=1)[0] if kept.strip() and " " in kept else kept
    if estimate_tokens(kept) < MIN_PASSAGE_TOKENS:
        return None
    return passage.model_copy(update={"text": kept.rstrip() + _CUT_MARK})
