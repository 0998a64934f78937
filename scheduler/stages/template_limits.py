"""Limits the text a template may produce: a Jinja2 sandbox that charges before it renders.

A few characters of a template can ask for gigabytes: `"%1000000000d" % 1`, `x|indent(10**9)`, a text that is
doubled in a loop. What makes text or lists is charged to one allowance for each rendering, before it is made
where its size can be larger than what goes in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARS = 2_000_000
MAX_MADE_CHARS = 64_000_000
MAX_RANGE_ITEMS = 100_000
_MAX_EXPONENT = 1_000
_MAX_BITS = 16_384
_OBJECT_CHARS = 100
_CONTAINER_CHARS = 50

# These convert any value to text; some write one character as several.
_TEXT_FILTERS = {
    **dict.fromkeys(("capitalize", "center", "indent", "lower", "safe", "string", "striptags", "title"), 1),
    **dict.fromkeys(("trim", "truncate", "upper", "wordcount", "wordwrap"), 1),
    **dict.fromkeys(("e", "escape", "forceescape"), 6),
    **dict.fromkeys(("pprint", "tojson", "urlize"), 8),
    **dict.fromkeys(("urlencode", "xmlattr"), 12),
}

_WITH_A_WIDTH = frozenset({"batch", "center", "indent", "slice", "tojson", "truncate", "wordwrap"})

_NUMBERS = re.compile(r"\d+")
# Widths in a format: `%(name)-10.3f`, `{name:>10}`. Below, widths given as values: `%*d`, `{:{}}`.
_SPECS = re.compile(r"%(?:\([^)]*\))?[-+ #\d.*]*|\{[^{}:]*:[^{}]*")
_WIDTH_IS_A_VALUE = re.compile(r"%(?:\([^)]*\))?[-+ #\d.]*\*|\{[^{}]*\{")


class _Ranges:
    """`range` for templates: all ranges of one rendering share `MAX_RANGE_ITEMS`, nested ones as well."""

    def __init__(self) -> None:
        self.left = MAX_RANGE_ITEMS

    def __call__(self, *bounds: int) -> range:
        items = range(*bounds)
        self.left -= len(items)
        if self.left < 0:
            raise OverflowError(f"its ranges have more than {MAX_RANGE_ITEMS:,} items in all")
        return items


class _CountingCode(CodeGenerator):
    """Jinja2's compiler, except that `~` becomes a call of our own function."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  Jinja2's name
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class CountingEnvironment(ImmutableSandboxedEnvironment):
    """Call `start` before each rendering. Exceeding a limit raises an `OverflowError` that names it."""

    code_generator_class = _CountingCode
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        # Without the optimizer, which would run constant expressions at compile time.
        super().__init__(optimized=False, finalize=self.text, **options)
        self._left = MAX_MADE_CHARS
        self._ranges = _Ranges()
        self.globals["range"] = self._ranges
        del self.globals["lipsum"]  # no prompt needs it, and its length is unbounded
        self.filters = {name: self._counting(name, made) for name, made in self.filters.items()}

    def start(self) -> None:
        """Give the next rendering its allowance."""
        self._left = MAX_MADE_CHARS
        self._ranges.left = MAX_RANGE_ITEMS

    def take(self, chars: int) -> None:
        """Charge for text, or for as many items of a list."""
        self._left -= chars
        if self._left < 0:
            raise OverflowError(f"it makes more than {MAX_MADE_CHARS:,} characters of text on its way")

    def text(self, value: Any) -> Any:
        """A value as it is put out."""
        if isinstance(value, str):
            return value
        self.take(_size(value))
        return str(value)

    def concat(self, pieces: Iterable[str]) -> str:
        """Pieces of text, one after the other; a captured block is put together here."""
        kept = []
        for piece in pieces:
            self.take(len(piece))
            kept.append(piece)
        return "".join(kept)

    def concatenated(self, values: Iterable[Any]) -> str:
        """The operator `~`."""
        return self.concat(self.text(value) for value in values)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator whose output can be far longer than its operands."""
        if isinstance(left, int) and isinstance(right, int):
            _check_number(operator, left, right)
        elif operator == "*":
            self._check_repeat(left, right)
        elif operator == "%" and isinstance(left, str | bytes):
            self.take(_formatted_size(left, right))
        elif operator == "+" and isinstance(left, str | bytes | list | tuple):
            self.take(len(left) + (len(right) if hasattr(right, "__len__") else 0))
        return super().call_binop(context, operator, left, right)

    def _check_repeat(self, left: Any, right: Any) -> None:
        if isinstance(left, int):
            left, right = right, left
        if not isinstance(right, int) or not hasattr(left, "__len__"):
            return
        if len(left) * right > MAX_RENDERED_CHARS:
            raise OverflowError(f"it repeats something to more than {MAX_RENDERED_CHARS:,} items")
        self.take(_size(left) * max(0, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as there
        """A call in a template; methods of strings and numbers are counted."""
        self = __self
        owner = getattr(__obj, "__self__", None)
        formats = getattr(__obj, "__wrapped__", None)  # str.format, as the sandbox has it
        if isinstance(formats, BuiltinMethodType):
            self.take(_formatted_size(str(formats.__self__), (args, kwargs)))
        elif isinstance(__obj, BuiltinMethodType) and isinstance(owner, str | bytes | int):
            _check_arguments([*args, *kwargs.values()])
            args = self._count_method(owner, __obj.__name__, args)
        return self._counted(super().call(__context, __obj, *args, **kwargs))

    def _count_method(self, owner: str | bytes | int, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Charge for what a method can make; its arguments, an iterator among them as a list."""
        if isinstance(owner, int):
            return args
        if name == "join" and args:
            items = list(args[0])
            self.take(_size(items) + len(items) * len(owner))
            return (items, *args[1:])
        if name == "replace":
            self.take(_replaced_size(owner, *args[:2]))
        elif name == "expandtabs":
            self.take(len(owner) * (1 + (args[0] if args and isinstance(args[0], int) else 8)))
        elif name == "translate":
            self.take(len(owner) * (1 + _size(args[0] if args else None)))
        return args

    def _counting(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that charges for what it makes."""
        passed = 1 if hasattr(made, "jinja_pass_arg") else 0

        @wraps(made)
        def counting(*args: Any, **kwargs: Any) -> Any:
            before, value, rest = args[:passed], args[passed], args[passed + 1 :]
            if name == "join":
                value = list(value)
            self._count_filter(name, value, rest, kwargs)
            return self._counted(made(*before, value, *rest, **kwargs))

        return counting

    def _count_filter(self, name: str, value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*rest, *kwargs.values()]
        if name in _WITH_A_WIDTH:
            _check_arguments(given)
        if name == "format":
            self.take(_formatted_size(str(value), (rest, kwargs)))
        elif name == "join":
            self.take(_size(value) + len(value) * sum(len(one) for one in given if isinstance(one, str)))
        elif name == "replace" and len(given) > 1:
            self.take(_replaced_size(str(value), *given[:2]))
        elif name in ("batch", "slice"):
            self.take(sum(_OBJECT_CHARS * one for one in given if isinstance(one, int)))
        elif name == "round" and any(isinstance(one, int) and abs(one) > _MAX_EXPONENT for one in given):
            raise OverflowError(f"it rounds to more than {_MAX_EXPONENT:,} places")
        elif name in _TEXT_FILTERS:
            self.take(_size(value) * _TEXT_FILTERS[name])
            if name in ("indent", "wordwrap", "tojson", "urlize"):  # something for each line, item or link
                each = sum(
                    one if isinstance(one, int) else len(one) for one in given if isinstance(one, str | int)
                )
                lines = value.count("\n") + 1 if name == "indent" and isinstance(value, str) else _size(value)
                self.take(lines * each)

    def _counted(self, result: Any) -> Any:
        if isinstance(result, str | bytes | list | tuple | dict):
            self.take(len(result))
        return result


def _check_number(operator: str, left: int, right: int) -> None:
    if operator == "**":
        if abs(right) > _MAX_EXPONENT:
            raise OverflowError(f"it raises to the power of {right:,}")
        bits = left.bit_length() * abs(right)
    else:
        bits = left.bit_length() + right.bit_length()
    if bits > _MAX_BITS:
        raise OverflowError(f"it makes a number of more than {_MAX_BITS:,} bits")


def _check_arguments(given: Iterable[Any]) -> None:
    for one in given:
        if isinstance(one, int) and abs(one) > MAX_RENDERED_CHARS:
            raise OverflowError(f"it gives a number beyond {MAX_RENDERED_CHARS:,} to a filter or a method")


def _replaced_size(text: str | bytes, old: Any = "", new: Any = "") -> int:
    if not isinstance(old, type(text)) or not isinstance(new, str | bytes):
        return len(text)  # it fails
    return len(text) + text.count(old) * len(new)  # type: ignore[arg-type]  # of one type


def _formatted_size(pattern: str | bytes, values: Any) -> int:
    """At most how long a format comes out: its widths, and the values for each of its places."""
    shown = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    numbers = [int(digits[:9]) for spec in _SPECS.findall(shown) for digits in _NUMBERS.findall(spec)]
    places = shown.count("%") + shown.count("{")
    widths = sum(numbers) + (places * _widest(values) if _WIDTH_IS_A_VALUE.search(shown) else 0)
    if widths > MAX_RENDERED_CHARS:
        raise OverflowError(f"it asks for widths of more than {MAX_RENDERED_CHARS:,} characters")
    return len(shown) + widths + places * _size(values)


def _widest(values: Any) -> int:
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        return max((_widest(one) for one in values), default=0)
    return min(abs(values), 10**12) if isinstance(values, int) else 0


def _size(value: Any) -> int:
    """About how many characters a value has as text. Stops counting where it is too much anyway."""
    waiting, size = [value], 0
    while waiting and size <= MAX_MADE_CHARS:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            size += len(one) + 4
        elif isinstance(one, bool) or one is None:
            size += 5
        elif isinstance(one, int):
            size += one.bit_length() // 3 + 2
        elif isinstance(one, Mapping):
            size += _CONTAINER_CHARS
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            size += _CONTAINER_CHARS
            waiting += one
        else:
            size += _OBJECT_CHARS
    return size
