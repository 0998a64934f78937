"""Fragments of tool calls, as servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from workers.tool_calls import ToolCalls


def said(
    name: str | None = None, arguments: Any = None, *, index: Any = None, call: Any = None, **more: Any
) -> dict[str, Any]:
    """A fragment as a server sends it, without what is not given."""
    function = {"name": name, "arguments": arguments}
    fields = {"index": index, "id": call, "function": {k: v for k, v in function.items() if v is not None}}
    return {**{k: v for k, v in fields.items() if v is not None}, **more}


def put_together(*events: Any, cut: bool = False) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each call, as a client joins OpenAI's fragments: by index, text appended."""
    reader = ToolCalls()
    fragments = [fragment for event in events for fragment in reader.read(event)]
    calls: dict[int, list[str]] = {}
    for fragment in [*fragments, *reader.finish(cut=cut)]:
        call = calls.setdefault(fragment["index"], ["", "", ""])
        function = fragment.get("function", {})
        call[0] = fragment.get("id") or call[0]
        call[1] += function.get("name", "")
        call[2] += function.get("arguments", "")
    assert sorted(calls) == list(range(len(calls)))
    return [(call[0], call[1], call[2]) for call in calls.values()]


F = ("a", "f", '{"x":1}')
G = ("b", "g", '{"y":2}')


@pytest.mark.parametrize(
    "events",
    [
        [[said("f", "", index=0, call="a")], [said(None, '{"x"', index=0)], [said(None, ":1}", index=0)]],
        [[said("f", "", call="a")], [said(None, '{"x"')], [said(None, ":1}")]],
        [[said("f", '{"x"', index=0, call="a")], [said("f", ":1}", index=0, call="a")]],
        [[said("f", '{"x"', index=0, call="a")], [said("f", ":1}", index=0)]],
        [[said("f", '{"x"', index=0, call="a")], [said("", ":1}", index=0, call="")]],
        [[said("f", '{"x"', index=0, call="a")], [said(None, ":1}", index=0, call="z1")]],
        [[said("f", '{"x"', call="a")], [said(None, ":1}", call="a")]],
        [[said("f", '{"x"', index=0)], [said(None, ":1}", index=0)], [said(None, "", index=0, call="a")]],
        [[said("f", '{"x"', index=0)], [said("f", ":1}", index=0, call="a")]],
        [[said("f", '{"x"', index=0, call="a")], [said(None, ":1}", index=1)]],
        [[said("f", {"x": 1}, index=0, call="a")]],
        [[said("f", "", index=0, call="a")], [said(None, {"x": 1}, index=0)]],
        [[said("f", "{}", index=0, call="a")], [said(None, '{"x":1}', index=0)]],
        [[said("f", {}, index=0, call="a")], [said("f", '{"x":1}', index=0, call="a")]],
        [[said("f", '{"x":1}', index=0, call="a")], [said("f", '{"x":1}', index=0, call="a")]],
        [[said("f", '{"x":1}', index=0, call="a")], [said("f", "", index=0, call="a")]],
        [[said("f", '{"x":1}', index=0, call="a")], [said(None, None, index=0, call="z1")]],
        [said("f", '{"x":1}', call="a")],
        [[{"id": "a", "name": "f", "arguments": '{"x":1}'}]],
        [[None, said("f", '{"x":1}', call="a")]],
        [[said(None, None, index=0, call="a")], [said("f", None, index=0)], [said(None, '{"x":1}', index=0)]],
        [[said("f", '{"x":1}', index="0", call="a")]],
        [[said("f", '{"x":1}', index=0, call="a")], [said("f", '{"x":1}', call="a")]],
        [[said("f", '{"x"', index=0, call="a"), said("f", ":1}", index=0)]],
        [[said("f", '{"x"', index=True, call="a")], [said(None, ":1}", index=False)]],
        [[said("f", '{"x":1}', index=3, call="a")]],
    ],
)
def test_one_call_is_one_however_it_comes(events: list[Any]) -> None:
    assert put_together(*events) == [F]


@pytest.mark.parametrize(
    "events",
    [
        [[said("f", '{"x":1}', index=0, call="a"), said("g", '{"y":2}', index=1, call="b")]],
        [[said("f", '{"x":1}', index=0, call="a"), said("g", '{"y":2}', index=0, call="b")]],
        [[said("f", '{"x":1}', call="a"), said("g", '{"y":2}', call="b")]],
        [[said("f", '{"x":1}', call="a")], [said("g", '{"y":2}', call="b")]],
        [
            [said("f", "", index=0, call="a"), said("g", "", index=1, call="b")],
            [said(None, '{"x"', index=0), said(None, '{"y"', index=1)],
            [said(None, ":2}", index=1), said(None, ":1}", index=0)],
        ],
        [
            [said("f", '{"x"', index=0, call="a")],
            [said("g", '{"y"', index=0, call="b")],
            [said(None, ":1}", index=0, call="a")],
            [said(None, ":2}", index=0, call="b")],
        ],
        [
            [said("f", "", index=0, call="a")],
            [said(None, '{"x":1}', index=0)],
            [said("g", "", index=0, call="b")],
            [said(None, '{"y":2}', index=0)],
        ],
        [[said("f", '{"x":1}', index=0, call="a")], [said(None, None, call="b")], [said("g", '{"y":2}')]],
    ],
)
def test_parallel_calls_are_told_apart(events: list[Any]) -> None:
    assert put_together(*events) == [F, G]


@pytest.mark.parametrize("index", [None, 0])
def test_whole_calls_without_ids_are_calls_of_their_own(index: int | None) -> None:
    first, second = said("f", '{"x":1}', index=index), said("f", '{"x":2}', index=index)
    expected = [("", "f", '{"x":1}'), ("", "f", '{"x":2}')]
    assert put_together([first, second]) == expected
    assert put_together([first], [second]) == expected
    assert len(put_together([first, first])) == 2
    assert len(put_together([first], [said("g", '{"x":1}', index=index)])) == 2


def test_call_without_arguments_is_followed_by_another() -> None:
    assert put_together([said("f", "")], [said("g", '{"y":2}')]) == [("", "f", "{}"), ("", "g", '{"y":2}')]


def test_name_in_pieces_may_end_with_the_first_of_the_arguments() -> None:
    assert put_together([said("get_", "")], [said("weather", '{"x"')], [said(None, ":1}")]) == [
        ("", "get_weather", '{"x":1}')
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (said("f", '{"x":1}', call="a"), said("g", '{"x":1}', call="a")),
        (said("f", '{"x":1}', call="a"), said("f", '{"x":2}', call="a")),
        (said("f", '{"x":1}', index=0, call="a"), said("f", '{"x":1}', index=1, call="a")),
        (said("f", "{}", index=0, call="a"), said("f", "{}", index=1, call="a")),
    ],
)
def test_whole_calls_of_one_id_are_two_where_anything_differs(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert len(put_together([first], [second])) == 2
    assert len(put_together([first, second])) == 2


def test_one_id_for_two_calls_makes_them_no_single_one() -> None:
    first, second = said("f", '{"x":1}', index=0, call="a"), said("g", '{"y":2}', index=1, call="a")
    assert put_together([first, second]) == [F, ("a", "g", '{"y":2}')]
    assert put_together([{**first, "index": 0}], [{**second, "index": 0}]) == [F, ("a", "g", '{"y":2}')]


@pytest.mark.parametrize("names", [["get_", "weather"], ["get_", "get_weather"], ["get_weather"] * 3])
@pytest.mark.parametrize("call", [None, "a"])
def test_name_in_pieces_is_put_together_and_a_repeated_one_is_not(names: list[str], call: str | None) -> None:
    events = [[said(name, "", index=0, call=call)] for name in names]
    assert put_together(*events, [said(None, "{}", index=0)]) == [(call or "", "get_weather", "{}")]


@pytest.mark.parametrize("arguments", [None, "", " ", "{}", {}, "null"])
def test_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    assert put_together([said("f", arguments, index=0, call="a")]) == [("a", "f", "{}")]


@pytest.mark.parametrize(("arguments", "left"), [(None, ""), ("", ""), ("{}", "{}")])
def test_cut_answer_gives_a_call_no_arguments_that_it_did_not_have(arguments: Any, left: str) -> None:
    assert put_together([said("f", arguments, call="a")], cut=True) == [("a", "f", left)]


@pytest.mark.parametrize(("arguments", "text"), [([1, 2], "[1,2]"), (5, "5"), ({"x": "ü"}, '{"x":"ü"}')])
def test_arguments_that_are_no_text_are_its_json(arguments: Any, text: str) -> None:
    assert put_together([said("f", arguments, call="a")]) == [("a", "f", text)]


def test_half_a_character_and_a_large_number_in_an_object_do_not_end_the_answer() -> None:
    (merged,) = put_together([said("f", {"x": "\ud83d", "n": 2**70}, call="a")])
    assert merged[2] == '{"x": "\ud83d", "n": 1180591620717411303424}'


def test_what_servers_add_to_a_call_is_kept() -> None:
    signed = said("f", "{}", call="a", extra_content={"google": {"thought_signature": "s"}})
    (fragment,) = ToolCalls().read([signed])
    assert fragment["extra_content"] == {"google": {"thought_signature": "s"}}
    custom = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}}
    reader = ToolCalls()
    assert reader.read([custom]) == (custom,)
    assert reader.finish(cut=False) == ()


def test_id_and_name_of_another_type_become_text() -> None:
    assert put_together([{"id": 7, "function": {"name": 5, "arguments": "{}"}}]) == [("7", "5", "{}")]


@pytest.mark.parametrize("garbage", [["f"], [5], 5])
def test_call_that_is_no_object_is_garbage(garbage: Any) -> None:
    with pytest.raises(TypeError):
        ToolCalls().read(garbage)
