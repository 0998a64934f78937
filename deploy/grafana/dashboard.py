"""Writes the Grafana dashboard: python deploy/grafana/dashboard.py > deploy/grafana/dashboard.json

Change it here; a test compares the two. It needs nothing but Python. Queries of the queue's figures take the
max over instances, since the process that exports them changes; rates of its counters go over a subquery for
the same reason.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
STEP = "15s"

QUEUE = 'job="$job", queue="$queue"'
UNANSWERED = f'{QUEUE}, state=~"failed|expired|shed"'
NOT_CANCELLED = f'{QUEUE}, state!="cancelled"'
LANES = f'{QUEUE}, lane=~"$lane"'
WORKER = 'job="$job", instance=~"$worker"'
NOT_CLOSED = f'{WORKER}, state!="closed"'
WORKER_LANES = f'{WORKER}, lane=~"$lane"'

Query = tuple[str, str]
Json = dict[str, Any]


def queue_rate(metric: str, by: str = "", selector: str = QUEUE) -> str:
    """The rate of a counter of the queue."""
    labels = f" by ({by})" if by else ""
    return f"rate(max{labels} (prompt_scheduler_{metric}{{{selector}}})[$__rate_interval:{STEP}])"


def rate(metric: str, by: str, selector: str = WORKER) -> str:
    """The rate of a counter of the worker processes, over all that are shown."""
    return f"sum by ({by}) (rate(prompt_scheduler_{metric}{{{selector}}}[$__rate_interval]))"


def lanes(metric: str, by: str = "lane") -> str:
    """A gauge of the queue's lanes."""
    return f"max by ({by}) (prompt_scheduler_{metric}{{{LANES}}})"


def quantile(q: float, metric: str, by: str = "", selector: str = WORKER) -> str:
    """A quantile of a histogram; `by` further labels."""
    labels = f"{by}, le" if by else "le"
    buckets = f"rate(prompt_scheduler_{metric}_bucket{{{selector}}}[$__rate_interval])"
    return f"histogram_quantile({q}, sum by ({labels}) ({buckets}))"


def quantiles(metric: str, by: str = "", selector: str = WORKER) -> list[Query]:
    """The median, and one in twenty and one in a hundred above."""
    of = f" {{{{{by}}}}}" if by else ""
    return [(quantile(q, metric, by, selector), f"p{q * 100:g}{of}") for q in (0.5, 0.95, 0.99)]


def mean(metric: str, by: str, selector: str = WORKER) -> str:
    """The mean of a histogram."""
    return f"{rate(f'{metric}_sum', by, selector)} / {rate(f'{metric}_count', by, selector)}"


def panel(kind: str, title: str, queries: Sequence[Query], *, unit: str, text: str, width: int) -> Json:
    """A panel without a place."""
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": DATASOURCE,
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
            for at, (expr, legend) in enumerate(queries)
        ],
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "gridPos": {"h": 4 if kind == "stat" else 8, "w": width},
    }


def stat(
    title: str, expr: str, *, unit: str = "short", text: str = "", red_from: float | None = None
) -> Json:
    """One figure, red from a value on."""
    made = panel("stat", title, [(expr, title)], unit=unit, text=text, width=3)
    steps: list[Json] = [{"color": "green", "value": None}]
    if red_from is not None:
        steps.append({"color": "red", "value": red_from})
    made["fieldConfig"]["defaults"]["thresholds"] = {"mode": "absolute", "steps": steps}
    made["options"] = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return made


def series(
    title: str,
    queries: Sequence[Query] | str,
    legend: str = "",
    *,
    unit: str = "short",
    text: str = "",
    width: int = 8,
    stacked: bool = False,
) -> Json:
    """Lines over time; of one query and its legend, or of several."""
    listed = [(queries, legend)] if isinstance(queries, str) else queries
    made = panel("timeseries", title, listed, unit=unit, text=text, width=width)
    made["fieldConfig"]["defaults"]["custom"] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    made["options"] = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def heatmap(title: str, metric: str, selector: str, *, text: str, width: int = 8) -> Json:
    """How many fell into each bucket of a histogram, over time."""
    made = panel(
        "heatmap",
        title,
        [(rate(f"{metric}_bucket", "le", selector), "{{le}}")],
        unit="s",
        text=text,
        width=width,
    )
    made["targets"][0]["format"] = "heatmap"
    made["options"] = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "reverse": False},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "unit": "s"},
    }
    return made


OVERVIEW = [
    stat("Waiting", f"sum({lanes('queue_waiting_jobs', 'lane, priority')})", text="Jobs that could run now."),
    stat(
        "Running",
        f"max(prompt_scheduler_queue_running_jobs{{{QUEUE}}})",
        text="Jobs that worker processes hold leases of.",
    ),
    stat(
        "Oldest",
        f"max({lanes('queue_oldest_seconds')})",
        unit="s",
        red_from=600,
        text="How long the oldest waiting job has been ready to run.",
    ),
    stat(
        "Ended",
        f"sum({queue_rate('queue_ended_jobs_total', 'state')})",
        unit="ops",
        text="Jobs that end per second, in any state.",
    ),
    stat(
        "Without an answer",
        f"sum({queue_rate('queue_ended_jobs_total', 'state', UNANSWERED)})"
        f" / sum({queue_rate('queue_ended_jobs_total', 'state', NOT_CANCELLED)})",
        unit="percentunit",
        red_from=0.01,
        text="The share of ended jobs that failed, expired or were shed. Cancelled jobs do not count.",
    ),
    stat(
        "Worker processes",
        f"max(prompt_scheduler_queue_worker_processes{{{QUEUE}}})",
        text="Worker processes that are alive, as seen in Redis.",
    ),
    stat(
        "Dead letters",
        f"max(prompt_scheduler_queue_dead_jobs{{{QUEUE}}})",
        red_from=1,
        text="Failed jobs that are kept. List them with prompt-scheduler admin dead list.",
    ),
    stat(
        "Of the bound",
        f"(sum({lanes('queue_waiting_jobs', 'lane, priority')}) + sum({lanes('queue_delayed_jobs')})"
        f" + sum({lanes('queue_held_jobs')})) / max(prompt_scheduler_queue_max_waiting_jobs{{{QUEUE}}})",
        unit="percentunit",
        red_from=0.8,
        text="The share of max_waiting used by the lanes shown.",
    ),
    series(
        "In and out",
        [
            (queue_rate("queue_enqueued_jobs_total"), "enqueued"),
            (queue_rate("queue_joined_prompts_total"), "joined a duplicate"),
            (queue_rate("queue_reused_results_total"), "got a finished answer"),
            (queue_rate("queue_ended_jobs_total", "state"), "{{state}}"),
        ],
        unit="ops",
        text="Jobs and prompts per second.",
        width=12,
    ),
    series(
        "Where jobs are",
        [
            (f"sum({lanes('queue_waiting_jobs', 'lane, priority')})", "waiting"),
            (f"sum({lanes('queue_delayed_jobs')})", "delayed"),
            (f"sum({lanes('queue_held_jobs')})", "held"),
            (f"max(prompt_scheduler_queue_running_jobs{{{QUEUE}}})", "running"),
        ],
        text="Delayed: not due yet. Held: their tenants have used up their rate limits.",
        width=12,
        stacked=True,
    ),
]

LANES_AND_LEVELS = [
    series(
        "Waiting, by lane",
        f"sum by (lane) ({lanes('queue_waiting_jobs', 'lane, priority')})",
        "{{lane}}",
        stacked=True,
    ),
    series(
        "Waiting, by priority",
        f"sum by (priority) ({lanes('queue_waiting_jobs', 'lane, priority')})",
        "priority {{priority}}",
        stacked=True,
        text="8 and 9 always go first; below, waiting jobs age.",
    ),
    series(
        "Oldest, by lane",
        lanes("queue_oldest_seconds"),
        "{{lane}}",
        unit="s",
        text="How long the oldest waiting job has been ready to run.",
    ),
    series(
        "Waiting work, by lane",
        lanes("queue_work_seconds"),
        "{{lane}}",
        unit="s",
        text="How long a single slot would need for all waiting jobs; divide by your number of slots.",
    ),
    series("A job keeps a slot for", lanes("queue_job_mean_seconds"), "{{lane}}", unit="s"),
    series(
        "Delayed, held, suspects, paused",
        [
            (lanes("queue_delayed_jobs"), "delayed {{lane}}"),
            (lanes("queue_held_jobs"), "held {{lane}}"),
            (lanes("queue_suspect_jobs"), "suspects {{lane}}"),
            (lanes("queue_lane_paused"), "paused {{lane}}"),
        ],
        text="Suspects have lost their worker process twice. Paused: 1 while the lane is paused.",
    ),
]

LATENCY = [
    series(
        "Wait",
        quantiles("wait_seconds", "lane", WORKER_LANES),
        unit="s",
        text="From when a job was ready to its claim.",
    ),
    series(
        "Wait, by priority",
        quantile(0.95, "wait_seconds", "priority", WORKER_LANES),
        "p95 priority {{priority}}",
        unit="s",
    ),
    series(
        "Time to first token",
        quantiles("time_to_first_token_seconds", "lane", WORKER_LANES),
        unit="s",
        text="From when a job was ready to the first piece of its answer.",
    ),
    series(
        "End to end",
        quantiles("end_to_end_seconds", "lane", WORKER_LANES),
        unit="s",
        text="From when a job was ready to when its result was stored.",
    ),
    heatmap("End to end, all", "end_to_end_seconds", WORKER_LANES, text="The number of jobs by duration."),
    heatmap(
        "Overhead",
        "overhead_seconds",
        WORKER_LANES,
        text="End to end, minus the wait and inference: the time that prompt-scheduler adds.",
    ),
    series(
        "Overhead",
        quantiles("overhead_seconds", "lane", WORKER_LANES),
        unit="s",
        text="End to end, minus the wait and inference: the time that prompt-scheduler adds.",
        width=12,
    ),
    series(
        "Stages",
        quantile(0.95, "stage_seconds", "lane, stage", WORKER_LANES),
        "p95 {{lane}} {{stage}}",
        unit="s",
        text="Time in a stage, without the wait to be admitted.",
        width=12,
    ),
]

ENGINES = [
    series(
        "In flight, and the limit",
        [
            (f"sum by (endpoint) (prompt_scheduler_endpoint_in_flight_prompts{{{WORKER}}})", "{{endpoint}}"),
            (
                f"sum by (endpoint) (prompt_scheduler_endpoint_limit_prompts{{{WORKER}}})",
                "{{endpoint}} limit",
            ),
            (
                f"sum by (endpoint) (prompt_scheduler_endpoint_gathered_prompts{{{WORKER}}})",
                "{{endpoint}} gathered",
            ),
        ],
        text="Prompts at the endpoints, their current limit, and prompts gathered for a call.",
    ),
    series(
        "Breaker",
        [
            (
                f"sum by (endpoint, state) (prompt_scheduler_endpoint_breaker_state{{{NOT_CLOSED}}})",
                "{{endpoint}} {{state}}",
            ),
            (f"sum by (endpoint) (prompt_scheduler_endpoint_paused{{{WORKER}}})", "{{endpoint}} paused"),
        ],
        text="The number of worker processes that do not use an endpoint. Paused: it asked for a wait.",
    ),
    series(
        "Breaker, changes",
        rate("endpoint_breaker_changes_total", "endpoint, state"),
        "{{endpoint}} to {{state}}",
        unit="ops",
    ),
    series(
        "Calls",
        rate("calls_total", "endpoint, result"),
        "{{endpoint}} {{result}}",
        unit="reqps",
        text="Calls that end per second, by result.",
    ),
    series("Call time", quantiles("call_seconds", "endpoint"), unit="s"),
    series(
        "Prompts in a call",
        [
            (mean("batch_prompts", "endpoint"), "{{endpoint}} mean"),
            (quantile(0.95, "batch_prompts", "endpoint"), "{{endpoint}} p95"),
        ],
        text="In calls made of gathered prompts.",
    ),
    series(
        "Wait for a batch",
        quantiles("batch_wait_seconds", "endpoint"),
        unit="s",
        text="How long the first prompt of a call waited for others to join.",
        width=12,
    ),
    series(
        "Why calls go",
        rate("batches_total", "endpoint, reason"),
        "{{endpoint}} {{reason}}",
        unit="ops",
        stacked=True,
        width=12,
    ),
]

ERRORS = [
    series(
        "Attempts, by how they end",
        rate("attempts_total", "outcome", WORKER_LANES),
        "{{outcome}}",
        unit="ops",
        stacked=True,
    ),
    series(
        "Errors, by code", rate("errors_total", "lane, code", WORKER_LANES), "{{lane}} {{code}}", unit="ops"
    ),
    series(
        "Retried, given back, lost",
        [
            (queue_rate("queue_retried_attempts_total"), "retried"),
            (queue_rate("queue_given_back_attempts_total"), "given back by a draining process"),
            (queue_rate("queue_lost_leases_total"), "leases lost"),
            (queue_rate("queue_repeated_attempts_total"), "lost after they had begun to stream"),
            (queue_rate("queue_quarantined_jobs_total"), "quarantined as poison"),
        ],
        unit="ops",
    ),
    series(
        "Refused",
        queue_rate("queue_refused_prompts_total", "bound"),
        "bound of the {{bound}}",
        unit="ops",
        text="Prompts refused because a bound was reached.",
    ),
    series(
        "Dead letters",
        [
            (f"max(prompt_scheduler_queue_dead_jobs{{{QUEUE}}})", "kept"),
            (f"max(prompt_scheduler_queue_finished_jobs{{{QUEUE}}})", "other ended jobs that are kept"),
            (f"max(prompt_scheduler_queue_garbage_entries{{{QUEUE}}})", "damaged records"),
        ],
    ),
    series(
        "Dead letters dropped",
        queue_rate("queue_dead_dropped_jobs_total"),
        "dropped, more than max_dead",
        unit="ops",
    ),
]

TOKENS = [
    series(
        "Tokens",
        rate("tokens_total", "direction", WORKER_LANES),
        "{{direction}}",
        unit="cps",
        text="Of finished prompts, per second.",
    ),
    series(
        "Answers' tokens, by lane",
        rate("tokens_total", "lane", f'{WORKER_LANES}, direction="output"'),
        "{{lane}}",
        unit="cps",
        stacked=True,
    ),
    series(
        "Tokens wasted",
        queue_rate("queue_wasted_tokens_total"),
        "of lost attempts, estimated",
        unit="cps",
        text="Of attempts that were lost after they had begun to stream.",
    ),
]

REDIS = [
    series(
        "Round trip",
        quantile(0.99, "redis_round_trip_seconds", "script"),
        "p99 {{script}}",
        unit="s",
        text="As measured in the worker processes.",
    ),
    series(
        "Event lag",
        quantiles("event_lag_seconds"),
        unit="s",
        text="From when an event was ready to when Redis had published it.",
    ),
    series(
        "Memory",
        [
            (f"max(prompt_scheduler_redis_memory_bytes{{{QUEUE}}})", "used"),
            (f"max(prompt_scheduler_redis_memory_max_bytes{{{QUEUE}}})", "maxmemory"),
        ],
        unit="bytes",
    ),
    series(
        "Redis answers",
        f"prompt_scheduler_redis_up{{{WORKER}}}",
        "{{instance}}",
        text="1 while Redis answers this process and accepts its writes.",
    ),
    series(
        "Output waiting to be written",
        f"prompt_scheduler_pending_write_bytes{{{WORKER}}}",
        "{{instance}}",
        unit="bytes",
    ),
    series(
        "Maintenance",
        rate("tick_jobs_total", "work"),
        "{{work}}",
        unit="ops",
        text="Jobs moved by the leader.",
    ),
]

WORKERS = [
    series(
        "Running, and the most",
        [
            (f"prompt_scheduler_worker_running_jobs{{{WORKER}}}", "{{instance}}"),
            (f"sum(prompt_scheduler_worker_max_running_jobs{{{WORKER}}})", "max_running of all"),
        ],
    ),
    series(
        "CPU",
        f"rate(process_cpu_seconds_total{{{WORKER}}}[$__rate_interval])",
        "{{instance}}",
        unit="percentunit",
        text="Of one core, the most that a process can use.",
    ),
    series("Memory", f"process_resident_memory_bytes{{{WORKER}}}", "{{instance}}", unit="bytes"),
    series(
        "Claims",
        rate("claimed_jobs_total", "instance", WORKER_LANES),
        "{{instance}}",
        unit="ops",
    ),
    series(
        "In the stages",
        [
            (
                f"sum by (lane, stage) (prompt_scheduler_stage_running_prompts{{{WORKER_LANES}}})",
                "{{lane}} {{stage}}",
            ),
            (
                f"sum by (lane, stage) (prompt_scheduler_stage_waiting_prompts{{{WORKER_LANES}}})",
                "{{lane}} {{stage}} waiting for room",
            ),
        ],
        stacked=True,
    ),
    series(
        "Leading and draining",
        [
            (f"prompt_scheduler_worker_leader{{{WORKER}}}", "{{instance}} leads"),
            (f"prompt_scheduler_worker_draining{{{WORKER}}}", "{{instance}} drains"),
        ],
        text="The leader does the maintenance and exports the figures of the queue.",
    ),
]

ROWS = {
    "Overview": OVERVIEW,
    "Lanes and levels": LANES_AND_LEVELS,
    "Latency": LATENCY,
    "Engines": ENGINES,
    "Errors and retries": ERRORS,
    "Tokens": TOKENS,
    "Redis": REDIS,
    "Worker processes": WORKERS,
}


def variable(name: str, label: str, of: str, *, many: bool = False) -> Json:
    """A choice of the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": of,
        "query": {"query": of, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        "current": {"text": ["All"], "value": ["$__all"]} if many else {},
    }


VARIABLES = [
    {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}},
    variable("job", "Deployment", "label_values(prompt_scheduler_worker_info, job)"),
    variable("queue", "Queue", 'label_values(prompt_scheduler_worker_info{job="$job"}, queue)'),
    variable(
        "lane", "Lane", f"label_values(prompt_scheduler_queue_waiting_jobs{{{QUEUE}}}, lane)", many=True
    ),
    variable(
        "worker",
        "Worker process",
        f"label_values(prompt_scheduler_worker_info{{{QUEUE}}}, instance)",
        many=True,
    ),
]


def placed(rows: dict[str, list[Json]]) -> list[Json]:
    """All panels, each with its place: from left to right, row by row."""
    made: list[Json] = []
    y = 0
    for title, panels in rows.items():
        made.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            }
        )
        y += 1
        x = height = 0
        for one in panels:
            place = one["gridPos"]
            if x + place["w"] > COLUMNS:
                x, y = 0, y + height
            made.append({**one, "gridPos": {**place, "x": x, "y": y}})
            x, height = x + place["w"], place["h"]
        y += height
    return [{"id": number, **one} for number, one in enumerate(made, 1)]


def dashboard() -> Json:
    """The whole dashboard, as Grafana imports it."""
    return {
        "title": "prompt-scheduler",
        "uid": "prompt-scheduler",
        "description": "A queue in front of LLM back ends, and its worker processes.",
        "tags": ["prompt-scheduler", "llm"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": VARIABLES},
        "panels": placed(ROWS),
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
