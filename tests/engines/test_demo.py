"""The demo with real engines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def test_demo_with_your_own_llama_server_keeps_its_promises(
    llama_server_binary: Path, tiny_model: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scheduler", "demo", "--engine", "llama"],
        env={**os.environ, "LLAMA_SERVER": str(llama_server_binary), "LLAMA_MODEL": str(tiny_model)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 prompts sent, 200 answered" in done.stdout
    assert "FAIL" not in done.stdout
    left = subprocess.run(["pgrep", "-f", f"{llama_server_binary} .*--alias tiny -c 16384"], check=False)
    assert left.returncode == 1, "no llama-server is left behind"


@pytest.mark.timeout(420)
def test_demo_with_vllm_keeps_its_promises(vllm_python: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scheduler", "demo", "--engine", "vllm"],
        env={**os.environ, "VLLM_PYTHON": str(vllm_python)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 prompts sent, 200 answered" in done.stdout
    assert "FAIL" not in done.stdout
    left = subprocess.run(["pgrep", "-f", "vllm.entrypoints.* --model .*prompt-scheduler-demo-"], check=False)
    assert left.returncode == 1, "no vLLM is left behind"
