"""What the command line makes of its arguments; nothing here reaches a server."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from redis.exceptions import AuthenticationError
from typer.testing import CliRunner

from scheduler import __main__, __version__
from scheduler.cli import app
from scheduler.cli.admin.common import confirm
from scheduler.cli.arguments import parse_duration, parse_pairs, parse_priority
from scheduler.cli.output import age
from scheduler.cli.session import Session
from scheduler.errors import (
    ConfigError,
    DedupConflict,
    InvalidRequest,
    InvalidTransition,
    JobFailed,
    JobNotFound,
    NoTicket,
    QueueFull,
    RedisUnavailable,
    ResultTimeout,
)
from scheduler.settings import CONFIG_VARIABLE

NOWHERE = "redis://127.0.0.1:1"


def invoke(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["--redis-url", NOWHERE, *arguments], input=stdin)


@pytest.mark.parametrize(
    ("text", "priority"), [("0", 0), ("9", 9), ("high", 7), ("Critical", 9), (" low ", 3)]
)
def test_priority_is_a_level_or_a_name(text: str, priority: int) -> None:
    assert parse_priority(text) == priority


@pytest.mark.parametrize("text", ["10", "-1", "urgent", "", "5.0", "\u0663"])
def test_no_priority_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"background \(1\)"):
        parse_priority(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5s", 1.5), ("2m", 120), ("500 ms", 0.5), ("1h", 3600), ("1d", 86_400)],
)
def test_duration_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "5w", "1e3", "nan"])
def test_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a prompt"),
        (["hello", "--file", "x.jsonl"], "give either a prompt"),
        (["hello", "--stream", "--no-wait"], "leave out --no-wait"),
        (["hello", "--output", "x"], "--output is for --file"),
        (["--file", "x.jsonl", "--stream"], "leave out --file"),
        (["--file", "no-such-file.jsonl"], "cannot be read"),
        (["hello", "--priority", "urgent"], "is not a priority"),
        (["hello", "--deadline", "soon"], "is not a duration"),
        (["hello", "--max-attempts", "0"], "max_attempts: "),
        (["hello", "--temperature", "-1"], "params.temperature: "),
        (["hello", "--dedup", "window"], "needs a dedup_key"),
        (["hello", "--model", "no good"], "model: "),
        (["  "], "prompt: is empty"),
        (["", "--system", "be nice"], "prompt: is empty"),
        (["hello", "--top-p", "2"], "params.top_p: "),
        (["hello", "--seed", "x"], "'--seed'"),
        (["hello", "--stop", ""], "params.stop: "),
        (["hello", "--metadata", "colour"], "give KEY=VALUE"),
        (["hello", "--session", "s" * 300], "session: "),
        (["hello", "--tenant", "no good"], "tenant: "),
        (["hello", "--job-id", "no good"], "job_id: "),
        (["hello", "--colour"], "No such option"),
    ],
)
def test_a_mistake_in_an_enqueue_is_one_line_and_exits_with_2(arguments: list[str], said: str) -> None:
    done = invoke("enqueue", *arguments)
    assert_mistake(done)
    assert said in done.stderr


@pytest.mark.parametrize("interval", ["soon", "0", "99ms", "2d", "-1"])
def test_an_interval_is_a_duration_that_makes_sense(interval: str) -> None:
    done = invoke("admin", "top", f"--interval={interval}")
    assert_mistake(done)
    assert re.search(r"a duration|100ms to 1d", done.stderr), done.stderr


def assert_mistake(done: Any) -> None:
    assert done.exit_code == 2
    assert done.stderr.startswith("prompt-scheduler: ")
    assert done.stderr.count("\n") == 1
    assert "Value error" not in done.stderr, "those are pydantic's words"
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["--no-such-option"],
        ["--redis-url", "", "admin", "queue", "status"],
        ["--redis-url", "http://x", "doctor", "--colour"],
        ["--queue", "no good", "admin", "queue", "status"],
        ["--config", "no-such-file.toml", "admin", "queue", "status"],
        ["subscribe"],
        ["admin", "jobs", "show"],
        ["admin", "jobs", "list", "--state", "asleep"],
        ["admin", "jobs", "list", "--limit", "0"],
        ["admin", "jobs", "set-priority", "x", "11"],
        ["admin", "queue", "purge", "echo", "--priority", "urgent"],
        ["admin", "dedup", "release"],
        ["worker", "--colour"],
    ],
)
def test_a_mistake_anywhere_is_one_line_and_exits_with_2(arguments: list[str]) -> None:
    assert_mistake(CliRunner().invoke(app, arguments))


def test_a_group_without_a_verb_shows_its_help() -> None:
    done = CliRunner().invoke(app, ["admin", "jobs"])
    assert done.exit_code == 2
    assert "set-priority" in done.output


def test_bytes_that_are_no_text_are_a_mistake() -> None:
    done = CliRunner().invoke(app, ["enqueue", "-"], input=b"caf\xe9")
    assert_mistake(done)
    assert "not valid UTF-8 at byte 3" in done.stderr


def test_the_file_of_the_requests_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('"one"\n')
    (tmp_path / "link").symlink_to(path)
    done = invoke("enqueue", "--file", str(path), "--output", str(tmp_path / "link"))
    assert_mistake(done)
    assert path.read_text() == '"one"\n'


def test_a_wrong_line_is_named_before_anything_is_sent_or_written(tmp_path: Path) -> None:
    path, output = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    path.write_text('"one"\n{\n')
    done = invoke("enqueue", "--file", str(path), "--output", str(output))
    assert_mistake(done)
    assert "line 2: is not JSON" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("no"), 2),
        (ConfigError("no"), 2),
        (NoTicket("no"), 2),
        (JobNotFound("no"), 2),
        (InvalidTransition("no"), 2),
        (DedupConflict("no", job_id="x"), 2),
        (QueueFull("no", retry_after_s=1), 1),
        (RedisUnavailable("no"), 1),
        (JobFailed("no", job_id="x", reason="boom"), 1),
        (ResultTimeout("no"), 1),
        (OSError(28, "no"), 1),
    ],
)
def test_exit_code_says_whose_fault_it_is(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(Session, "client", fail)
    done = invoke("admin", "workers", "list")
    assert done.exit_code == code
    said = getattr(error, "strerror", None) or error
    assert done.stderr == f"prompt-scheduler: {said}\n"


def test_pairs_are_split_at_the_first_equals_sign() -> None:
    assert parse_pairs(["a=1", "b = x=y", "c="]) == {"a": "1", "b": " x=y", "c": ""}


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_what_destroys_asks_whoever_sits_at_the_terminal(
    answer: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.cli.admin.common.is_interactive", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    if goes_on:
        confirm("Sure?", yes=False)
    else:
        with pytest.raises(typer.Abort):
            confirm("Sure?", yes=False)


def test_nobody_at_the_terminal_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(typer.BadParameter, match=r"^Sure\? .* add --yes"):
        confirm("Sure?", yes=False)
    confirm("Sure?", yes=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["admin", "queue", "status"],
        ["admin", "queue", "pause", "echo"],
        ["admin", "jobs", "list"],
        ["admin", "jobs", "show", "x"],
        ["admin", "dedup", "list"],
        ["admin", "workers", "list"],
        ["enqueue", "hello"],
        ["subscribe", "x"],
    ],
)
def test_without_redis_a_command_says_so_in_one_line_and_exits_with_1(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"prompt-scheduler: no Redis answers at {NOWHERE}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_worker_tells_what_arq_could_not_do_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULER_REDIS_URL", NOWHERE)  # the command sets it, and it is to be set back

    def refused(*arguments: Any, **options: Any) -> None:
        raise AuthenticationError("WRONGPASS invalid username-password pair")

    monkeypatch.setattr("arq.cli.cli.main", refused)
    done = CliRunner().invoke(app, ["--redis-url", "redis://:secret@127.0.0.1:1", "worker", "--check"])
    assert done.exit_code == 1
    assert done.stderr.startswith("prompt-scheduler: Redis at redis://:***@127.0.0.1:1 refused the cred")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_lane_or_all_of_them_has_to_be_named(verb: str) -> None:
    for arguments in ([], ["echo", "--all"]):
        done = invoke("admin", "queue", verb, *arguments)
        assert done.exit_code == 2
        assert "give a lane, or --all" in done.stderr


def test_wrong_settings_exit_with_2(tmp_path: Path) -> None:
    config = tmp_path / "scheduler.toml"
    config.write_text("max_wating = 3\n")
    done = invoke("--config", str(config), "admin", "queue", "status")
    assert done.exit_code == 2
    assert "did you mean max_waiting?" in done.stderr


def test_doctor_reports_wrong_settings_as_a_finding(tmp_path: Path) -> None:
    config = tmp_path / "scheduler.toml"
    config.write_text("lease_s = 'long'\n")
    done = invoke("--config", str(config), "doctor", "--json")
    assert done.exit_code == 2
    (finding,) = json.loads(done.stdout)
    assert (finding["level"], finding["subject"]) == ("fail", "settings")
    assert "lease_s" in finding["message"]


def test_version_and_help_need_nothing() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith(f"prompt-scheduler {__version__} ")
    for command in ("demo", "dev", "worker", "enqueue", "subscribe", "doctor", "admin"):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_without_the_extra_the_program_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "find_spec", lambda name: None if name == "typer" else object())
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 2
    assert "pip install 'prompt-scheduler[cli]'" in capsys.readouterr().err


def test_options_go_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULER_REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("SCHEDULER_QUEUE", "mine")
    assert Session().settings.redis_url.get_secret_value() == "redis://elsewhere"
    session = Session(redis_url=NOWHERE)
    assert (session.settings.redis_url.get_secret_value(), session.settings.queue) == (NOWHERE, "mine")
    environ: dict[str, str] = {}
    Session(redis_url=NOWHERE, config=Path("a.toml")).export(environ)
    assert environ == {"SCHEDULER_REDIS_URL": NOWHERE, CONFIG_VARIABLE: "a.toml"}


def test_a_private_embedded_server_cannot_be_reached_from_another_process() -> None:
    with pytest.raises(ConfigError, match="data_dir"):
        _ = Session(redis_url="embedded").server_url


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (4.21, "4.2 s"),
        (75, "75 s"),
        (600, "10 min"),
        (12_600, "3.5 h"),
        (1e6, "11.6 d"),
    ],
)
def test_ages_have_two_figures(seconds: float | None, said: str) -> None:
    assert age(seconds) == said
