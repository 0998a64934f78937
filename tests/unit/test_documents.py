"""The code blocks of the README and the documentation: what can be told without running them."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from typing import Any

import pytest
import typer

from scheduler.cli.app import app
from tests.documents import PAGES, ROOT, RUNNABLE, Block, blocks, commands, matches

ALL = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {*RUNNABLE, "text", "toml", "json", "mermaid", "yaml"}


def of(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in ALL if block.language in languages]


def shell_lines() -> list[tuple[str, str]]:
    """The places and the texts of all commands of ours, run or not, in blocks and in the text."""
    found = []
    for block in ALL:
        if block.language in ("sh", "console"):
            for command, _ in commands(block):
                found += [(block.place, line) for line in command.replace("\\\n", " ").splitlines()]
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found += [(page, one) for one in re.findall(r"`(prompt-scheduler [^`]+)`", text)]
    return found


def our_commands() -> list[Any]:
    """Each command line of `prompt-scheduler`, as words without what the shell makes of them."""
    found = {}
    for place, line in shell_lines():
        for part in re.split(r"[|;&]|\$\(|(?<!\S)#|[<>]", line):
            match = re.search(r"^\s*(?:\w+=\S+ )*(?:docker compose .* )?prompt-scheduler (.*)", part)
            if match and "…" not in match[1]:
                found[match[1].strip(" )\"'")] = place
    return [pytest.param(line, id=f"{place} {line}") for line, place in found.items()]


def test_every_block_says_its_language() -> None:
    assert [block.place for block in ALL if block.language not in LANGUAGES] == []


def test_every_block_that_is_not_run_says_why() -> None:
    assert [block.place for block in ALL if block.not_run == ""] == []


@pytest.mark.parametrize("block", of("toml"))
def test_toml_can_be_read(block: Block) -> None:
    tomllib.loads(block.code)


@pytest.mark.parametrize("block", of("json"))
def test_json_can_be_read(block: Block) -> None:
    for line in block.code.splitlines():
        json.loads(line)


@pytest.mark.parametrize("block", [one for one in of("python") if one.values[0].not_run is not None])
def test_python_that_is_not_run_compiles(block: Block) -> None:
    import ast

    compile(block.code, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


@pytest.fixture(scope="module")
def program() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize("line", our_commands())
def test_commands_and_options_are_there(program: Any, line: str) -> None:
    command = program
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    options = {name for param in command.params for name in param.opts}
    while words and words[0].startswith("--") and getattr(command, "commands", None):
        assert words[0] in {*options, "--help", "--version"}, line
        words = words[2:]
    while words and (subcommands := getattr(command, "commands", None)):
        word = words.pop(0)
        assert word in subcommands, f"no command {word}"
        command = subcommands[word]
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
    assert given <= {*options, "--help"}


def test_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word
        for _, line in shell_lines()
        if line.startswith("make ")
        for word in shlex.split(line, comments=True)[1:]
        if "=" not in word
    }
    assert named
    assert named <= targets


@pytest.mark.parametrize(
    ("output", "shown", "same"),
    [("a\n", "a", True), ("a b c", "a…c", True), ("a\nb\nc\n", "a\n…\nc\n", True), ("a", "b", False)],
)
def test_output_is_compared_but_for_what_differs(output: str, shown: str, same: bool) -> None:
    assert matches(output, shown) is same
