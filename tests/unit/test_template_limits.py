"""How much a template may make of little."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

import pytest

from scheduler.errors import ConfigError
from scheduler.stages.templates import PromptTemplate

MAX_MEMORY_BYTES = 2**30
REASON = re.compile(r"routes\.chat\.assemble\.template: line \d: it (?!fails)")
DOUBLED = "{% set ns = namespace(x='b') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"

LOOP = "{% set n = namespace(s='x', a=[]) %}{% for i in range(2000) %}"
TWICE = "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"

GREEDY = [
    "{{ 'x'|center(10**9) }}",
    "{{ ['x']|map('center', 10**9)|list }}",
    "{% filter center(10**9) %}x{% endfilter %}",
    "{{ 'x'|attr('center')(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.encode() * 10**9 }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ [0] * 10**9 }}",
    "{{ 'x'|indent(10**9, true) }}",
    "{{ ('x\n' * 1000000)|indent(1000) }}",
    "{{ [1, [2]]|tojson(indent=10**9) }}",
    "{{ [1]|batch(10**9, 0)|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ 1.5|round(10**9, 'ceil') }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.1000000000f' % 1.0 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ (9 ** 999) ** 999 }}",
    "{% set ns = namespace(n=9) %}{% for i in range(50) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set ns = namespace(s='x' * 16) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x' * 16) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    LOOP + "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    TWICE + LOOP + "{% set n.s = twice(n.s) %}{% endfor %}",
    "{{ range(100000)|join('x' * 1000000) }}",
    "{{ ('x' * 1000000).join(['a'] * 100000) }}",
    "{{ range(100000)|map('center', 1000000)|join }}",
    "{{ 'x'.join(range(100000)|map('center', 1000000)) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 100000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 100000) }}",
    "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ ('x ' * 100000)|wordwrap(1, wrapstring='y' * 1000000) }}",
    "{{ ('http://a.b ' * 100000)|urlize(rel='x' * 1000000) }}",
    "{% set b = 'x' * 1000000 %}{{ [b] * 100000 }}",
    "{% set l = ('ab' * 500000)|list %}{{ ([l] * 10000)|sum(start=[])|length }}",
    LOOP + "{% set n.a = n.a + ['x'.center(1000000)] %}{% endfor %}",
    DOUBLED + "{{ ns.x }}",
    DOUBLED + "{{ ns.x ~ '' }}",
    DOUBLED + "{{ '%s' % (ns.x,) }}",
    DOUBLED + "{{ ns.x|tojson }}",
    DOUBLED + "{{ ns.x|join }}",
]


def test_no_template_can_make_gigabytes() -> None:
    """In a process with little memory: where it does not hold, that one ends and not this."""
    program = "from tests.unit.test_template_limits import fail_all; fail_all()"

    def have_little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))

    command = [sys.executable, "-c", program]
    done = subprocess.run(command, preexec_fn=have_little_memory, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def fail_all() -> None:
    """Say which of them do not end with a reason of ours."""
    for source in GREEDY:
        try:
            PromptTemplate(source, setting="routes.chat.assemble.template").render({})
        except ConfigError as error:
            said = str(error)
            if REASON.match(said):
                continue
            print(source, said)  # noqa: T201  the parent reads it
        else:
            print(source)  # noqa: T201  the same


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%-6s|%5.2f' % ('a', 1.5) }}", "a     | 1.50"),
        ("{{ '{:>5}|{a}'.format(1, a=2) }}", "    1|2"),
        ("{{ '{:,}'.format(ms) }} {{ '%d' % ms }}", "1,730,000,000,000 1730000000000"),
        ("{{ 'of 8000000000: %s'|format(ms) }}", "of 8000000000: 1730000000000"),
        ("{{ ms // 1000 + 1 }} {{ 2 ** 10 }} {{ 3.14159|round(2) }}", "1730000001 1024 3.14"),
        ("{{ [1, 2]|join(', ') }} {{ ', '.join(['a', 'b']) }}", "1, 2 a, b"),
        ("{{ 'a-b'|replace('-', '+') }} {{ 'a-b'.replace('-', '+') }}", "a+b a+b"),
        ("{{ ['a', 'b']|map('upper')|join }} {{ ms ~ 'a' ~ [1] }}", "AB 1730000000000a[1]"),
        ("{% set x %}a{{ ms }}{% endset %}{{ x }}{{ none }}{{ true }}", "a1730000000000NoneTrue"),
        ("{{ {'a': [1]}|tojson }} {{ [1, 2, 3]|batch(2)|list }}", '{"a": [1]} [[1, 2], [3]]'),
        ("{{ 'a\nb'|indent }} {{ 'x'|center(5) }} {{ 'a b'|wordwrap(1) }}", "a\n    b   x   a\nb"),
        ("{{ {1730000000000: 'x'}.get(ms) }} {{ none|default(ms) }}", "x None"),
        ("{{ (long ~ long)|upper|trim|indent(4)|length }}", "2000000"),
    ],
)
def test_what_templates_do_goes_on(source: str, text: str) -> None:
    variables = {"ms": 1_730_000_000_000, "long": "p" * 1_000_000}
    assert PromptTemplate(source, setting="t").render(variables) == text


def test_each_rendering_has_an_allowance_of_its_own() -> None:
    template = PromptTemplate("{{ (('x' * 1000000)|upper|lower)|length }}{{ text|length }}", setting="t")
    for _ in range(100):
        assert template.render({"text": "ab"}) == "10000002"
