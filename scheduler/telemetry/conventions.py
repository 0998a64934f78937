"""Every name in the traces. OpenTelemetry's names come from the pages given beside them.

The conventions for GenAI and messaging are still in development, and the constants for them in
`opentelemetry-semantic-conventions` are not a stable API, so the names are spelled out here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

# The fields of a stored request that carry a trace.
# Source: https://www.w3.org/TR/trace-context/
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

# Source: https://opentelemetry.io/docs/specs/semconv/resource/service/
SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SERVICE_VERSION: Final = "service.version"

# Source: https://opentelemetry.io/docs/specs/semconv/general/recording-errors/
ERROR_TYPE: Final = "error.type"
ERROR_OTHER: Final = "_OTHER"

# Source: https://opentelemetry.io/docs/specs/semconv/registry/attributes/server/
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_BATCH_MESSAGE_COUNT: Final = "messaging.batch.message_count"

SYSTEM: Final = "prompt_scheduler"
SEND: Final = "send"
PROCESS: Final = "process"

# Source: https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-spans.md
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_OUTPUT_TYPE: Final = "gen_ai.output.type"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"

CHAT: Final = "chat"
TEXT_COMPLETION: Final = "text_completion"
EMBEDDINGS: Final = "embeddings"
RERANK: Final = "rerank"

GEN_AI_REQUEST_PARAMS: Final = MappingProxyType(
    {
        "max_tokens": "gen_ai.request.max_tokens",
        "temperature": "gen_ai.request.temperature",
        "top_p": "gen_ai.request.top_p",
        "top_k": "gen_ai.request.top_k",
        "seed": "gen_ai.request.seed",
        "presence_penalty": "gen_ai.request.presence_penalty",
        "frequency_penalty": "gen_ai.request.frequency_penalty",
    }
)
"""Attributes by the name of the parameter in a request. `stop` is `GEN_AI_REQUEST_STOP_SEQUENCES`, a list."""

GEN_AI_OUTPUT_TYPES: Final = MappingProxyType({"json_object": "json", "json_schema": "json", "text": "text"})
"""Output types by the `type` of a request's `response_format`."""

# A back end that OpenTelemetry does not list has its own name: vllm, llama_cpp, echo.

# Names of this package.
LANE: Final = "prompt_scheduler.lane"
PRIORITY: Final = "prompt_scheduler.priority"
TENANT: Final = "prompt_scheduler.tenant"
ATTEMPT: Final = "prompt_scheduler.attempt"
ENDPOINT: Final = "prompt_scheduler.endpoint"
OUTCOME: Final = "prompt_scheduler.outcome"
BATCH_SIZE: Final = "prompt_scheduler.batch.size"
JOB_DEDUPLICATED: Final = "prompt_scheduler.job.deduplicated"
JOB_REUSED: Final = "prompt_scheduler.job.reused"
JOBS_DEDUPLICATED: Final = "prompt_scheduler.jobs.deduplicated"
JOBS_REFUSED: Final = "prompt_scheduler.jobs.refused"

FIRST_TOKEN_EVENT: Final = "prompt_scheduler.first_token"  # noqa: S105  no password
WRITTEN_EVENT: Final = "prompt_scheduler.written"

QUEUE_WAIT_SPAN: Final = "queue wait"
STAGE_SPAN: Final = "stage "
BATCH_SPAN: Final = "batch "

# The error type of a span that ended without an error that has a code.
CANCELLED: Final = "cancelled"

SCOPE: Final = "prompt_scheduler"
"""The instrumentation scope of all spans."""
