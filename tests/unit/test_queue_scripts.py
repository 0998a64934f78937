"""The text of the scripts, and the keys they spell."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from scheduler.model import URGENT
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.job_info import FIELDS, HISTORY
from scheduler.queue.keys import Keys, lua_keys
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import NewJob
from scheduler.queue.rows import ROWS, in_order, row_numbers
from scheduler.queue.scripts import NAMES, source
from scheduler.queue.shared import FORMAT, lua_constants
from scheduler.queue.stored_settings import defaults, queue_settings
from scheduler.redis_server.connection import open_redis
from scheduler.settings import Settings

LUA = resources.files("scheduler.queue").joinpath("lua")


def test_every_lua_file_is_a_script_with_a_call_site() -> None:
    files = {file.name.removesuffix(".lua") for file in LUA.iterdir() if file.name.endswith(".lua")}
    assert files == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_whole(name: str) -> None:
    text = source(name)
    assert text.startswith("#!lua")
    assert "@include" not in text
    assert "@row" not in text
    assert "KEYS[2]" not in text


@pytest.mark.parametrize("name", NAMES)
def test_without_flags_the_first_line_is_left_out(name: str) -> None:
    assert "#!" not in source(name, flags=False)
    assert source(name).endswith(source(name, flags=False))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "enqueue"])
def test_all_but_enqueue_work_without_memory(name: str) -> None:
    assert re.match(r"#!lua flags=(allow-oom|no-writes)\n", source(name))


def test_enqueue_is_refused_without_memory() -> None:
    assert source("enqueue").startswith("#!lua\n")


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_spelled_only_in_python(name: str) -> None:
    body = LUA.joinpath(f"{name}.lua").read_text(encoding="utf-8")
    assert "prefix .." not in body
    assert "prefix .." not in body


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_never_written_by_tostring(name: str) -> None:
    assert "tostring" not in source(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_makes_no_function_for_nothing(name: str) -> None:
    text = re.sub(r"--.*", "", source(name))
    defined = re.findall(r"^local function (\w+)", text, re.MULTILINE)
    assert {one for one in defined if len(re.findall(rf"\b{one}\b", text)) == 1} == set()


def test_a_script_has_a_number_for_each_field_of_each_row() -> None:
    numbers = row_numbers()
    assert numbers["NEW_JOB_ID"] == 0
    assert numbers["NEW_PRIORITY"] == NewJob._fields.index("priority")
    assert numbers["NEW_WIDTH"] == len(NewJob._fields)


def test_a_script_knows_what_python_and_lua_share() -> None:
    lines = lua_constants().splitlines()
    assert f"local FORMAT = {FORMAT}" in lines
    assert f"local URGENT = {URGENT}" in lines
    assert "local DEFAULT_AGING_MS = 30000" in lines
    assert "local DEFAULT_WHEN_FULL = 'reject'" in lines


def test_defaults_are_what_a_worker_process_without_settings_publishes() -> None:
    assert queue_settings(Settings()) == defaults()


def test_the_fields_of_a_marked_table_come_into_the_order_of_their_row() -> None:
    names = list(ROWS["claimed"])
    lines = "".join(f"    {name} = f({name}, 'a = b'),\n" for name in reversed(names))
    script = in_order(f'  -- @row "claimed"\n  return {{\n{lines}  }}\nend')
    assert script == "".join(("  return {\n", *(f"    f({name}, 'a = b'),\n" for name in names), "  }\nend"))


def test_a_marked_table_with_other_fields_than_its_row_is_refused() -> None:
    with pytest.raises(ValueError, match="'wanted' with other fields"):
        in_order('-- @row "wanted"\nlocal row = {\n  lane = lane,\n}')


def test_a_script_has_its_keys_spelled_out_where_it_uses_them() -> None:
    text = lua_keys("f(record_key(tickets[i]), meta_key) other_key(1) level_key('a', 1)")
    assert text.endswith(
        "\nf((prefix .. 'j:' .. tickets[i]), (prefix .. 'meta')) other_key(1) level_key('a', 1)"
    )
    assert re.findall(r"local function (\w+)", text) == ["level_key"]


@pytest.mark.parametrize("wrong", ["{ record_key }", "meta_key(id)"])
def test_a_key_of_the_wrong_kind_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="give a job's key its id"):
        lua_keys(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_no_script_names_a_key_that_is_not_spelled_out(name: str) -> None:
    assert set(re.findall(r"\b\w+_key\b", re.sub(r"--.*", "", source(name)))) <= {"level_key", "dedup_key"}


@pytest.mark.parametrize(
    ("url", "db"),
    [
        ("redis://host", 0),
        ("redis://host/0", 0),
        ("redis://host:6379/2", 2),
        ("redis://host?db=3", 3),
        ("rediss://user:secret@host/4", 4),
        ("unix:///run/redis.sock", 0),
        ("unix:///run/redis.sock?db=5", 5),
        ("redis+sentinel://one,two/service", 0),
        ("redis+sentinel://one,two/service/6", 6),
    ],
)
def test_channels_carry_the_database_that_the_url_names(url: str, db: int) -> None:
    queue = PromptQueue(open_redis(url), "q")
    assert queue.channel("a") == f"ps:{{q}}:{db}:ch:a"
    assert queue.control_channel == f"ps:{{q}}:{db}:ctl"


def test_scripts_publish_where_their_database_is_heard() -> None:
    text = source("cancel", db=7)
    assert "prefix .. '7:ch:'" in text
    assert "prefix .. '7:ctl'" in text


@pytest.mark.parametrize("tenant", ["default", "acme", "a:b", "x/y@z"])
def test_a_dedup_key_can_be_taken_apart(tenant: str) -> None:
    keys = Keys("q")
    assert keys.split_dedup(keys.dedup(tenant, dedup_hash("K"))) == (tenant, dedup_hash("K"))


def test_dedup_keys_of_different_tenants_differ() -> None:
    keys = Keys("q")
    assert len({keys.dedup(tenant, "h") for tenant in ("default", "a", "b")}) == 3


def test_a_dedup_hash_is_short_whatever_the_key() -> None:
    assert {len(dedup_hash(key)) for key in ("", "sky", "x" * 10_000, "é")} == {20}
    assert dedup_hash("sky") != dedup_hash("sea")


def test_the_fields_of_a_record_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## What is stored")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w)` \|", section, re.MULTILINE)
    assert len(documented) == len(set(documented))
    text = re.sub(r"--.*", "", "".join(source(name) for name in NAMES))
    used = set(re.findall(r"\brec\.(\w)\b|'(\w)'", text))
    assert {name for pair in used for name in pair if name.isalpha()} == set(documented)
    assert {*FIELDS, HISTORY} <= set(documented)
