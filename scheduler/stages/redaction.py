"""Redacts personal data in an answer while it streams.

Each kind of data has a *rule*: how a match is found, and which end of a text may still grow into one. A
filter gives out everything before that end and holds the rest, so that a match cut across deltas is caught,
and what comes out never depends on where the cuts were.

What is held is bounded: no match is longer than its rule's `reach`, so nothing that lies further back than
that can still change. A stream of digits that never ends is passed on, 64 characters late.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, Protocol

Kind = Literal["email", "phone", "card"]

# Lookbehinds see at most this much of the text already passed on.
_CONTEXT = 2


class _Rule(Protocol):
    """Finds one kind of data."""

    @property
    def replacement(self) -> str: ...

    def idle(self, text: str) -> bool:
        """Whether the text, with nothing held before it, can neither hold a match nor begin one."""
        ...

    def undecided_from(self, text: str, start: int) -> int:
        """Where the suffix begins that may still grow into a match, at or after `start`."""
        ...

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """The first match that begins at or after `start`."""
        ...


# Letters of scripts with spaces between words. In others, an address touches the words around it.
_LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u04ff"


class _Emails:
    """`local@domain.tld`: 1 to 64 characters, up to eight labels of at most 63, and a last one of letters."""

    replacement = "[email]"
    reach = 64 + 1 + 8 * 64 + 24

    _match = re.compile(
        rf"[{_LETTERS}0-9_%+-][{_LETTERS}0-9._%+'-]{{0,63}}"
        rf"@(?:[{_LETTERS}0-9-]{{1,63}}\.){{1,8}}[{_LETTERS}]{{2,24}}"
    )
    _growing = re.compile(rf"[{_LETTERS}0-9._%+'-]{{1,64}}(?:@[{_LETTERS}0-9.-]{{0,536}})?\Z")
    _characters = "".join(re.findall(rf"[{_LETTERS}0-9._%+'@-]", "".join(map(chr, range(0x500)))))

    def idle(self, text: str) -> bool:
        return "@" not in text and text[-1] not in self._characters

    def undecided_from(self, text: str, start: int) -> int:
        run = max(start, len(text) - self.reach, len(text.rstrip(self._characters)))
        at = text.find("@", run)
        if at < 0:
            return max(run, len(text) - 64)
        growing = self._growing.search(text, run)
        return growing.start() if growing else len(text)

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        if text.find("@", start) < 0:
            return None
        match = self._match.search(text, start)
        return match.span() if match else None


# Separators between the groups of a number: space, full stop, hyphen, and their typographic forms.
_SEPARATORS = " .\\-\u00a0\u2009\u202f\u2010\u2011\u2012\u2013"
_SEPARATOR_CHARACTERS = _SEPARATORS.replace("\\", "")
_NO_DIGITS = re.compile(r"[^0-9]+")
_OPENS_NUMBER = re.compile(r"[0-9+(]")

# Not inside a word, a UUID, a decimal fraction or a date; and not before the rest of one.
_NUMBER_STARTS = r"(?<![0-9A-Za-z_])(?<![0-9A-Za-z]-)(?<![0-9][./])"
_NUMBER_ENDS = r"(?![0-9A-Za-z_])(?!-[0-9A-Za-z])(?!\.[0-9])"


class _Numbers:
    """The base of rules for numbers: a match consists of digits, separators, brackets, `+` and `/`."""

    reach = 64

    _characters = "0123456789+()/" + _SEPARATOR_CHARACTERS

    def idle(self, text: str) -> bool:
        return _OPENS_NUMBER.search(text) is None

    def undecided_from(self, text: str, start: int) -> int:
        run = max(start, len(text) - self.reach, len(text.rstrip(self._characters)))
        opening = _OPENS_NUMBER.search(text, run)
        return opening.start() if opening else len(text)


class _Cards(_Numbers):
    """13 to 19 digits, grouped or not, with an issuer's prefix and a valid check digit."""

    replacement = "[card]"

    _candidate = re.compile(rf"{_NUMBER_STARTS}[2-6](?:[{_SEPARATORS}]?[0-9]){{12,18}}")
    _end = re.compile(_NUMBER_ENDS)

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        match = self._candidate.search(text, start)
        while match:
            end = self._card_end(text, match)
            if end:
                return match.start(), end
            match = self._candidate.search(text, match.start() + 1)
        return None

    def _card_end(self, text: str, match: re.Match[str]) -> int | None:
        """Try the longest number first, then shorter ones that end with a group."""
        first, last = match.span()
        for end in range(last, first + 12, -1):
            if not text[end - 1].isdigit() or not self._end.match(text, end):
                continue
            digits = _NO_DIGITS.sub("", text[first:end])
            if len(digits) < 13:
                return None
            if luhn(digits):
                return end
        return None


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it. Source: ISO/IEC 7812-1, annex B."""
    total = sum(map(int, digits[-1::-2]))
    return (total + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


class _Phones(_Numbers):
    """Telephone numbers of 7 to 15 digits with a `+`, or in one of the usual national forms.

    `+49 30 1234567`, `+14155550123`; `(555) 123-4567`, `1-800-555-0199`, `212.555.0100`; `030 1234567`,
    `(020) 7946 0958`, `06 12 34 56 78`, `0171/1234567`. Bare digits are never a telephone number.
    """

    replacement = "[phone]"

    _international = rf"(?<![0-9A-Za-z_+])\+[1-9](?:[{_SEPARATORS}/()]{{0,2}}[0-9]){{6,14}}(?![0-9])"
    _american = (
        rf"(?:(?:{_NUMBER_STARTS}1[{_SEPARATORS}]?|(?<![0-9(]))\([0-9]{{3}}\)[{_SEPARATORS}]?"
        rf"|{_NUMBER_STARTS}(?:1[{_SEPARATORS}])?[0-9]{{3}}[{_SEPARATORS}])"
        rf"[0-9]{{3}}[{_SEPARATORS}][0-9]{{4}}{_NUMBER_ENDS}"
    )
    _trunk = (
        rf"(?:(?<![0-9(])\(0[0-9]{{1,5}}\)[{_SEPARATORS}]?|{_NUMBER_STARTS}0[0-9]{{1,4}}[{_SEPARATORS}/]{{1,3}})"
        rf"[0-9]{{2,8}}(?:[{_SEPARATORS}][0-9]{{2,8}}){{0,4}}{_NUMBER_ENDS}"
    )
    _candidate = re.compile(rf"{_international}|{_american}|{_trunk}")
    # 01.02.2024, 01-02-24, 01 02 2024 (but not the beginning of 06 12 34 56 78), and an American ZIP+4.
    _date_or_zip = re.compile(
        r"[0-9]{1,2}([ ./-])[0-9]{1,2}\1(?:[0-9]{4}(?![0-9])|[0-9]{2}(?![0-9]|\1[0-9]))"
        r"|[0-9]{5}-[0-9]{4}(?![0-9])"
    )
    # +1500000, +1234567.89, +1 500 000
    _signed_number = re.compile(
        rf"\+(?:[0-9]{{7}}|[0-9]{{4,}}\.[0-9]+|[0-9]{{1,2}}(?:[{_SEPARATORS}][0-9]{{3}}){{2}})\Z"
    )

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        match = self._candidate.search(text, start)
        while match:
            if self._is_phone(match):
                return match.span()
            match = self._candidate.search(text, match.start() + 1)
        return None

    def _is_phone(self, match: re.Match[str]) -> bool:
        written = match.group()
        if written[0] == "+":
            return self._signed_number.match(written) is None
        digits = len(_NO_DIGITS.sub("", written))
        return 7 <= digits <= 15 and self._date_or_zip.match(match.string, match.start()) is None


_RULES: dict[Kind, _Rule] = {"email": _Emails(), "card": _Cards(), "phone": _Phones()}


class _RuleFilter:
    """One rule applied to one answer."""

    __slots__ = ("_before", "_held", "_rule")

    def __init__(self, rule: _Rule) -> None:
        self._rule = rule
        self._before = ""
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._held and self._rule.idle(text):
            self._before = (self._before + text[-_CONTEXT:])[-_CONTEXT:]
            return text
        text = self._before + self._held + text
        start = len(self._before)
        return self._advance(text, start, self._rule.undecided_from(text, start))

    def flush(self) -> str:
        if not self._held:
            return ""
        text = self._before + self._held
        return self._advance(text, len(self._before), len(text))

    def _advance(self, text: str, start: int, undecided: int) -> str:
        """Replace the matches that begin before `undecided`, and hold back the rest."""
        given_out: list[str] = []
        while (match := self._rule.find(text, start)) and match[0] < undecided:
            given_out += text[start : match[0]], self._rule.replacement
            start = match[1]
        end = max(start, undecided)
        given_out.append(text[start:end])
        self._before, self._held = text[max(0, end - _CONTEXT) : end], text[end:]
        return "".join(given_out)


class RedactFilter:
    """Replaces e-mail addresses, telephone and card numbers with `[email]`, `[phone]` and `[card]`.

    The result is the same wherever the answer was cut into deltas.
    """

    __slots__ = ("_filters",)

    def __init__(self, kinds: Iterable[Kind]) -> None:
        wanted = set(kinds)
        self._filters = [_RuleFilter(rule) for kind, rule in _RULES.items() if kind in wanted]

    def feed(self, text: str) -> str:
        """Take some text; return what may go on now."""
        for rule_filter in self._filters:
            if not text:
                return ""
            text = rule_filter.feed(text)
        return text

    def flush(self) -> str:
        """Return what was held back."""
        text = ""
        for rule_filter in self._filters:
            text = (rule_filter.feed(text) if text else "") + rule_filter.flush()
        return text


def redact(text: str, kinds: Iterable[Kind]) -> str:
    """Redact a whole text at once."""
    redacting = RedactFilter(kinds)
    return redacting.feed(text) + redacting.flush()
