"""Keeps vectors of texts in an SQLite file, so that no text is embedded twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

KEEP_DAYS = 30
"""How long a vector is kept that nobody has asked for."""

_DAY_S = 86_400
_AT_ONCE = 500  # SQLite bounds the parameters of a statement

_TABLE = """
CREATE TABLE IF NOT EXISTS vectors (
    model TEXT NOT NULL, digest BLOB NOT NULL, vector BLOB NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY (model, digest)
) WITHOUT ROWID
"""


def digest_of(text: str) -> bytes:
    """What a text is known by."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


class VectorStore:
    """Vectors by model and by the digest of their text. Threads and processes may share a file.

    Without a path they are kept in memory. `clock` gives the seconds since the epoch.

    Raises:
        sqlite3.Error: the file cannot be opened, or is no such file.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        where = ":memory:" if path is None else path
        self._database = sqlite3.connect(where, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(_TABLE)
        except sqlite3.Error:
            self._database.close()
            raise

    def get(self, model: str, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        """The vectors that are known, by digest."""
        found: dict[bytes, bytes] = {}
        today = int(self._clock()) // _DAY_S
        with self._lock:
            for at in range(0, len(digests), _AT_ONCE):
                some = digests[at : at + _AT_ONCE]
                which = f"model = ? AND digest IN ({','.join('?' * len(some))})"
                found.update(
                    self._database.execute(
                        f"SELECT digest, vector FROM vectors WHERE {which}",  # noqa: S608  only marks
                        (model, *some),
                    )
                )
                self._database.execute(
                    f"UPDATE vectors SET used = ? WHERE used < ? AND {which}",  # noqa: S608  only marks
                    (today, today, model, *some),
                )
        return found

    def put(self, model: str, vectors: Mapping[bytes, bytes]) -> None:
        """Keep vectors, and drop those that nobody has asked for in `KEEP_DAYS`."""
        today = int(self._clock()) // _DAY_S
        rows = [(model, digest, vector, today) for digest, vector in vectors.items()]
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
            self._database.execute("DELETE FROM vectors WHERE used < ?", (today - KEEP_DAYS,))
            self._database.execute("COMMIT")

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._database.close()
