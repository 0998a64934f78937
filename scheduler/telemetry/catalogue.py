"""Every metric that is exported: its name, what it says, its labels. docs/metrics.md is held to this.

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
    """What Prometheus calls its type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. `name` is without the prefix, and without the `_total` of a counter."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name of the metric's family."""
        return PREFIX + self.name

    @property
    def exported(self) -> str:
        """The name as queries have it; a histogram's adds `_bucket`, `_sum` or `_count`."""
        return self.family + ("_total" if self.kind is Kind.COUNTER else "")


def _counter(name: str, text: str, *labels: str) -> Spec:
    return Spec(Kind.COUNTER, name, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Spec:
    return Spec(Kind.GAUGE, name, text, labels)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = LATENCIES) -> Spec:
    return Spec(Kind.HISTOGRAM, name, text, labels, buckets)


# Of this worker process

WORKER_INFO = _gauge("worker_info", "1; who this worker process is", "queue", "worker", "version")
WORKER_RUNNING = _gauge("worker_running_jobs", "Jobs in flight in this worker process")
WORKER_MAX_RUNNING = _gauge("worker_max_running_jobs", "The most jobs that this process runs at once")
WORKER_DRAINING = _gauge("worker_draining", "1 while the process finishes its jobs and claims no more")
WORKER_LEADER = _gauge("worker_leader", "1 in the process that does the maintenance and exports the queue")
PENDING_BYTES = _gauge("pending_write_bytes", "Text of answers that waits to be written to Redis")
REDIS_UP = _gauge("redis_up", "1 while Redis answers this process and takes its writes")

CLAIMED = _counter("claimed_jobs", "Jobs that this process has claimed", "lane")
ATTEMPTS = _counter("attempts", "Attempts that have ended here, by how", "lane", "outcome")
ERRORS = _counter("errors", "Attempts that ended with an error, by its code", "lane", "code")
TOKENS = _counter("tokens", "Tokens of finished prompts, as the engines counted them", "lane", "direction")

WAIT = _histogram("wait_seconds", "From when a job could run to its claim", "lane", "priority")
FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds", "From when a job could run to the first piece of its answer", "lane"
)
STAGE = _histogram("stage_seconds", "Time in a stage, without the wait for room in it", "lane", "stage")
END_TO_END = _histogram(
    "end_to_end_seconds", "From when a job could run to when its result was stored, of jobs done", "lane"
)
OVERHEAD = _histogram(
    "overhead_seconds",
    "End to end less the wait and less inference: what this system adds",
    "lane",
    buckets=SHORT,
)

STAGE_RUNNING = _gauge("stage_running_prompts", "Prompts in a stage now", "lane", "stage")
STAGE_WAITING = _gauge("stage_waiting_prompts", "Prompts that wait for room in a stage", "lane", "stage")

BATCHES = _counter("batches", "Calls made of gathered prompts, by why they went", "endpoint", "reason")
BATCH_PROMPTS = _histogram("batch_prompts", "Prompts that share a call", "endpoint", buckets=SIZES)
BATCH_WAIT = _histogram(
    "batch_wait_seconds",
    "How long the first prompt of a call was held for others",
    "endpoint",
    buckets=SHORT,
)
CALLS = _counter("calls", "Calls to an engine that have ended, by how", "endpoint", "result")
CALL = _histogram("call_seconds", "How long calls to an engine took", "endpoint")
IN_FLIGHT = _gauge(
    "endpoint_in_flight_prompts", "Prompts that an endpoint holds for this process", "endpoint"
)
GATHERED = _gauge("endpoint_gathered_prompts", "Prompts that wait here for their call", "endpoint")
LIMIT = _gauge("endpoint_limit_prompts", "Prompts that this process lets an endpoint hold", "endpoint")
PAUSED = _gauge("endpoint_paused", "1 while an endpoint has asked to be left alone", "endpoint")
BREAKER = _gauge("endpoint_breaker_state", "1 for the state that the breaker is in", "endpoint", "state")
BREAKER_CHANGES = _counter(
    "endpoint_breaker_changes", "How often a breaker went to a state", "endpoint", "state"
)

EVENT_LAG = _histogram(
    "event_lag_seconds",
    "From when an event or an end was ready to when Redis had published it",
    buckets=SHORT,
)
ROUND_TRIP = _histogram(
    "redis_round_trip_seconds",
    "How long Redis took to answer, as this process saw it",
    "script",
    buckets=SHORT,
)
TICK = _counter("tick_jobs", "Jobs that this process moved in its maintenance, by what was done", "work")

WORKER = tuple(one for one in list(globals().values()) if isinstance(one, Spec))

# Of the queue, by the one process that leads

WAITING = _gauge("queue_waiting_jobs", "Jobs that could run now", "queue", "lane", "priority")
DELAYED = _gauge("queue_delayed_jobs", "Jobs that are not due yet", "queue", "lane")
HELD = _gauge("queue_held_jobs", "Jobs whose tenants have used what they may", "queue", "lane")
SUSPECTS = _gauge(
    "queue_suspect_jobs", "Waiting jobs that have lost their worker process twice", "queue", "lane"
)
OLDEST = _gauge("queue_oldest_seconds", "How long the oldest waiting job could have run", "queue", "lane")
WORK = _gauge(
    "queue_work_seconds",
    "How long one place would need for all waiting jobs: for autoscaling",
    "queue",
    "lane",
)
MEAN = _gauge("queue_job_mean_seconds", "How long a job keeps a place in a worker process", "queue", "lane")
LANE_PAUSED = _gauge("queue_lane_paused", "1 while nothing is claimed from the lane", "queue", "lane")
LANE_BOUND = _gauge("queue_lane_max_waiting_jobs", "The lane's own bound, where it has one", "queue", "lane")
BOUND = _gauge("queue_max_waiting_jobs", "The bound of waiting, delayed and held jobs", "queue")
RUNNING = _gauge("queue_running_jobs", "Jobs that worker processes hold leases of", "queue")
DEAD = _gauge("queue_dead_jobs", "Failed jobs that are kept", "queue")
FINISHED = _gauge("queue_finished_jobs", "Other ended jobs that are kept", "queue")
GARBAGE = _gauge("queue_garbage_entries", "Entries put aside for want of a readable record", "queue")
WORKERS = _gauge("queue_worker_processes", "Live worker processes", "queue")
ENQUEUED = _counter("queue_enqueued_jobs", "Jobs taken in", "queue")
JOINED = _counter("queue_joined_prompts", "Prompts that joined a job with the same dedup key", "queue")
REUSED = _counter("queue_reused_results", "Prompts that got a finished result again", "queue")
REFUSED = _counter(
    "queue_refused_prompts", "Prompts refused for want of room, by whose bound", "queue", "bound"
)
ENDED = _counter("queue_ended_jobs", "Jobs that have ended, by how", "queue", "state")
RETRIED = _counter("queue_retried_attempts", "Failed attempts after which the job went on", "queue")
GIVEN_BACK = _counter("queue_given_back_attempts", "Attempts that stopping processes gave back", "queue")
LOST = _counter("queue_lost_leases", "Leases that ended without a word of their worker process", "queue")
QUARANTINED = _counter("queue_quarantined_jobs", "Jobs that failed for losing worker processes", "queue")
DEAD_DROPPED = _counter("queue_dead_dropped_jobs", "Failed jobs dropped because too many were kept", "queue")
REPEATED = _counter("queue_repeated_attempts", "Lost attempts that had begun to stream", "queue")
WASTED = _counter("queue_wasted_tokens", "Tokens, estimated, of those attempts", "queue")
REDIS_MEMORY = _gauge("redis_memory_bytes", "Memory that Redis uses", "queue")
REDIS_MEMORY_MAX = _gauge("redis_memory_max_bytes", "Redis' bound (maxmemory), where it has one", "queue")

QUEUE = tuple(one for one in list(globals().values()) if isinstance(one, Spec) and one not in WORKER)

ALL = (*WORKER, *QUEUE)
