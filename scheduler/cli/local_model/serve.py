"""Serves a GGUF file over HTTP on loopback with the server in the package `xllamacpp`, until it is killed.

    usage: python -I -S serve.py PACKAGE_FOLDER MODEL ALIAS SLOTS CONTEXT ADDRESS_FILE

The kernel picks the port; `ADDRESS_FILE` gets the base URL once the server listens. PACKAGE_FOLDER is where
the package was unpacked. This file is run by its path, in an interpreter without site packages, so it imports
only the standard library and that package.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

CACHE_MIB = 512
"""Memory for prefixes of former prompts; llama.cpp's own default is 8 GiB."""
MAX_TOKENS = 256
"""The length of an answer whose request sets none."""
MAX_THREADS = 8
TEMPERATURE = 0.2
TOP_P = 0.9
REPEAT_PENALTY = 1.1
"""Small models repeat themselves."""


def serve(package: str, model: str, alias: str, slots: int, context: int) -> Any:
    """Start the server. `context` is in tokens, for each of the slots."""
    sys.path.insert(0, package)
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = model
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.n_predict = MAX_TOKENS
    params.cache_prompt = True
    params.cache_ram_mib = CACHE_MIB
    params.cpuparams.n_threads = min(os.cpu_count() or 1, MAX_THREADS)
    params.cpuparams.poll = 0  # threads that spin would starve their neighbours
    params.sampling.temp = TEMPERATURE
    params.sampling.top_p = TOP_P
    params.sampling.penalty_repeat = REPEAT_PENALTY
    params.endpoint_metrics = True
    params.ui = False
    return llama.Server(params)


def main(arguments: list[str]) -> None:
    """Serve until a signal ends the process."""
    package, model, alias, slots, context, address_file = arguments
    server = serve(package, model, alias, int(slots), int(context))
    unfinished = Path(f"{address_file}.new")
    unfinished.write_text(server.listening_address, encoding="utf-8")
    unfinished.replace(address_file)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
