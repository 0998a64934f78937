"""Where the settings of a process differ from those that hold for the queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def disagreements(own: Mapping[str, str | int], published: Mapping[str, str]) -> Iterator[str]:
    """Where a process' settings differ from those that hold, in words and by the names that users know."""
    for name, value in own.items():
        if (holds := published.get(name, str(value))) != str(value):
            yield f"{_setting(name)} is {_shown(name, holds)}, and {_shown(name, str(value))} here"


def limit_disagreements(own: Mapping[str, str], published: Mapping[str, str]) -> Iterator[str]:
    """The same of the limits of tenants, which are the queue's as well; both as `Limits.fields` has them."""
    for subject in sorted(own.keys() | published.keys()):
        if subject.startswith("t:") and own.get(subject) != published.get(subject):
            holds, here = _limit(published.get(subject)), _limit(own.get(subject))
            yield f"tenants.{subject[2:]} has {holds}, and {here} here"


def _limit(stored: str | None) -> str:
    if stored is None:
        return "no limits of its own"
    requests, tokens = (part if part != "0" else "any" for part in stored.split())
    return f"{requests} requests and {tokens} tokens a minute"


def _setting(name: str) -> str:
    setting, _, route = name.partition(":")
    setting = f"{setting.removesuffix('_ms')}_s" if setting.endswith("_ms") else setting
    return f"routes.{route}.{setting}" if route else setting


def _shown(name: str, value: str) -> str:
    if not name.endswith("_ms") or not value.isdigit():
        return value
    return f"{int(value) / 1000:g}"
