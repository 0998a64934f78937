"""TGI's own API: `POST /generate_stream` for plain prompts, `GET /health`, `/info` and `/metrics`.

Source: https://huggingface.github.io/text-generation-inference/
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from workers import (
    Capabilities,
    Completed,
    EndpointConfig,
    Generation,
    Health,
    Load,
    Output,
    Piece,
    RequestRejected,
    TokenUsage,
    WorkerError,
    WorkerUnavailable,
)
from workers.calls import refuse_tools, whole
from workers.headers import bearer
from workers.http import HttpEndpoint
from workers.http_worker import HttpWorker
from workers.options import refuse_unknown_options
from workers.parameters import PARAMETERS, Parameters
from workers.prometheus import load_of
from workers.refusals import Refusal, error_class

_PARAMETERS = Parameters(
    "TGI",
    frozenset({"details", "do_sample"}),
    names={"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"},
    lacks=PARAMETERS
    - {
        "frequency_penalty",
        "max_completion_tokens",
        "max_tokens",
        "repetition_penalty",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_p",
    },
)
_FINISH_REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class TgiWorker(HttpWorker):
    """The adapter to one TGI server. It takes no options; `extra_body` goes into TGI's `parameters`."""

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, ())
        super().__init__(
            HttpEndpoint(config, engine="TGI", headers=bearer(config), translate=_error_class),
            model=config.model,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Plain prompts, one a call. For chats, TGI speaks OpenAI's protocol: use the backend `openai`."""
        return Capabilities(lists=False, chat=False, lacks=_PARAMETERS.lacks)

    def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Run one prompt; see `GenerationWorker.generate`."""
        (generation,) = batch
        refuse_tools(generation)
        if generation.prompt is None:
            raise RequestRejected("messages: this backend takes plain prompts; use the backend openai")
        body = {"inputs": generation.prompt, "parameters": _parameters(generation)}
        outputs = self.answers("/generate_stream", body, _Reader(), generation)
        return outputs if generation.stream else whole(outputs)

    async def health(self) -> Health:
        """Ready if the server says that it can generate."""
        try:
            await self.endpoint.get_bytes("/health")
            info = await self._info()
        except WorkerError as error:
            return Health(ready=False, detail=str(error))
        return Health(ready=True, models=tuple(name for name in (info.get("model_id"),) if name))

    async def capacity(self) -> int | None:
        """How many requests it accepts before it answers 429."""
        try:
            most = (await self._info()).get("max_concurrent_requests")
        except WorkerError:
            return None
        return most if isinstance(most, int) and most > 0 else None

    async def load(self) -> Load | None:
        """Running and waiting prompts, from its metrics."""
        return await load_of(
            self.endpoint, "/metrics", running="tgi_batch_current_size", waiting="tgi_queue_size"
        )

    async def _info(self) -> Mapping[str, Any]:
        info = await self.endpoint.get("/info")
        return info if isinstance(info, dict) else {}


class _Reader:
    """Reads the events of one answer: one token each, and the details with the last one."""

    total = 1

    def __init__(self) -> None:
        self.missing = 1
        self.head: Mapping[str, Any] = {}

    @property
    def complete(self) -> bool:
        return not self.missing

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        token = event["token"]
        said = (Piece(0, token["text"]),) if token["text"] and not token["special"] else ()
        if event.get("generated_text") is None:
            return said
        self.missing = 0
        details = event["details"]
        usage = TokenUsage(
            input_tokens=details.get("input_length"), output_tokens=details["generated_tokens"]
        )
        return (*said, Completed(0, _FINISH_REASONS[details["finish_reason"]], usage, extra=self.head))

    def finish(self) -> Sequence[Output]:
        return ()


def _parameters(generation: Generation) -> dict[str, Any]:
    """TGI refuses values without effect (a temperature of 0, a `top_p` of 1), and takes `stop` as a list."""
    parameters: dict[str, Any] = {"details": True}
    _PARAMETERS.put(parameters, generation)
    if parameters.get("temperature") == 0:
        del parameters["temperature"]
    elif "temperature" in parameters:
        parameters["do_sample"] = True
    if parameters.get("top_p") == 1:
        del parameters["top_p"]
    if isinstance(stop := parameters.get("stop"), str):
        parameters["stop"] = [stop]
    return parameters


def _error_class(refusal: Refusal) -> type[WorkerError]:
    if refusal.status == 424:  # "Request failed during generation": the engine failed, not the prompt
        return WorkerUnavailable
    return error_class(refusal)
