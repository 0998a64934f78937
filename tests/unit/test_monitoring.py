"""The dashboard, the rules and what docs say of metrics: each names what is exported, and nothing else."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from scheduler.cli import app
from scheduler.queue.keys import Keys
from scheduler.telemetry import catalogue
from scheduler.telemetry.catalogue import Kind

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

TARGET = {"job", "instance"}
"""Labels that Prometheus gives to whatever it scrapes."""

COUNTED = ("_bucket", "_sum", "_count", "_total")
OF_COUNTERS = {"rate", "increase", "irate", "resets"}


def exported() -> dict[str, set[str]]:
    """The labels of every series that a worker process exports, by name."""
    names = {"up": TARGET}
    for spec in catalogue.ALL:
        labels = TARGET | set(spec.labels)
        if spec.kind is Kind.HISTOGRAM:
            names |= {spec.exported + suffix: labels for suffix in ("_sum", "_count")}
            names[f"{spec.exported}_bucket"] = labels | {"le"}
        else:
            names[spec.exported] = labels
    registry = CollectorRegistry()
    for made in (ProcessCollector, PlatformCollector, GCCollector):
        made(registry=registry)
    for family in registry.collect():
        for sample in family.samples:
            names[sample.name] = TARGET | set(sample.labels)
    return names


class Reading:
    """Reads queries, and complains of names and labels that are not there."""

    def __init__(self, known: Mapping[str, set[str]]) -> None:
        self.known = dict(known)
        self.complaints: list[str] = []

    def query(self, text: str) -> set[str]:
        """The labels of its result."""
        try:
            parsed = promql.parse(text)
        except ValueError as error:
            self.complaints.append(f"{text}: {error}")
            return set()
        return self._labels(parsed)

    def needs(self, wanted: set[str], there: set[str], what: object) -> None:
        """Complain of labels that are not there."""
        if missing := wanted - there:
            self.complaints.append(f"no label {', '.join(sorted(missing))} in {what}")

    def _labels(self, expr: Any) -> set[str]:
        kinds: dict[type, Callable[[Any], set[str]]] = {
            promql.VectorSelector: self._selector,
            promql.MatrixSelector: lambda one: self._selector(one.vector_selector),
            promql.AggregateExpr: self._aggregate,
            promql.BinaryExpr: self._binary,
            promql.Call: self._call,
            promql.NumberLiteral: lambda one: set(),
            promql.StringLiteral: lambda one: set(),
        }
        return kinds.get(type(expr), lambda one: self._labels(one.expr))(expr)

    def _selector(self, one: Any) -> set[str]:
        if one.name not in self.known:
            self.complaints.append(f"nobody exports {one.name}")
            return set()
        self.needs({m.name for m in one.matchers.matchers}, self.known[one.name], one)
        return self.known[one.name]

    def _aggregate(self, one: Any) -> set[str]:
        inner = self._labels(one.expr)
        if one.modifier is None:
            return set()
        named = set(one.modifier.labels)
        self.needs(named, inner, one.prettify())
        return named if one.modifier.type == promql.AggModifierType.By else inner - named

    def _binary(self, one: Any) -> set[str]:
        left, right = self._labels(one.lhs), self._labels(one.rhs)
        if one.modifier is not None and one.modifier.matching is not None:
            on = set(one.modifier.matching.labels)
            self.needs(on, left & right, one.prettify())
        group = set(one.modifier.group_labels or ()) if one.modifier else set()
        self.needs(group, right, one.prettify())
        # `or` may give either; all else has what its left side has.
        many = one.modifier is not None and one.modifier.card == promql.VectorMatchCardinality.ManyToMany
        return left | group | (right if many or not left else set())

    def _call(self, one: Any) -> set[str]:
        name, labels = one.func.name, [self._labels(arg) for arg in one.args]
        if name in OF_COUNTERS:
            self._is_counter(one.args[0])
        if name.startswith("absent"):
            return set()
        if name == "label_replace":
            self.needs({one.args[3].val}, labels[0], one.prettify())
            return labels[0] | {one.args[1].val}
        if name == "histogram_quantile":
            self.needs({"le"}, labels[1], one.prettify())
            return labels[1] - {"le"}
        return set().union(*labels)

    def _is_counter(self, range_: Any) -> None:
        found: list[str] = []

        def visit(one: Any) -> bool:
            if isinstance(one, promql.VectorSelector):
                found.append(str(one.name))
            return True

        # One without a subquery is no tree to walk.
        expr = range_.vector_selector if isinstance(range_, promql.MatrixSelector) else range_.expr
        promql.walk(expr, visit)
        for name in found:
            if name.startswith(catalogue.PREFIX) and not name.endswith(COUNTED):
                self.complaints.append(f"the rate of {name}, which is no counter")


def read_rules(text: str) -> Reading:
    """Every rule, and what its annotations say."""
    reading = Reading(exported())
    for group in yaml.safe_load(text)["groups"]:
        for rule in group["rules"]:
            labels = reading.query(rule["expr"])
            if "record" in rule:
                reading.known[rule["record"]] = labels
            said = " ".join(rule.get("annotations", {}).values())
            reading.needs(set(re.findall(r"\$labels\.(\w+)", said)), labels, rule.get("alert"))
    return reading


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def read_dashboard(dashboard: Mapping[str, Any]) -> Reading:
    """Every query and its legend, and those of the variables."""
    reading = Reading(exported())
    for panel in panels(dashboard):
        for target in panel["targets"]:
            labels = reading.query(filled_in(target["expr"]))
            reading.needs(set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"])), labels, panel["title"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert found, variable["definition"]
            reading.needs({found[2]}, reading.query(filled_in(found[1])), variable["name"])
    return reading


def filled_in(query: str) -> str:
    """The query as Grafana sends it."""
    return query.replace("$__rate_interval", "1m").replace("$", "")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


# Rules


def test_rules_name_what_is_exported() -> None:
    reading = read_rules(RULES.read_text(encoding="utf-8"))
    assert reading.complaints == []


@pytest.mark.parametrize(
    ("there", "instead", "complaint"),
    [
        (
            "queue_oldest_seconds",
            "queue_older_seconds",
            "nobody exports prompt_scheduler_queue_older",
        ),
        ("redis_up == 0", "redis_up_total == 0", "nobody exports prompt_scheduler_redis_up_total"),
        ("redis_memory_bytes)", "redis_memory_bytes_bucket)", "nobody exports"),
        (
            "(job, queue, lane) (prompt_scheduler_queue_oldest",
            "(lanes) (prompt_scheduler_queue_oldest",
            "lanes",
        ),
        ('{state="closed"}', '{status="closed"}', "no label status"),
        ("group_left (queue)", "group_left (model)", "no label model"),
        (
            "increase(queue:prompt_scheduler_queue_lost_leases:max[15m])",
            "increase(x:max[15m])",
            "nobody exports x",
        ),
        ("prompt_scheduler_redis_up == 0", "rate(prompt_scheduler_redis_up[1m])", "which is no counter"),
        ("Lane {{ $labels.lane }}", "Lane {{ $labels.tenant }}", "no label tenant"),
        ("prompt_scheduler_redis_up == 0", "prompt_scheduler_redis_up == (0", "redis_up == (0"),
    ],
)
def test_a_rule_that_names_what_nobody_exports_is_found(there: str, instead: str, complaint: str) -> None:
    text = RULES.read_text(encoding="utf-8")
    assert there in text
    complaints = read_rules(text.replace(there, instead)).complaints
    assert any(complaint in one for one in complaints), complaints


def test_alerts_tell_how_bad_it_is_and_where_help_is() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical"), alert["alert"]
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{alert['alert'].lower()}"


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    named = [alert["alert"] for alert in alerts()]
    assert len(set(named)) == len(named)
    headings = re.findall(r"^#+ (PromptScheduler\w+)$", OPERATIONS, re.MULTILINE)
    assert headings == named, "in the order of the rules"


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    """promtool runs the cases; each of them counts all alerts, so that one which is expected does fire."""
    cases = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    samples = [
        sample["labels"]
        for case in cases
        for test in case["promql_expr_test"]
        for sample in test["exp_samples"]
        if "ALERTS" in test["expr"]
    ]
    fired = set(re.findall(r'alertname="(\w+)"', " ".join(samples)))
    assert fired == {alert["alert"] for alert in alerts()}


# Dashboard


def test_dashboard_names_what_is_exported(dashboard: dict[str, Any]) -> None:
    assert read_dashboard(dashboard).complaints == []
    assert len(list(panels(dashboard))) > 40


@pytest.mark.parametrize(
    ("there", "instead", "complaint"),
    [
        (
            "queue_oldest_seconds",
            "queue_older_seconds",
            "nobody exports prompt_scheduler_queue_older",
        ),
        ("call_seconds_bucket", "call_seconds_total", "nobody exports prompt_scheduler_call_seconds_total"),
        ("{{lane}} {{stage}} waiting", "{{lane}} {{place}} waiting", "no label place"),
        ("worker_info, job", "worker_info, cluster", "no label cluster"),
        ("process_cpu_seconds_total", "process_cpu_second_total", "nobody exports process_cpu_second_total"),
    ],
)
def test_a_panel_that_names_what_nobody_exports_is_found(there: str, instead: str, complaint: str) -> None:
    text = DASHBOARD.read_text(encoding="utf-8")
    assert there in text
    complaints = read_dashboard(json.loads(text.replace(there, instead))).complaints
    assert any(complaint in one for one in complaints), complaints


def test_dashboard_is_what_its_script_writes(dashboard: dict[str, Any]) -> None:
    written = runpy.run_path(str(DEPLOY / "grafana" / "dashboard.py"))["dashboard"]()
    assert written == dashboard, "python deploy/grafana/dashboard.py > deploy/grafana/dashboard.json"


def test_panels_have_a_unit_and_a_place_of_their_own(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert all(target["legendFormat"] for target in panel["targets"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_dashboard_shows_every_figure_of_the_queue(dashboard: dict[str, Any]) -> None:
    queries = " ".join(target["expr"] for panel in panels(dashboard) for target in panel["targets"])
    # A lane's own bound is in the rules.
    shown = {spec for spec in catalogue.QUEUE if re.search(rf"\b{spec.exported}\b", queries)}
    assert set(catalogue.QUEUE) - shown == {catalogue.LANE_BOUND}


# Documents


def test_document_has_each_metric_with_its_type_labels_and_help() -> None:
    rows = [line for line in METRICS.splitlines() if line.startswith(f"| `{catalogue.PREFIX}")]
    assert rows == [
        f"| `{spec.exported}` | {spec.kind.value} | {', '.join(spec.labels)} | {spec.help} |"
        for spec in catalogue.ALL
    ]


@pytest.mark.parametrize(
    "document", ["README.md", "docs/operations.md", "docs/metrics.md", "docs/security.md"]
)
def test_document_names_no_metric_that_nobody_exports(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    known = set(exported()) | {spec.exported for spec in catalogue.ALL}
    assert set(re.findall(rf"\b{catalogue.PREFIX}\w+[a-z]\b", text)) <= known


def commands() -> list[str]:
    """Every command of ours that docs/operations.md names."""
    in_blocks = re.findall(
        r"^ *(?:kubectl .* )?(prompt-scheduler .*?) *(?:#.*|\|.*|>.*)?$", OPERATIONS, re.MULTILINE
    )
    in_text = re.findall(r"`(prompt-scheduler [^`]+)`", OPERATIONS)
    return sorted({*in_blocks, *in_text})


@pytest.mark.parametrize("line", commands())
def test_document_names_commands_and_options_that_there_are(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while subcommands := getattr(command, "commands", None):
        assert words, f"{line}: which command?"
        word = words.pop(0)
        assert word in subcommands, f"{line}: no command {word}"
        command = subcommands[word]
    options = {name for param in command.params for name in param.opts}
    assert {word for word in words if word.startswith("--")} <= options, line


# Autoscaling


def test_autoscaler_reads_keys_that_the_queue_has() -> None:
    scaled, authentication = yaml.safe_load_all((DEPLOY / "keda" / "scaledobject.yaml").read_text())
    assert (scaled["kind"], authentication["kind"]) == ("ScaledObject", "TriggerAuthentication")
    keys = Keys("default")
    triggers = {one["name"]: one for one in scaled["spec"]["triggers"]}
    assert {name: one["metadata"]["listName"] for name, one in triggers.items()} == {
        "work-chat": keys.of("work", "chat"),
        "running": keys.fixed("leases"),
        "wake-chat": keys.of("wake", "chat"),
        "delayed": keys.fixed("delayed"),
        "held": keys.fixed("limited"),
    }
    for trigger in triggers.values():
        assert trigger["type"] == "redis"
        assert set(trigger["metadata"]) == {"address", "listName", "listLength"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes text"
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    places = int(triggers["running"]["metadata"]["listLength"])
    assert int(triggers["work-chat"]["metadata"]["listLength"]) == 60 * places
