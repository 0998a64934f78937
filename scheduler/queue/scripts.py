"""Loads the Lua scripts, and runs them by their hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from scheduler.queue.keys import lua_keys
from scheduler.queue.rows import in_order
from scheduler.queue.shared import lua_constants

Argument: TypeAlias = str | bytes | int
Call: TypeAlias = tuple[str, Sequence[Argument]]

_INCLUDE = re.compile(r'^-- @include "(?P<name>[\w/]+)"$', re.MULTILINE)
_DEFINITION = re.compile(
    r"^local (?:function (?P<function>\w+)\((?:.* end|.*\n(?:.*\n)*?end)|(?P<constant>[A-Z_]+) = .*[^{\n])\n",
    re.MULTILINE,
)
_NUMBER = re.compile(r"^local (?P<name>[A-Z][A-Z_]*) = (?P<value>\d+)(?: --[^\n]*)?\n", re.MULTILINE)
_NUMBER_NAME = re.compile(r"\b[A-Z][A-Z_]*\b")
_SHEBANG = re.compile(r"\A#!lua[^\n]*\n")

NAMES = (
    "configure",
    "enqueue",
    "claim",
    "renew",
    "forget_worker",
    "share_endpoints",
    "take_permit",
    "publish",
    "retry",
    "finish",
    "cancel",
    "reprioritize",
    "reschedule",
    "forgive",
    "pause",
    "resume",
    "requeue",
    "release",
    "delete",
    "discard",
    "tick",
    "tend",
    "purge",
    "purge_delayed",
    "replay",
    "position",
    "audit",
)


@cache
def source(name: str, *, flags: bool = True, db: int = 0) -> str:
    """The text of a script as the server gets it: with its includes, keys, channels and shared numbers.

    It has only what it uses of its includes, because Lua creates every function again in each call.

    Without `flags` the `#!lua` line is left out, for a server that does not know it.
    """
    text = _read(name)
    first_line = _SHEBANG.match(text)
    whole = _INCLUDE.sub(lambda match: _read(match["name"]).rstrip(), _SHEBANG.sub("", text))
    body = _used(_numbers_inlined(lua_constants() + in_order(whole)))
    head = first_line.group() if first_line and flags else ""
    return head + lua_keys(body, db)


def _numbers_inlined(body: str) -> str:
    """The same with numbers in place of their names: Lua allows 200 local names."""
    numbers = {match["name"]: match["value"] for match in _NUMBER.finditer(body)}
    return _NUMBER_NAME.sub(lambda name: numbers.get(name.group(), name.group()), _NUMBER.sub("", body))


def _used(body: str) -> str:
    """The same without the top-level functions and constants that it does not use."""
    definitions = {_defined(match): match.group() for match in _DEFINITION.finditer(body)}
    reached: set[str] = set()
    named = _words(_DEFINITION.sub("", body)) & definitions.keys()
    while named:
        name = named.pop()
        reached.add(name)
        named |= (_words(definitions[name]) & definitions.keys()) - reached
    return _DEFINITION.sub(lambda match: match.group() if _defined(match) in reached else "", body)


def _defined(match: re.Match[str]) -> str:
    return match["function"] or match["constant"]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"--.*", "", text)))


def _read(name: str) -> str:
    return resources.files("scheduler.queue").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


class Scripts:
    """The scripts of one queue on one Redis, in the database `db`."""

    def __init__(self, redis: Redis, prefix: str, *, flags: bool = True, db: int = 0) -> None:
        self._redis = redis
        self._prefix = prefix
        self._sources = {name: source(name, flags=flags, db=db) for name in NAMES}
        self._shas = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in self._sources.items()
        }

    async def load(self) -> None:
        """Send all scripts to the server, in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for text in self._sources.values():
                pipe.script_load(text)
            await pipe.execute()

    async def run(self, name: str, *args: Argument) -> Any:
        """Run one script. If the server does not have it, load all scripts and send this one in full.

        Not by its hash again: SCRIPT FLUSH or a failover may lose the scripts at any moment.
        """
        try:
            return await self._redis.execute_command(*self._by_hash(name, args))
        except NoScriptError:
            await self.load()
            return await self._redis.execute_command(*self._in_full(name, args))

    def _by_hash(self, name: str, args: Sequence[Argument]) -> tuple[Argument, ...]:
        return ("EVALSHA", self._shas[name], 1, self._prefix, *args)

    def _in_full(self, name: str, args: Sequence[Argument]) -> tuple[Argument, ...]:
        return ("EVAL", self._sources[name], 1, self._prefix, *args)

    async def run_all(self, calls: Sequence[Call]) -> list[Any]:
        """Run several scripts in order, in one round trip.

        Raises:
            redis.exceptions.RedisError: the first error among the replies.
        """
        replies = await self.run_each(calls)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    async def run_each(self, calls: Sequence[Call]) -> list[Any]:
        """The same, with an error in place of the reply of a script that failed.

        If the server lacked one, all are sent again: every script may be repeated.
        """
        replies = await self._send([self._by_hash(*call) for call in calls])
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self.load()
            replies = await self._send([self._in_full(*call) for call in calls])
        return replies

    async def _send(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute(raise_on_error=False)
