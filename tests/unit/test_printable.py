"""Text from elsewhere, before it is shown."""

from __future__ import annotations

import ast
import io
import unicodedata
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from scheduler.cli.output import CleanConsole
from scheduler.printable import json_text, one_line, paragraphs

CLI = Path(__file__).parents[2] / "scheduler" / "cli"
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ANY = st.text(st.characters() | st.sampled_from("\x1b\x9b\x7f\r\n\u202e\u2066\u200b\ud800\U000e0041[]/"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 漢字 and 👍🏽", "plain, ünïcode, 漢字 and 👍🏽"),
        ("\x1b[2J\x1b]0;title\x07\x9b31m\x7f", r"\x1b[2J\x1b]0;title\x07\x9b31m\x7f"),
        ("one\r\ntwo\ttab\u2028three", r"one\r\ntwo\ttab\u2028three"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("ad\u200bmin\u200d and \ufeff", r"ad\u200bmin\u200d and \ufeff"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
        ("👨\u200d👩 and क्\u200dष", "👨\u200d👩 and क्\u200dष"),
    ],
)
def test_what_commands_or_deceives_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_an_answer_keeps_its_lines_and_what_its_script_needs() -> None:
    assert paragraphs("a\n\tb क्\u200dष 👨\u200d👩 \u200f") == "a\n\tb क्\u200dष 👨\u200d👩 \u200f"
    assert paragraphs("one\r\ntwo\r\n") == "one\ntwo\n"
    assert paragraphs("a\r\x1b[2J\u202eb\u2069\x9b\ud800") == r"a\r\x1b[2J\u202eb\u2069\x9b\ud800"


@given(ANY)
def test_no_control_and_no_override_is_left_in_any_text(text: str) -> None:
    left = {character for character in one_line(text) if unicodedata.category(character) in ("Cc", "Cs")}
    assert left == set()
    assert not set(one_line(text)) & set(BIDI)
    assert not {unicodedata.category(one) for one in paragraphs(text)} & {"Cs"}
    assert {one for one in paragraphs(text) if unicodedata.category(one) == "Cc"} <= {"\n", "\t"}


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x1b\x9b\x7f\u202e\U000e0041")))
def test_json_is_the_same_value_without_such_characters(text: str) -> None:
    document = json_text(orjson.dumps({"text": text}, option=orjson.OPT_INDENT_2))
    assert orjson.loads(document) == {"text": text}
    said = document.decode()
    assert not {one for one in said if unicodedata.category(one) == "Cc"} - {"\n"}
    assert not set(said) & set(BIDI)


def test_a_console_takes_text_as_text() -> None:
    file = io.StringIO()
    shown = CleanConsole(file=file, width=60, force_terminal=True, color_system=None)
    hostile = "[red]x[/red] :smile: [link=http://evil]y[/link]\n\x1b]0;z\x07"
    table = Table(box=None)
    table.add_column("[bold]head[/bold]")
    table.add_row(hostile)
    table.add_row(Text("\x9b31m"))
    shown.print(hostile)
    shown.print(table)
    shown.print(Text("two\nlines"))
    said = file.getvalue()
    assert "\x1b" not in said
    assert "\x9b" not in said
    assert "\\x1b]0;z\\x07" in said.replace("\n", "").replace(" ", "") or "\\x1b" in said
    assert "[red]x[/red] :smile:" in said
    assert "[bold]head[/bold]" in said
    assert "two\nlines\n" in said


@pytest.mark.parametrize("path", sorted(CLI.rglob("*.py")), ids=lambda path: str(path.relative_to(CLI)))
def test_commands_print_through_one_place(path: Path) -> None:
    if path == CLI / "output.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    others = {
        "typer.echo",
        "typer.secho",
        "click.echo",
        "print",
        "Console",
        "sys.stdout.write",
        "sys.stderr.write",
    }
    assert calls & others == set()
