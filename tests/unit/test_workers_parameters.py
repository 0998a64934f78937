"""What an API takes goes out by its names; what it lacks is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.model import GenerationParams
from workers import Generation, RequestRejected, UnsupportedParameter
from workers.parameters import CHAT_ONLY, LABELS, PARAMETERS, PLAIN_ONLY, PROVIDERS_ONLY, Parameters

CHAT = Parameters("An API", frozenset({"model"}), is_chat=True, names={"max_tokens": "n_predict"})
PLAIN = Parameters("An API", frozenset({"model"}))
POOR = Parameters(
    "An API",
    frozenset({"model"}),
    lacks=frozenset({"best_of", "n", "store", "logprobs", "modalities"}),
    instead={"guided_json": "give response_format"},
)


def put(parameters: Parameters, params: dict[str, Any], extra_body: dict[str, Any] | None = None) -> Any:
    body: dict[str, Any] = {"model": "m"}
    parameters.put(body, Generation("m", params=params, extra_body=extra_body or {}))
    return body


def test_the_names_are_those_of_requests() -> None:
    assert set(GenerationParams.model_fields) == PARAMETERS
    assert PLAIN_ONLY | CHAT_ONLY | LABELS | PROVIDERS_ONLY <= PARAMETERS


def test_parameters_go_under_the_apis_names_and_extra_body_goes_last() -> None:
    body = put(CHAT, {"max_tokens": 7, "seed": 1}, {"seed": 2, "n": 1, "anything": {"b": 1, "a": 2}})
    assert body == {"model": "m", "n_predict": 7, "seed": 2, "n": 1, "anything": {"b": 1, "a": 2}}
    assert list(body["anything"]) == ["b", "a"]


@pytest.mark.parametrize("params", [{"n": 2}, {"store": True}, {"logprobs": 0}, {"modalities": ["audio"]}])
def test_what_an_api_lacks_is_refused_by_name(params: dict[str, Any]) -> None:
    (name,) = params
    with pytest.raises(UnsupportedParameter, match=rf"params\.{name}: An API has no such parameter"):
        put(POOR, params)


def test_what_every_api_does_anyway_is_left_out_where_an_api_lacks_it() -> None:
    asked = {"n": 1, "best_of": 1, "store": False, "logprobs": False, "modalities": ["text"]}
    assert put(POOR, asked) == {"model": "m"}
    assert put(PLAIN, {"n": 1, "store": False}) == {"model": "m", "n": 1, "store": False}


@pytest.mark.parametrize(
    "extra", [{"model": "other"}, {"n": 2}, {"n": "1"}, {"guided_json": {}}, {"guided_json": 1}]
)
def test_extra_body_that_must_not_be_is_named(extra: dict[str, Any]) -> None:
    with pytest.raises(RequestRejected, match=rf"extra_body\.{next(iter(extra))}"):
        put(POOR, {}, extra)


@pytest.mark.parametrize(
    ("asked", "of_a_chat", "of_a_completion"),
    [
        ({"logprobs": True}, {"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": 0}, {"logprobs": True, "top_logprobs": 0}, {"logprobs": 0}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}, {"logprobs": 2}),
        ({"logprobs": False}, {"logprobs": False}, {}),
        ({}, {}, {}),
    ],
)
def test_log_probabilities_are_asked_for_in_the_form_of_the_call(
    asked: dict[str, Any], of_a_chat: dict[str, Any], of_a_completion: dict[str, Any]
) -> None:
    assert put(CHAT, asked) == {"model": "m", **of_a_chat}
    assert put(PLAIN, asked) == {"model": "m", **of_a_completion}
