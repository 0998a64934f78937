"""What `admin top` draws, and what it makes of two looks."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from rich.text import Text

from scheduler.cli.admin.top.columns import Column, Section
from scheduler.cli.admin.top.marks import bar, count, curve, rate, size
from scheduler.cli.admin.top.snapshot import RECENT_MS, Snapshot, Waits, rates, waits
from scheduler.cli.admin.top.view import draw, share_out, summary
from scheduler.cli.admin.top.watch import TREND, Frame, Watch
from scheduler.model import JobError, JobInfo, JobState
from scheduler.queue.reports import EndpointStatus, LaneStatus, QueueStatus, RedisMemory, WorkerInfo

NOW_MS = 1_800_000_000_000
ID = "01a20aff-5c1e-7f02-b8a5-6f9a3e9d5a11"


def status(**fields: Any) -> QueueStatus:
    return QueueStatus(
        **{
            "queue": "default",
            "at_ms": NOW_MS,
            "waiting": 1034,
            "delayed": 3,
            "held": 12,
            "running": 48,
            "dead": 1,
            "finished": 7,
            "garbage": 0,
            "workers": 2,
            "max_waiting": 100_000,
            "when_full": "reject",
            "aging_s": 30,
            "totals": {"enqueued": 100, "done": 40},
            "lanes": [
                LaneStatus(name="chat", waiting=1022, by_priority={9: 2, 5: 900, 1: 120}, oldest_s=4.4),
                LaneStatus(name="code", waiting=12, by_priority={5: 12}, held=12, delayed=3, paused=True),
            ],
            "endpoints": [
                EndpointStatus(
                    name="chat.0",
                    backend="vllm",
                    workers=2,
                    in_flight=48,
                    limit=64,
                    breakers={"closed": 2},
                ),
                EndpointStatus(
                    name="chat.1",
                    backend="openai",
                    workers=2,
                    in_flight=0,
                    limit=8,
                    breakers={"open": 2},
                    usable_in_s=28,
                    last_error="cannot connect",
                ),
            ],
            **fields,
        }
    )


def letter(number: int = 0, **fields: Any) -> JobInfo:
    return JobInfo(
        **{
            "id": ID,
            "state": JobState.FAILED,
            "model": "chat",
            "priority": 5,
            "enqueued_at_ms": NOW_MS - 20_000,
            "ended_at_ms": NOW_MS - 12_000,
            "error": JobError(
                code="request_rejected", message=f"number {number} has\nthe \x1b[2Jforbidden text"
            ),
            **fields,
        }
    )


def snapshot(**fields: Any) -> Snapshot:
    workers = [
        WorkerInfo(id="box:12:aa", host="box", running=40, max_running=64, started_at_ms=NOW_MS - 60_000),
        WorkerInfo(id="box:13:bb", host="box", running=8, max_running=64, leader=True, draining=True),
    ]
    return Snapshot(
        **{
            "taken_at_s": 10.0,
            "status": status(),
            "workers": workers,
            "waits_by_lane": {"chat": Waits(12, 0.25, 1.0)},
            "waits_by_priority": {9: Waits(2, 0.1, 0.1), 5: Waits(10, 2.8, 9.0)},
            "dead": [letter()],
            "memory": RedisMemory(used_bytes=3 * 2**20, max_bytes=2 * 2**30),
            **fields,
        }
    )


RATES = {"enqueued": 120.0, "done": 98.0, "failed": 0.5, "joined": 3.25}
FRAME = Frame(snapshot(), rates=RATES, trend=({"enqueued": 60.0, "done": 98.0}, RATES))


ENDPOINT: dict[str, Any] = {
    "name": "chat.1",
    "backend": "openai",
    "workers": 1,
    "in_flight": 1,
    "limit": 8,
    "breakers": {"closed": 1},
}
CROWD = Frame(
    snapshot(
        status=status(
            lanes=[
                LaneStatus(name=f"lane{n:02}", waiting=5000 if n == 7 else n, by_priority={n % 10: n})
                for n in range(40)
            ],
            endpoints=[
                EndpointStatus(
                    **{**ENDPOINT, "name": f"e{n:02}", "breakers": {"open" if n == 5 else "closed": 1}}
                )
                for n in range(12)
            ],
        ),
        workers=[WorkerInfo(id=f"box:{n:02}", host="box", running=n, max_running=64) for n in range(30)],
        dead=[letter(n) for n in range(20)],
    )
)


def lines(frame: Frame = FRAME, **size: Any) -> list[str]:
    return [line.plain.rstrip() for line in draw(frame, **{"width": 100, **size})]


def line_of(drawn: list[str], *words: str) -> str:
    (found,) = (line for line in drawn if all(word in line for word in words))
    return found


def test_picture_in_80_columns() -> None:
    drawn = lines(width=80)
    assert re.fullmatch(r" prompt-scheduler top   queue default +\d\d:\d\d:\d\d  every 1 s", drawn[0])
    assert (
        drawn[1:]
        == """\
 bound        1,049  ■·············  of 100,000, then reject
 running 48 of 128  delayed 3  held 12  dead 1  workers 2  redis 3.0 MiB
 enqueued     120/s  ▁▁▁▁▁▁▁▁▁▁▁▁▅█  joined 3.2  reused 0  refused 0
 done        98.0/s  ▁▁▁▁▁▁▁▁▁▁▁▁██  failed 0.50  expired 0  shed 0  cancelled 0

 LANE   WAITING                    9     5   1 OLDEST WAITED DELAYED HELD
 chat     1,022 ■■■■■■■■■■■■■■     2   900 120  4.4 s  0.2 s       0    0
 code        12 ■·············          12          -      -       3   12 paused
 waited                        0.1 s 2.8 s

 ENDPOINT BACKEND IN FLIGHT                 BREAKER               LAST ERROR
 chat.0   vllm     48 of 64 ■■■■■■■■■■■···· closed
 chat.1   openai     0 of 8 ··············· open, unused for 28 s cannot connect

 WORKER    HOST  RUNNING                    UP
 box:12:aa box  40 of 64 ■■■■■■■■■■······ 60 s
 box:13:bb box   8 of 64 ■■··············    - leader draining

 DEAD LETTER  FAILED ROUTE CODE             MESSAGE
 …f9a3e9d5a11   12 s chat  request_rejected number 0 has\\nthe \\x1b[2Jforbidden …""".splitlines()
    )


def test_a_wider_terminal_shows_more() -> None:
    assert ID in line_of(lines(width=140), "request_rejected")
    assert "2.0 GiB" in line_of(lines(width=140), "redis")
    assert line_of(lines(width=140), "chat", "1,022").count("■") == 40
    error = "no answer " * 15
    said = snapshot(status=status(endpoints=[EndpointStatus(**ENDPOINT, last_error=error)]))
    narrow, wide, widest = (line_of(lines(Frame(said), width=width), "chat.1") for width in (80, 140, 250))
    assert [round(len(line), -1) for line in (narrow, wide)] == [80, 140]
    assert (narrow[-1], wide[-1]) == ("…", "…")
    assert widest.endswith(error.strip()), "all of it, where there is room"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 140, 250])
@pytest.mark.parametrize("height", [None, 1, 3, 12, 24, 50])
def test_picture_fits(width: int, height: int | None) -> None:
    for frame in (FRAME, dataclasses.replace(FRAME, away="gone " * 60, frozen=True), CROWD):
        drawn = draw(frame, width=width, height=height, keys=True)
        assert max(line.cell_len for line in drawn) <= width
        assert height is None or len(drawn) <= height
        assert all(character.isprintable() for line in drawn for character in line.plain)


def test_in_a_low_terminal_each_section_has_its_part_and_says_what_is_missing() -> None:
    drawn = lines(CROWD, height=30)
    assert len(drawn) == 30
    for title in ("LANE", "ENDPOINT", "WORKER", "DEAD LETTER"):
        line_of(drawn, f" {title} ")
    shown, told = 0, 0
    for line in drawn:
        shown += bool(re.match(r" lane\d\d ", line))
        told += int(found[1].replace(",", "")) if (found := re.match(r" … ([\d,]+) more", line)) else 0
    assert shown >= 2
    assert told + sum(bool(re.match(r" (lane\d|e\d|box:|…\w)", line)) for line in drawn) == 40 + 12 + 30 + 20
    assert lines(CROWD, height=30)[-1] != "", "no line is wasted at the end"


def test_what_matters_is_not_cut() -> None:
    drawn = lines(CROWD, height=26)
    line_of(drawn, "lane07", "5,000")  # the longest lane of 40
    line_of(drawn, "e05", "open")  # the endpoint that is in trouble
    order = [line.split()[0] for line in drawn if re.match(r" lane\d\d ", line)]
    assert order == sorted(order), "those that are shown stay in their order"


def test_sections_that_find_no_place_are_left_out_whole() -> None:
    assert share_out([5, 5, 5], lines=18) == [6, 6, 6]
    assert share_out([5, 5, 5], lines=14) == [5, 5, 4]
    assert share_out([20, 3, 5], lines=20) == [10, 4, 6], "lines that one does not need go to others"
    assert share_out([5, 5, 5], lines=9) == [5, 4, 0]
    assert share_out([5, 5, 5], lines=3) == [0, 0, 0]
    drawn = lines(CROWD, height=11)
    assert line_of(drawn, "more") == " … 38 more"
    assert not any("ENDPOINT" in line for line in drawn)


def test_columns_go_by_rank_before_a_line_is_too_long() -> None:
    columns = [
        Column("NAME", least=4),
        Column("X", rank=1),
        Column("WAITING", right=True),
        Column("Y", rank=2),
    ]
    section = Section(columns, [["a-long-name", "xx", "1", "yyyy"]])

    def at(width: int) -> list[str]:
        return [line.plain.rstrip() for line in section.draw(width=width)]

    assert at(40) == [" NAME        X  WAITING Y", " a-long-name xx       1 yyyy"]
    assert at(22) == [" NAME  X  WAITING Y", " a-lo… xx       1 yyyy"]
    assert at(18) == [" NAME   X  WAITING", " a-lon… xx       1"]
    assert at(14) == [" NAME  WAITING", " a-lo…       1"]


def test_who_is_there_first_is_told_what_is_missing() -> None:
    empty = status(
        lanes=[], endpoints=[], workers=0, dead=0, delayed=0, held=0, waiting=0, running=0, totals={}
    )
    drawn = lines(Frame(Snapshot(taken_at_s=0, status=empty)), width=80)
    line_of(drawn, "no lane yet")
    line_of(drawn, "no worker process is live; start one: prompt-scheduler worker")
    assert not any("ENDPOINT" in line or "DEAD LETTER" in line for line in drawn)
    assert "enqueued       -/s" in line_of(drawn, "enqueued"), "one look knows no rate"


def test_picture_says_that_redis_is_away_and_keeps_what_it_knew() -> None:
    watch = Watch(snapshot(), interval_s=1)
    watch.miss("no Redis answers at redis://box")
    drawn = lines(watch.frame)
    assert drawn[1].startswith(" Redis is away: no Redis answers at redis://box")
    line_of(drawn, "chat", "1,022")
    assert "Redis is away: no Redis answers at redis://box" in summary(watch.frame)
    assert watch.frame.document()["away"] == "no Redis answers at redis://box"
    watch.add(snapshot(taken_at_s=12.0))
    assert "away" not in " ".join(lines(watch.frame))
    assert watch.frame.document()["away"] is None


def test_title_says_how_to_leave_and_that_the_picture_is_frozen() -> None:
    assert lines(keys=True)[0].endswith("q quits  p freezes")
    assert "q leaves" not in lines()[0], "nobody can type"
    watch = Watch(snapshot(), interval_s=2.5)
    assert watch.freeze() is True
    assert "every 2.5 s  frozen, p resumes" in lines(watch.frame, keys=True)[0]
    watch.add(snapshot(status=status(waiting=9999)))  # it was on its way
    assert "9,999" not in " ".join(lines(watch.frame))
    assert watch.freeze() is False
    assert "frozen, p" not in lines(watch.frame, keys=True)[0]


def test_line_for_a_pipe() -> None:
    assert summary(FRAME)[8:] == (
        "  waiting 1,034  oldest 4.4 s  running 48  delayed 3  held 12  dead 1  workers 2"
        "  enqueued 120/s  done 98.0/s  failed 0.50/s"
    )


def test_document_has_what_the_picture_shows() -> None:
    said = FRAME.document()
    assert said["rates"] == RATES
    assert said["waits"]["lanes"] == {"chat": {"jobs": 12, "median_s": 0.25, "longest_s": 1.0}}
    assert set(said["waits"]["priorities"]) == {"9", "5"}
    assert said["memory"] == {"used_bytes": 3 * 2**20, "max_bytes": 2 * 2**30}
    assert said["dead_letters"][0]["code"] == "request_rejected"
    assert (said["status"]["waiting"], said["workers"][1]["leader"]) == (1034, True)


# Rates


def counted(at_s: float, at_ms: int = NOW_MS, **totals: int) -> Snapshot:
    return snapshot(taken_at_s=at_s, status=status(at_ms=at_ms, totals=totals))


def test_rates_are_what_was_counted_between_two_looks() -> None:
    between = rates(counted(10.0, enqueued=100, done=40), counted(12.0, enqueued=120, done=43, failed=1))
    assert between == {"enqueued": 10.0, "done": 1.5, "failed": 0.5}


@pytest.mark.parametrize("step_ms", [-3_600_000, 0, 3_600_000])
def test_rates_do_not_mind_that_redis_clock_is_set(step_ms: int) -> None:
    between = rates(counted(10.0, done=40), counted(12.0, NOW_MS + step_ms, done=60))
    assert between == {"done": 10.0}


def test_counts_that_began_anew_tell_no_rate() -> None:
    assert rates(counted(10.0, enqueued=100, done=40), counted(11.0, enqueued=101, done=0)) is None
    assert rates(counted(10.0, enqueued=100), counted(11.0)) is None
    assert rates(counted(10.0, done=1), counted(10.0, done=2)) is None, "no time has passed"
    watch = Watch(counted(1.0, done=40), interval_s=1)
    for at_s, done in ((2.0, 50), (3.0, 0), (4.0, 7)):
        watch.add(counted(at_s, done=done))
    assert watch.frame.rates == {"done": 7.0}
    assert watch.frame.trend == ({"done": 10.0}, {"done": 7.0}), "no dip, no peak"


def test_rates_span_the_time_in_which_redis_was_away() -> None:
    watch = Watch(counted(1.0, done=40), interval_s=1)
    watch.miss("gone")
    watch.add(counted(11.0, done=60))
    assert watch.frame.rates == {"done": 2.0}


def test_trend_is_bounded() -> None:
    watch = Watch(counted(0.0, done=0), interval_s=1)
    for at in range(1, 2 * TREND):
        watch.add(counted(float(at), done=at * at))
    assert len(watch.frame.trend) == TREND
    assert watch.frame.trend[-1] == watch.frame.rates


# Waits


def test_waits_are_those_of_first_attempts_that_began_lately() -> None:
    def started(ago_ms: int, waited_ms: int, **fields: Any) -> tuple[str, JobInfo]:
        at_ms = NOW_MS - ago_ms
        times = {"started_at_ms": at_ms, "enqueued_at_ms": at_ms - waited_ms}
        return "chat", letter(**{"attempts": 1, **times, **fields})

    few = [started(10, 100), started(2000, 300), started(3000, 5000), started(5, -20)]
    others = [started(RECENT_MS, 9000), started(10, 9000, attempts=2), started(0, 0, started_at_ms=None)]
    assert waits(few + others, NOW_MS) == {"chat": Waits(4, 0.2, 5.0)}
    assert waits([], NOW_MS) == {}


# Marks


@pytest.mark.parametrize(
    ("amounts", "of", "drawn"),
    [
        ((5, 5), 10, "■■■■■■■■■■"),
        ((1, 1000), 10_000, "■■········"),
        ((), 10, "··········"),
        ((0, 0), 0, "··········"),
        ((7, 7, 7), 10, "■■■■■■■■■■"),
    ],
)
def test_bar_shows_whatever_is_there_and_keeps_its_width(
    amounts: tuple[int, ...], of: int, drawn: str
) -> None:
    assert bar([(amount, "") for amount in amounts], of=of, width=10).plain == drawn


def test_curve_has_its_highest_value_at_the_top() -> None:
    assert curve([0, 1, 2, 4], width=4, style="").plain == "▁▃▅█"
    assert curve([9, 0, 4], width=2, style="").plain == "▁█", "the last ones"
    assert curve([4], width=3, style="").plain == "▁▁█"
    assert curve([0, 0], width=2, style="").plain == "▁▁"
    assert curve([1], width=0, style="").plain == ""


def test_numbers_are_short() -> None:
    numbers = (0, 9_999, 10_000, 99_949, 999_499, 999_500, 1_234_567, 2_000_000_000)
    assert [count(n) for n in numbers] == ["0", "9,999", "10k", "100k", "999k", "1.0M", "1.2M", "2.0G"]
    assert [rate(r) for r in (None, 0, 0.04, 0.949, 0.95, 9.96, 99.4, 99.6, 1234.4)] == [
        *("-", "0", "0.04", "0.95", "0.9", "10.0", "99.4", "100", "1,234")
    ]
    assert (size(2**20), size(1536 * 2**20)) == ("1.0 MiB", "1.5 GiB")


def test_foreign_text_moves_no_cursor() -> None:
    titles, row = Section([Column("M", least=4)], [["a\n\x1b[31m\u202e"]]).draw(width=40)
    assert row.plain.strip() == r"a\n\x1b[31m\u202e"
    assert titles.cell_len == row.cell_len == 40


def test_text_wider_than_its_letters_fits_as_well() -> None:
    drawn = Section([Column("M", least=4)], [[Text("語" * 30)]]).draw(width=20)
    assert drawn[1].cell_len == 20
