"""The rules on who may import whom, where keys are spelled, and what an import may do."""

from __future__ import annotations

import ast
import io
import re
import socket
import subprocess
import sys
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from tokenize import COMMENT

import pytest
from pytest_socket import SocketConnectBlockedError

ROOT = Path(__file__).parents[2]
SCHEDULER = ROOT / "scheduler"
WORKERS = ROOT / "workers"
LUA = SCHEDULER / "queue" / "lua"

# From the bottom up, with the reason why it stands there: a part may import the parts of the rows above its
# own; of its own row only itself and what `WITHIN` says.
LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "the words that all share, Redis servers, and the process's HTTP server: they need nothing of ours",
        frozenset(
            {
                "arq_jobs",
                "backoff",
                "coalescer",
                "errors",
                "events",
                "http_server",
                "logs",
                "mistakes",
                "model",
                "payload",
                "printable",
                "redis_server",
                "settings",
            }
        ),
    ),
    (
        "what is stored, what is published, and what shares a call",
        frozenset({"queue", "results", "batching"}),
    ),
    ("what the parts below report to observers", frozenset({"observations"})),
    ("endpoints, for every stage that calls one", frozenset({"routing"})),
    ("what happens to one prompt", frozenset({"stages"})),
    ("runs stages for what it claims", frozenset({"engine"})),
    ("observes engines; its traces begin in the client", frozenset({"telemetry"})),
    ("enqueues and reads results", frozenset({"client"})),
    ("runs an engine and its telemetry under arq", frozenset({"host"})),
    ("for operators, and for users' tests", frozenset({"admin", "testing"})),
    ("the command line: all of the above", frozenset({"cli", "__main__"})),
)
# The ground floor has an order of its own, from the bottom up; and results are read from the queue.
WITHIN = {
    "arq_jobs": {"errors"},
    "model": {"errors", "mistakes"},
    "events": {"errors", "model"},
    "payload": {"errors", "model"},
    "http_server": {"errors"},
    "redis_server": {"errors"},
    "settings": {"errors", "mistakes", "model", "redis_server"},
    "logs": {"printable"},
    "results": {"queue"},
    "__main__": {"cli"},
}
ALL = frozenset[str]().union(*(layer for _, layer in LAYERS))


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


OURS_THAT_RUNS = (*modules(SCHEDULER), *modules(WORKERS))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a module imports, anywhere in it; those only for type checkers included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def part(path: Path) -> str:
    """The part of the scheduler that a file belongs to."""
    return path.relative_to(SCHEDULER).parts[0].removesuffix(".py")


def allowed(name: str) -> set[str]:
    row = next(i for i, (_, layer) in enumerate(LAYERS) if name in layer)
    return {name} | WITHIN.get(name, set()) | set[str]().union(*(layer for _, layer in LAYERS[:row]))


def top_levels(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def breaches(paths: Iterable[Path], banned: Callable[[Path], Iterable[str]]) -> dict[str, list[str]]:
    """What each of some files has that it may not have; files that have nothing of it are left out."""
    found = {relative(path): sorted(banned(path)) for path in paths}
    return {path: names for path, names in found.items() if names}


def test_every_part_of_the_scheduler_has_its_layer() -> None:
    parts = {part(path) for path in modules(SCHEDULER)} - {"__init__"}
    assert parts == ALL


def test_imports_in_the_scheduler_point_one_way() -> None:
    def upward(path: Path) -> set[str]:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("scheduler.")}
        return (used & ALL) - allowed(part(path))

    paths = [path for path in modules(SCHEDULER) if part(path) != "__init__"]
    assert breaches(paths, upward) == {}


def test_workers_know_nothing_of_the_scheduler() -> None:
    banned = {"scheduler", "redis", "arq", "valkey"}
    assert breaches(modules(WORKERS), lambda path: top_levels(path) & banned) == {}


@pytest.mark.parametrize("path", modules(ROOT / "_prompt_scheduler"), ids=relative)
def test_entry_points_import_nothing_of_ours_before_they_have_looked_whose_it_is(path: Path) -> None:
    at_import = {
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    ours = {name for name in at_import if name.split(".")[0] == "_prompt_scheduler"}
    assert ours <= {"_prompt_scheduler.names"}
    assert {name.split(".")[0] for name in at_import - ours} <= sys.stdlib_module_names | {"pytest"}


def test_arq_is_known_to_the_worker_process_alone() -> None:
    paths = [path for path in modules(SCHEDULER) if part(path) not in {"host", "cli", "testing"}]
    assert breaches(paths, lambda path: top_levels(path) & {"arq"}) == {}


def test_core_never_imports_metrics() -> None:
    paths = [path for path in OURS_THAT_RUNS if not path.is_relative_to(SCHEDULER / "telemetry")]
    banned = {"prometheus_client", "opentelemetry"}
    assert breaches(paths, lambda path: top_levels(path) & banned) == {}


def test_one_module_listens_for_http() -> None:
    using = [relative(path) for path in OURS_THAT_RUNS if "uvicorn" in top_levels(path)]
    assert using == ["scheduler/http_server.py"]


def test_batching_does_no_input_or_output() -> None:
    banned = {"redis", "httpx", "socket"}
    assert breaches(modules(SCHEDULER / "batching"), lambda path: top_levels(path) & banned) == {}


def test_keys_are_spelled_in_one_file() -> None:
    spelling = [
        relative(path)
        for path in (*modules(SCHEDULER), *sorted(LUA.rglob("*.lua")))
        if re.search(r"""["']ps:""", path.read_text(encoding="utf-8"))
    ]
    assert spelling == ["scheduler/queue/keys.py"]


# A call site is named after its script, but for what callers know under another name.
CALLED_BY = {"replay": "replay_many", "reprioritize": "set_priority", "tend": "tick"}


def scripts() -> list[str]:
    return sorted(path.stem for path in LUA.glob("*.lua"))


@pytest.mark.parametrize("name", scripts())
def test_script_says_what_it_does_takes_and_returns(name: str) -> None:
    lines = (LUA / f"{name}.lua").read_text(encoding="utf-8").splitlines()
    start = 1 if lines[0].startswith("#!lua") else 0
    end = next(i for i, line in enumerate(lines) if i >= start and not line.startswith("--"))
    header = "\n".join(lines[start:end])
    assert header, "it opens with a comment"
    assert "KEYS[1]" in header or "ARGV" in header
    assert re.search(r"\breturns?\b", header, re.IGNORECASE)


@cache
def texts_of_functions() -> dict[str, list[tuple[str, str]]]:
    """Where each string stands in the functions of the queue: the file and the function."""
    sites: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in modules(SCHEDULER / "queue"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        sites[node.value].append((relative(path), function.name))
    return sites


@pytest.mark.parametrize("name", scripts())
def test_script_has_one_call_site_of_its_name(name: str) -> None:
    sites = texts_of_functions()[name]
    assert [function.lstrip("_") for _, function in sites] == [CALLED_BY.get(name, name)], sites


def test_include_in_every_script_can_be_found() -> None:
    for path in LUA.rglob("*.lua"):
        for included in re.findall(
            r'^-- @include "([\w/]+)"', path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert (LUA / f"{included}.lua").exists(), f"{relative(path)} includes {included}"


PROGRAM = """
import os, socket, subprocess, sys

def refused(*args, **kwargs):
    raise AssertionError("an import must not do this")

class Environment(type(os.environ)):
    def __getitem__(self, key):
        if key.startswith("SCHEDULER_") or key == "REDIS_URL":
            refused()
        return super().__getitem__(key)

os.environ.__class__ = Environment
socket.socket.connect = socket.getaddrinfo = subprocess.Popen.__init__ = refused
import {module}
loaded = {{name.split(".")[0] for name in sys.modules}}
print(*sorted(loaded))
"""


def import_alone(module: str) -> set[str]:
    """Import where reading settings and reaching out fail; the packages that a fresh interpreter loaded."""
    path = f"import sys\nsys.path[:0] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", path + PROGRAM.format(module=module)],
        capture_output=True,
        text=True,
        env={"SCHEDULER_LEASE_S": "not a number", "REDIS_URL": "nonsense", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_nothing_is_read_that_could_run_code() -> None:
    """No pickle anywhere: whoever can write to Redis must not be able to run code in a worker process."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
    assert breaches(OURS_THAT_RUNS, lambda path: top_levels(path) & banned) == {}


IGNORED_WITH_REASON = re.compile(r"# (noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*  |type: ignore\[[a-z, -]+\]  # )\S")
OURS = ("scheduler", "workers", "_prompt_scheduler", "benchmarks", "tests", "docs", "examples", "deploy")


def test_each_check_that_is_ignored_has_its_reason() -> None:
    paths = [path for folder in OURS for path in modules(ROOT / folder)]
    assert breaches(paths, ignored_without_reason) == {}


def ignored_without_reason(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if "# noqa" not in text and "# type: ignore" not in text:
        return []
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == COMMENT]
    ignored = [comment for comment in comments if re.match(r"# (noqa|type: ignore)", comment)]
    return [comment for comment in ignored if not IGNORED_WITH_REASON.match(comment)]


def undocumented(path: Path) -> Iterator[str]:
    """Fields of models, dataclasses and enumerations that no string literal follows."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign | ast.Assign) and not is_literal(following):
                target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                if isinstance(target, ast.Name) and target.id not in {"model_config"}:
                    yield f"{node.name}.{target.id}"


def is_literal(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_each_field_of_a_public_model_is_documented() -> None:
    reports = SCHEDULER / "queue" / "reports.py"
    paths = [*modules(SCHEDULER / "model"), *modules(SCHEDULER / "settings"), reports]
    assert breaches(paths, undocumented) == {}


def test_import_reads_no_settings_and_opens_no_connection() -> None:
    assert "redis" in import_alone("scheduler"), "the client needs it"


@pytest.mark.parametrize(
    "package",
    ["arq", "typer", "rich", "uvloop", "bm25s", "jinja2", "numpy", "fakeredis", "opentelemetry"],
)
def test_import_of_the_client_does_not_load(package: str) -> None:
    assert package not in imported_by_the_client()


@cache
def imported_by_the_client() -> frozenset[str]:
    return frozenset(import_alone("scheduler"))


def test_tests_reach_nothing_beyond_loopback() -> None:
    # pytest-socket warns as well as raises, and warnings are errors here
    with (
        socket.socket() as connection,
        pytest.raises((SocketConnectBlockedError, UserWarning), match=r"192\.0\.2\.1"),
    ):
        connection.connect(("192.0.2.1", 80))


def test_supervisor_needs_the_standard_library_alone() -> None:
    assert top_levels(SCHEDULER / "redis_server" / "supervisor.py") <= sys.stdlib_module_names


def dependencies() -> list[str]:
    """Every package that pyproject.toml names."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = list(document["project"]["dependencies"])
    for named in (document["project"]["optional-dependencies"], document["dependency-groups"]):
        for entries in named.values():
            listed.extend(entry for entry in entries if isinstance(entry, str))
    names = {re.split(r"[\[<>=!~; ]", entry)[0] for entry in listed}
    return sorted(names - {"prompt-scheduler"})


def test_document_says_why_each_dependency_is_there_and_names_none_that_is_gone() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = [re.match(r"\| (?:`\w+` \| )?`([\w-]+)(?:\[\w+\])?` \|", row) for row in rows]
    assert {match[1] for match in named if match} == set(dependencies())
