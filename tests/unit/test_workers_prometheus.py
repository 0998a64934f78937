"""Single gauges out of a server's metrics."""

from __future__ import annotations

import pytest

from workers.prometheus import gauge


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        (b"running 3\n", 3.0),
        (b"running 3", 3.0),
        (b"# TYPE running gauge\nrunning 0\n", 0.0),
        (b'running{engine="0"} 1.0\nrunning{engine="1"} 2.0\n', 3.0),
        (b'running{model="a } b"} 1.5e+01\n', 15.0),
        (b"running 3 1395066363000\n", 3.0),
        (b"running_now 3\nnot_running 4\n", None),
        (b'running_by{reason="running 7"} 3\n', None),
        (b"running many\n", None),
        (b"running NaN\n", None),
        (b"running 1-2\n", None),
        (b"", None),
        (b"\xff\x00", None),
    ],
)
def test_gauge_is_summed_over_its_label_sets(metrics: bytes, value: float | None) -> None:
    assert gauge(metrics, "running") == value
