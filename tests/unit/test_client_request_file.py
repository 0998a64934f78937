"""A file of prompts: how its lines become requests."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from scheduler.cli.enqueue_file import open_requests
from scheduler.client import request_file
from scheduler.client.request_file import RequestFile
from scheduler.errors import InvalidRequest
from scheduler.model import PromptRequest


def read(path: Path, defaults: dict[str, Any] | None = None, system: str | None = None) -> list[Any]:
    with open_requests(path, defaults or {}, system) as requests:
        count, made = requests.check(), list(requests)
    assert len(made) == count
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def test_lines_of_a_file_are_requests_with_the_options_as_defaults(path: Path) -> None:
    path.write_text(
        '"one"\n\n{"prompt": "two", "priority": 9, "params": {"seed": 1}, "metadata": {"b": 2}}\n'
        '{"messages": [{"role": "system", "content": "rhyme"}, {"role": "user", "content": "three"}]}\n'
    )
    defaults = {"priority": 3, "params": {"max_tokens": 5}, "metadata": {"a": "1"}}
    one, two, _ = read(path, defaults)
    assert (one.prompt, one.priority, one.params.max_tokens, one.metadata) == ("one", 3, 5, {"a": "1"})
    assert (two.priority, two.params.max_tokens, two.params.seed) == (9, 5, 1)
    assert two.metadata == {"a": "1", "b": 2}


def test_a_system_message_goes_before_what_has_none(path: Path) -> None:
    path.write_text(
        '"one"\n'
        '{"messages": [{"role": "system", "content": "rhyme"}, {"role": "user", "content": "two"}]}\n'
        '{"messages": [{"role": "user", "content": "three"}]}\n'
    )
    said = [[message.content for message in one.messages or ()] for one in read(path, system="be brief")]
    assert said == [["be brief", "one"], ["rhyme", "two"], ["be brief", "three"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("7", "line 2: give an object"),
        ('{"prompt": "x", "priority": 10}', "line 2: priority: "),
        ('{"prompt": "x", "colour": 1}', "line 2: colour: no such field"),
        ('"' + "x" * 100 + '"', "line 2: is longer than 64 bytes"),
    ],
)
def test_a_wrong_line_is_named(path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str) -> None:
    monkeypatch.setattr(request_file, "MAX_LINE_BYTES", 64)
    path.write_text(f'"fine"\n{line}\n"fine"\n')
    with pytest.raises(InvalidRequest, match=said):
        read(path)


def test_a_file_without_a_request_is_a_mistake(path: Path) -> None:
    path.write_text("\n\n")
    with pytest.raises(InvalidRequest, match="has no requests"):
        read(path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf"one"\r\n"two"\r\n')
    assert [one.prompt for one in read(path)] == ["one", "two"]


def test_what_comes_through_a_pipe_can_be_read_twice(path: Path) -> None:
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=('"one"\n"two"\n',))
    writer.start()
    assert [one.prompt for one in read(path)] == ["one", "two"]
    writer.join()


def test_a_request_file_is_read_from_the_start_each_time(path: Path) -> None:
    path.write_bytes(orjson.dumps("one") + b"\n")
    with path.open("rb") as lines:
        requests = RequestFile(lines, "x", {}, None)
        assert list(requests) == list(requests) == [PromptRequest(prompt="one")]
