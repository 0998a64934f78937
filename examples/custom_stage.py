"""Two custom stages: one changes the prompt, the other changes the answer while it streams.

Name them in the settings of a route, in the order in which they run:

    [routes.chat]
    stages = [
      "rag", "custom_stage:AnswerLanguage", "assemble",
      "inference", "custom_stage:Signature", "post", "stream",
    ]

Run this file to see them work with an engine that repeats the prompt: `python examples/custom_stage.py`.
"""

from __future__ import annotations

import asyncio

from scheduler.settings import EndpointSettings, RouteSettings
from scheduler.stages.base import PromptContext
from scheduler.stages.pipeline import build_pipeline
from workers.base import Completed, Piece


class AnswerLanguage:
    """Asks for an answer in the language given by `metadata["language"]`."""

    name = "answer_language"

    async def run(self, context: PromptContext) -> None:
        """Add the request to the prompt, or to the conversation as a system message."""
        language = (context.request.get("metadata") or {}).get("language")
        if not language:
            return
        wish = f"Answer in {language}."
        if context.prompt is not None:
            context.prompt = f"{context.prompt}\n\n{wish}"
        else:
            context.messages = [{"role": "system", "content": wish}, *(context.messages or ())]


class Signature:
    """Ends each answer with the name of its model. Takes the settings of its route."""

    name = "signature"

    def __init__(self, route: RouteSettings) -> None:
        self._model = route.endpoints[0].model or route.endpoints[0].backend

    def open(self, context: PromptContext) -> None:
        """Called right before inference: add a filter for this job."""
        context.filters.append(_Append(f"\n-- {self._model}"))

    async def run(self, context: PromptContext) -> None:
        """Nothing to do after inference: the post stage flushes all filters."""


class _Append:
    """A filter belongs to one job, so it may keep state between pieces of text."""

    def __init__(self, ending: str) -> None:
        self._ending = ending

    def feed(self, text: str) -> str:
        return text

    def flush(self) -> str:
        ending, self._ending = self._ending, ""
        return ending


class _Repeat:
    """Stands in for an engine."""

    name = "inference"

    async def run(self, context: PromptContext) -> None:
        for word in (context.prompt or "").split(" "):
            context.deliver(Piece(member=0, text=f"{word} "))
        context.completed = Completed(member=0, finish_reason="stop")


class _Print:
    """Stands in for publishing results."""

    name = "stream"

    async def run(self, context: PromptContext) -> None:
        print("".join(context.texts))


async def main() -> None:
    """Run one prompt through a pipeline with both stages."""
    stages = [
        "custom_stage:AnswerLanguage",
        "assemble",
        "inference",
        "custom_stage:Signature",
        "post",
        "stream",
    ]
    route = RouteSettings(endpoints=[EndpointSettings(backend="echo")], stages=stages)
    pipeline = build_pipeline("chat", route, inference=_Repeat(), stream=_Print())
    await pipeline.start()
    await pipeline.run(
        PromptContext(
            job_id="1",
            attempt=1,
            route="chat",
            tenant="default",
            priority=5,
            prompt="Why is the sky blue?",
            messages=None,
            params={},
            request={"metadata": {"language": "Danish"}},
        )
    )
    await pipeline.stop()


if __name__ == "__main__":
    asyncio.run(main())
