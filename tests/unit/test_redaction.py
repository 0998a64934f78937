from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.stages.redaction import Kind, RedactFilter, luhn, redact

ALL: tuple[Kind, ...] = ("email", "phone", "card")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail john.doe+x@example.co.uk.", "mail [email]."),
        ("<joe@x.org>, 'ann@y.org'", "<[email]>, '[email]'"),
        ("mailto:joe@sub.example.com?subject=x", "mailto:[email]?subject=x"),
        ("jürgen@müller.de", "[email]"),
        ("请联系john@example.com谢谢", "请联系[email]谢谢"),
        ("john@example.com1", "[email]1"),
        ("a" * 80 + "@example.com", "a" * 16 + "[email]"),
    ],
)
def test_email_addresses_are_replaced(text: str, redacted: str) -> None:
    assert redact(text, ["email"]) == redacted


@pytest.mark.parametrize("text", ["a@b", "@name", "x @ y.com", "user@localhost", "1@2.3", "@@@", "a@b..com"])
def test_what_only_looks_like_an_address_stays(text: str) -> None:
    assert redact(text, ALL) == text


@pytest.mark.parametrize(
    "number",
    [
        "+49 30 1234567",
        "+49 (0)30 123456",
        "+4930123456",
        "+14155550123",
        "+1 (415) 555-0123",
        "+1.4155550123",
        "+33 6 12 34 56 78",
        "+44\u201120\u20117946\u20110958",
        "+91 98765 43210",
        "(415) 555-0123",
        "(415)555-0123",
        "1-800-555-0199",
        "1 (800) 555-0199",
        "212.555.0100",
        "123-456-7890",
        "030 1234567",
        "(020) 7946 0958",
        "06 12 34 56 78",
        "06.12.34.56.78",
        "0171/1234567",
        "0171 - 1234567",
        "07700 900123",
        "03-1234-5678",
    ],
)
def test_telephone_numbers_are_replaced(number: str) -> None:
    assert redact(f"call {number}, or tel:{number}.", ["phone"]) == "call [phone], or tel:[phone]."


@pytest.mark.parametrize(
    "text",
    [
        "in 1999-2024, 2020 2021 2022 2023",
        "550e8400-e29b-41d4-a716-446655440000",
        "12345678-1234-1234-1234-123456789012",
        "2024-05-06 12:30:00+02:00",
        "01.02.2024 12:30",
        "01-02-24, 01/02/2024",
        "$1,234,567.89 or 1 234 567 or 123.456.789,00",
        "+1500000, +1 500 000, +1234567.89, 3 + 12345678",
        "192.168.001.100",
        "1234567890, 1700000000000",
        "3.14159265358979, 0.5105105105105100",
        "01234-5678",
        "978-0-306-40615-7",
        "200-1000",
        "21-555-123-4567",
        "+1234567890123456",
        "x+14155550123",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert redact(text, ALL) == text


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("4111 1111 1111 1111", "[card]"),
        ("4111-1111-1111-1111.", "[card]."),
        ("pay 4111111111111111!", "pay [card]!"),
        ("378282246310005", "[card]"),
        ("3782 822463 10005", "[card]"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("12 4111 1111 1111 1111", "12 [card]"),
        ("卡号4111111111111111。", "卡号[card]。"),
        ("4111 1111 1111 1111 5500 0000 0000 0004", "[card] [card]"),
    ],
)
def test_card_numbers_are_replaced(text: str, redacted: str) -> None:
    assert redact(text, ["card"]) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",
        "1111111111111117",
        "41111111111111110000000",
        "a4111111111111111",
        "4111 1111 1111",
    ],
)
def test_a_number_that_is_no_card_stays(text: str) -> None:
    assert redact(text, ["card"]) == text


def test_luhn_tells_a_right_check_digit() -> None:
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")


def test_only_the_kinds_asked_for_are_replaced() -> None:
    text = "a@b.org, +49 30 1234567, 4111 1111 1111 1111"
    assert redact(text, ["phone"]) == "a@b.org, [phone], 4111 1111 1111 1111"
    assert redact(text, ALL) == "[email], [phone], [card]"
    assert redact(text, []) == text


# Digits and separators that make and break matches, and whole data to be cut somewhere.
PIECES = st.lists(
    st.one_of(
        st.text(alphabet="0123456789 .-+()/@abé_\u2011\n", max_size=12),
        st.sampled_from(
            [
                "4111 1111 1111 1111",
                "joe.x@mail.example.org",
                "+49 30 1234567",
                "(415) 555-0123",
                "06 12 34 56 78",
            ]
        ),
        st.sampled_from(["a" * 70, "1" * 70, "@" * 5, "a." * 40, "0 " * 40, " ", "01.02.2024"]),
    ),
    max_size=8,
).map("".join)


def _cut(text: str, seed: int) -> list[str]:
    choose = random.Random(seed)
    cuts = sorted(choose.randint(0, len(text)) for _ in range(choose.randint(0, len(text))))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(max_examples=400, deadline=None)
@given(text=PIECES, seed=st.integers(0, 2**32), kinds=st.sets(st.sampled_from(ALL)))
@example(text="see joe.x@mail.example.org", seed=0, kinds={"email"})
def test_where_an_answer_is_cut_changes_nothing(text: str, seed: int, kinds: set[Kind]) -> None:
    redacting = RedactFilter(kinds)
    streamed = "".join(redacting.feed(delta) for delta in _cut(text, seed)) + redacting.flush()
    assert streamed == redact(text, kinds)


@settings(max_examples=200, deadline=None)
@given(text=PIECES)
def test_cutting_after_each_character_changes_nothing(text: str) -> None:
    redacting = RedactFilter(ALL)
    assert "".join(map(redacting.feed, text)) + redacting.flush() == redact(text, ALL)


@pytest.mark.parametrize("endless", ["7", "0 ", "+1", "(", "4-", "a", "a.", "@", "a@b.c", "x@y@"])
def test_what_is_held_back_is_bounded(endless: str) -> None:
    redacting = RedactFilter(ALL)
    for _ in range(2_000):
        redacting.feed(endless)
    assert len(redacting.flush()) <= 613 + 64 + 64


def test_digits_without_end_come_out_64_late_at_most() -> None:
    redacting = RedactFilter(["phone"])
    given_out = [len(redacting.feed("7")) for _ in range(1_000)]
    assert given_out == [0] * 64 + [1] * 936


def test_prose_is_not_held_back() -> None:
    redacting = RedactFilter(["phone", "card"])
    for delta in ("The ", "year", " - ", "was", " good", ", ", "and", "."):
        assert redacting.feed(delta) == delta


def test_of_an_answer_without_addresses_only_the_last_word_is_held_back() -> None:
    redacting = RedactFilter(["email"])
    assert [redacting.feed(delta) for delta in ("The ", "sky", " is", " blue", ".\n")] == [
        "The ",
        "",
        "sky ",
        "is ",
        "blue.\n",
    ]


def card_of(start: str, length: int) -> str:
    """A number that begins so, with the check digit that it needs."""
    body = start.ljust(length - 1, "7")
    return next(body + digit for digit in "0123456789" if luhn(body + digit))


@pytest.mark.parametrize("start", "23456")
@pytest.mark.parametrize("length", [13, 19])
def test_cards_of_all_lengths_and_issuers_are_found(start: str, length: int) -> None:
    assert redact(f"card {card_of(start, length)}.", ["card"]) == "card [card]."


@pytest.mark.parametrize(("start", "length"), [("4", 12), ("4", 20), ("1", 16), ("7", 16)])
def test_numbers_that_no_issuer_gives_stay(start: str, length: int) -> None:
    text = f"number {card_of(start, length)}."
    assert redact(text, ["card"]) == text


@pytest.mark.parametrize(
    ("number", "is_phone"),
    [("030 123", False), ("030 1234", True), ("030 12345678 1234", True), ("030 12345678 12345", False)],
)
def test_a_telephone_number_has_seven_to_fifteen_digits(number: str, is_phone: bool) -> None:
    assert redact(f"call {number}.", ["phone"]) == f"call {'[phone]' if is_phone else number}."
