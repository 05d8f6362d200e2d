"""Hostile templates: each would run for hours, take all memory or leave the sandbox."""

import pytest

from engine.interface.errors import RequestError
from server.text import ChatTemplate


def grow(start: str, step: str, end: str = "") -> str:
    """Write a template that doubles a value 64 times."""
    return (
        "{% set ns = namespace(x=" + start + ") %}{% for i in range(64) %}{% set ns.x = " + step + " %}"
        "{% endfor %}{{ ns.x " + end + " }}"
    )


BIG = "{% set big = 'a' * 1000000 %}"
LOOP = "{% for i in range(100000) %}"
END = "{% endfor %}"
ENDLESS = {
    "nested loops": LOOP + LOOP + END + END,
    "nested loops that print": LOOP + LOOP + "x" * 100 + END + END,
    "filtered loop": LOOP + "{% for j in range(100000) if false %}{% endfor %}" + END,
    "huge range": "{% for i in range(10 ** 12) %}x{% endfor %}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(64) }}",
    "loop tree": "{% for x in [1] recursive %}{% if loop.depth < 64 %}{{ loop([1, 1]) }}{% endif %}" + END,
    "filters in a loop": LOOP + "{{ range(100000) | map('string') | join | length }}" + END,
    "searches in a loop": BIG + LOOP + "{% if 'b' in big %}{% endif %}" + END,
    "slices in a loop": BIG + LOOP + "{% set x = big[1:] %}" + END,
}
GROWING = {
    "tilde": grow("'a'", "ns.x ~ ns.x"),
    "plus": grow("'a'", "ns.x + ns.x"),
    "format filter": grow("'a'", "'%s%s' | format(ns.x, ns.x)"),
    "format operator": grow("'a'", "'%s%s' % (ns.x, ns.x)"),
    "format method": grow("'a'", "'{0}{0}'.format(ns.x)"),
    "lists": grow("[1]", "[ns.x, ns.x]"),
    "tuples": grow("[1]", "(ns.x, ns.x)", "| string"),
    "dicts": grow("[1]", "{'a': ns.x, 'b': ns.x}", "| tojson"),
    "dict calls": grow("[1]", "dict(a=ns.x, b=ns.x)"),
    "integers": grow("10", "ns.x * ns.x"),
    "string times": "{{ 'a' * 10 ** 12 }}",
    "times string": "{{ 10 ** 12 * 'a' }}",
    "list times": "{{ [1] * 10 ** 12 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "wide percent": "{{ '%1000000000d' % 1 }}",
    "starred percent": "{{ '%*d' % (10 ** 9, 1) }}",
    "wide format filter": "{{ '%1000000000d' | format(1) }}",
    "many fields": BIG + "{{ ('%(a)s' * 100000) % {'a': big} }}",
    "many fields of a filter": BIG + "{{ ('%(a)s' * 100000) | format(a=big) }}",
    "many fields of a method": BIG + "{{ ('{0}' * 100000).format(big) }}",
    "wide format": "{{ '{:1000000000}'.format(1) }}",
    "nested width": "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
    "wide date": "{{ strftime_now('%1000000000Y') }}",
    "padding": "{{ 'a'.ljust(10 ** 12) }}",
    "zeros": "{{ 'a'.zfill(10 ** 12) }}",
    "tabs": r"{{ '\t'.expandtabs(10 ** 12) }}",
    "bytes of an integer": "{{ (1).to_bytes(10 ** 12, 'big') }}",
    "indent": r"{{ 'a\nb' | indent(10 ** 12) }}",
    "precision": "{{ 1.5 | round(10 ** 12, 'ceil') }}",
    "json indent": "{{ messages | tojson(indent=10 ** 12) }}",
    "replace": BIG + "{{ big.replace('a', big) }}",
    "replace filter": BIG + "{{ big | replace('a', big) }}",
    "join": BIG + "{{ big.join(big) }}",
    "join filter": BIG + "{{ big | join(big) }}",
    "block": BIG + "{% set x %}" + LOOP + "{{ big }}" + END + "{% endset %}",
    "text of the template": LOOP + "x" * 1000 + END,
}
ESCAPING = {
    "class": "{{ ''.__class__.__mro__ }}",
    "bound format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "append": "{{ messages.append(1) }}",
    "namespace": "{{ namespace(_Namespace__attrs=1) }}",
    "namespace item": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "lipsum": "{{ lipsum.__globals__ }}",
}


@pytest.mark.parametrize(
    "source",
    [*ENDLESS.values(), *GROWING.values(), *ESCAPING.values()],
    ids=[*ENDLESS, *GROWING, *ESCAPING],
)
def test_hostile_template_ends_as_a_bad_request(source):
    with pytest.raises(RequestError, match="cannot render the messages"):
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])


def test_what_is_hidden_prints_nothing():
    source = "{{ raise_exception.__globals__ }}{{ '{0.__class__}'.format(messages) }}{{ ''.__class__ }}"
    assert ChatTemplate(source).render([]) == ""


def test_a_rendering_after_a_hostile_one_has_its_whole_budget():
    template = ChatTemplate("{% if messages %}" + LOOP + LOOP + END + END + "{% endif %}fine")
    with pytest.raises(RequestError):
        template.render([{"role": "user", "content": "Hi"}])
    assert template.render([]) == "fine"


def test_namespaces_print_without_what_they_hold():
    source = grow("[1]", "namespace(a=ns.x, b=ns.x)")
    assert ChatTemplate(source).render([]) == "<Namespace>"


def test_long_conversations_are_within_the_budget(default_data):
    messages = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "ok"}] * 1000
    text = ChatTemplate(default_data.chat_template).render(messages)
    assert text.count("<|im_start|>") == 2002
