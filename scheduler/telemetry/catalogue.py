"""Every exported metric: its name, help and labels. A test compares docs/metrics.md with it.

Names and units: https://prometheus.io/docs/practices/naming/. No label ever holds a job, a user or free text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PREFIX = "prompt_scheduler_"

# fmt: off
LATENCIES = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600,
)
# fmt: on
SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Kind(Enum):
    """The type of a metric, in Prometheus' terms."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric."""

    kind: Kind
    """Its type."""
    name: str
    """Its name without the prefix, and without the `_total` of a counter."""
    help: str
    """What it counts or measures."""
    labels: tuple[str, ...] = ()
    """The names of its labels."""
    buckets: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets."""

    @property
    def family(self) -> str:
        """The name of the metric's family."""
        return PREFIX + self.name

    @property
    def exported(self) -> str:
        """The name in queries; those of a histogram add `_bucket`, `_sum` or `_count`."""
        return self.family + ("_total" if self.kind is Kind.COUNTER else "")


def _counter(name: str, text: str, *labels: str) -> Spec:
    return Spec(Kind.COUNTER, name, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Spec:
    return Spec(Kind.GAUGE, name, text, labels)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = LATENCIES) -> Spec:
    return Spec(Kind.HISTOGRAM, name, text, labels, buckets)


# Of this worker process

WORKER_INFO = _gauge("worker_info", "1; identifies this worker process", "queue", "worker", "version")
WORKER_RUNNING = _gauge("worker_running_jobs", "Jobs in flight in this worker process")
WORKER_MAX_RUNNING = _gauge("worker_max_running_jobs", "The most jobs that this process runs at once")
WORKER_DRAINING = _gauge("worker_draining", "1 while the process finishes its jobs and claims no more")
WORKER_LEADER = _gauge(
    "worker_leader", "1 in the process that does the maintenance and exports the metrics of the queue"
)
PENDING_BYTES = _gauge("pending_write_bytes", "Bytes of answers that wait to be written to Redis")
REDIS_UP = _gauge("redis_up", "1 while Redis answers this process and accepts its writes")

CLAIMED = _counter("claimed_jobs", "Jobs that this process has claimed", "lane")
ATTEMPTS = _counter("attempts", "Attempts that ended in this process, by outcome", "lane", "outcome")
ERRORS = _counter("errors", "Attempts that ended with an error, by its code", "lane", "code")
TOKENS = _counter("tokens", "Tokens of finished prompts, as the engines counted them", "lane", "direction")

WAIT = _histogram("wait_seconds", "From when a job was ready to run to its claim", "lane", "priority")
FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds", "From when a job was ready to run to the first piece of its answer", "lane"
)
STAGE = _histogram("stage_seconds", "Time in a stage, without the wait for a place in it", "lane", "stage")
END_TO_END = _histogram(
    "end_to_end_seconds",
    "From when a job was ready to run to when its result was stored; jobs done only",
    "lane",
)
OVERHEAD = _histogram(
    "overhead_seconds",
    "End to end without the wait and the inference: what this system adds",
    "lane",
    buckets=SHORT,
)

STAGE_RUNNING = _gauge("stage_running_prompts", "Prompts in a stage", "lane", "stage")
STAGE_WAITING = _gauge("stage_waiting_prompts", "Prompts that wait for a place in a stage", "lane", "stage")

BATCHES = _counter(
    "batches", "Calls of gathered prompts, by the reason why they went out", "endpoint", "reason"
)
BATCH_PROMPTS = _histogram("batch_prompts", "Prompts that share a call", "endpoint", buckets=SIZES)
BATCH_WAIT = _histogram(
    "batch_wait_seconds",
    "How long the first prompt of a call waited for others",
    "endpoint",
    buckets=SHORT,
)
CALLS = _counter("calls", "Calls to an engine that ended, by result", "endpoint", "result")
CALL = _histogram("call_seconds", "Duration of calls to an engine", "endpoint")
IN_FLIGHT = _gauge(
    "endpoint_in_flight_prompts", "Prompts of this process in flight at an endpoint", "endpoint"
)
GATHERED = _gauge("endpoint_gathered_prompts", "Prompts of this process that wait for their call", "endpoint")
LIMIT = _gauge(
    "endpoint_limit_prompts", "The most prompts of this process in flight at an endpoint", "endpoint"
)
PAUSED = _gauge("endpoint_paused", "1 while an endpoint has asked for a pause", "endpoint")
BREAKER = _gauge("endpoint_breaker_state", "1 for the state of the breaker", "endpoint", "state")
BREAKER_CHANGES = _counter("endpoint_breaker_changes", "Changes of a breaker to a state", "endpoint", "state")

EVENT_LAG = _histogram(
    "event_lag_seconds",
    "From when an event or an end was ready to when Redis had published it",
    buckets=SHORT,
)
ROUND_TRIP = _histogram(
    "redis_round_trip_seconds",
    "Time until Redis answered, as measured in this process",
    "script",
    buckets=SHORT,
)
TICK = _counter("tick_jobs", "Jobs that this process moved in its maintenance, by the kind of work", "work")

WORKER = tuple(one for one in list(globals().values()) if isinstance(one, Spec))

# Of the queue, exported by the process that leads

WAITING = _gauge("queue_waiting_jobs", "Jobs that are ready to run", "queue", "lane", "priority")
DELAYED = _gauge("queue_delayed_jobs", "Jobs that are not due yet", "queue", "lane")
HELD = _gauge("queue_held_jobs", "Jobs whose tenants are over their limits", "queue", "lane")
SUSPECTS = _gauge(
    "queue_suspect_jobs", "Waiting jobs that have lost their worker process twice", "queue", "lane"
)
OLDEST = _gauge(
    "queue_oldest_seconds", "How long the oldest waiting job has been ready to run", "queue", "lane"
)
WORK = _gauge(
    "queue_work_seconds",
    "Time that one place would need for all waiting jobs: for autoscaling",
    "queue",
    "lane",
)
MEAN = _gauge(
    "queue_job_mean_seconds",
    "How long a job occupies a place in a worker process, on average",
    "queue",
    "lane",
)
LANE_PAUSED = _gauge("queue_lane_paused", "1 while the lane is paused", "queue", "lane")
LANE_BOUND = _gauge("queue_lane_max_waiting_jobs", "The lane's own bound, if it has one", "queue", "lane")
BOUND = _gauge("queue_max_waiting_jobs", "The bound of waiting, delayed and held jobs", "queue")
RUNNING = _gauge("queue_running_jobs", "Jobs that worker processes have leased", "queue")
DEAD = _gauge("queue_dead_jobs", "Failed jobs that are kept", "queue")
FINISHED = _gauge("queue_finished_jobs", "Other ended jobs that are kept", "queue")
GARBAGE = _gauge("queue_garbage_entries", "Entries put aside because their records cannot be read", "queue")
WORKERS = _gauge("queue_worker_processes", "Live worker processes", "queue")
ENQUEUED = _counter("queue_enqueued_jobs", "Jobs accepted", "queue")
JOINED = _counter("queue_joined_prompts", "Prompts that joined a job with the same dedup key", "queue")
REUSED = _counter("queue_reused_results", "Prompts that got a finished result", "queue")
REFUSED = _counter(
    "queue_refused_prompts", "Prompts refused because the queue or the lane was full", "queue", "bound"
)
ENDED = _counter("queue_ended_jobs", "Jobs that ended, by state", "queue", "state")
RETRIED = _counter("queue_retried_attempts", "Failed attempts after which the job was retried", "queue")
GIVEN_BACK = _counter("queue_given_back_attempts", "Attempts that stopping processes gave back", "queue")
LOST = _counter("queue_lost_leases", "Leases that ended because their worker process was silent", "queue")
QUARANTINED = _counter(
    "queue_quarantined_jobs", "Jobs that failed because their worker process ended repeatedly", "queue"
)
DEAD_DROPPED = _counter("queue_dead_dropped_jobs", "Failed jobs dropped because too many were kept", "queue")
REPEATED = _counter("queue_repeated_attempts", "Begun attempts that were lost or broke off", "queue")
WASTED = _counter("queue_wasted_tokens", "Estimated tokens of those attempts", "queue")
REDIS_MEMORY = _gauge("redis_memory_bytes", "Memory that Redis uses", "queue")
REDIS_MEMORY_MAX = _gauge("redis_memory_max_bytes", "Redis' bound (maxmemory), if it has one", "queue")

QUEUE = tuple(one for one in list(globals().values()) if isinstance(one, Spec) and one not in WORKER)

ALL = (*WORKER, *QUEUE)
