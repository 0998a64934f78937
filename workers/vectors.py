"""Vectors as bytes: 32-bit floats, little-endian, as OpenAI's `encoding_format = "base64"` has them."""

from __future__ import annotations

import binascii
import math
import sys
from array import array
from collections.abc import Sequence

from workers.embedding import FLOAT_BYTES

_IS_BIG = sys.byteorder == "big"


def to_bytes(vector: Sequence[float]) -> bytes:
    """The bytes of a vector.

    Raises:
        TypeError, OverflowError: a component is no number that fits 32 bits.
    """
    floats = array("f", vector)
    if _IS_BIG:
        floats.byteswap()
    return floats.tobytes()


def to_floats(data: bytes) -> list[float]:
    """The components of a vector.

    Raises:
        ValueError: the bytes are no whole number of floats.
    """
    floats = array("f")
    floats.frombytes(data)
    if _IS_BIG:
        floats.byteswap()
    return floats.tolist()


def read_vector(value: object) -> bytes:
    """A vector that an engine sent, in base64 or as a list of numbers.

    Raises:
        ValueError, TypeError: it is no vector of finite numbers.
    """
    if isinstance(value, str):
        data = binascii.a2b_base64(value, strict_mode=True)
    elif isinstance(value, list):
        data = _from_numbers(value)
    else:
        raise TypeError("neither base64 nor a list")
    if not data or len(data) % FLOAT_BYTES:
        raise ValueError("no whole number of floats")
    # A sum is finite only if each component is, and takes a tenth of the time.
    if not math.isfinite(sum(to_floats(data))):
        raise ValueError("not finite")
    return data


def _from_numbers(numbers: list[object]) -> bytes:
    if any(isinstance(number, bool) for number in numbers):
        raise TypeError("a truth value is no number")
    try:
        return to_bytes(numbers)  # type: ignore[arg-type]  # raises for what is no number
    except OverflowError:
        raise ValueError("beyond 32 bits") from None
