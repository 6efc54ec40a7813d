"""The dialect of chat templates: what it knows, its bounds, and its mistakes told."""

import datetime

import pytest

from ldjax.data.templates.dialect import render

DATE = datetime.date(2024, 7, 26)


def text(source, **variables):
    return render(source, DATE, variables).text


def test_white_space_is_controlled_as_transformers_does():
    source = (
        "{% for x in xs %}\n  {% if x %}\n{{ x }}\n  {% endif %}\n{% endfor %}\nend"
    )
    assert text(source, xs=[1, 0, 2]) == "1\n2\nend"
    assert (
        text(
            "{% for x in xs %}{% if x %}{% break %}{% endif %}.{% endfor %}",
            xs=[0, 0, 1, 0],
        )
        == ".."
    )


def test_json_keeps_letters_and_signs():
    x = {"b": "é <b> & '", "a": [1, None, True]}
    assert text("{{ x | tojson }}", x=x) == '{"b": "é <b> & \'", "a": [1, null, true]}'
    assert text("{{ x | tojson(sort_keys=true, indent=1) }}", x={"b": 1, "a": 2}) == (
        '{\n "a": 2,\n "b": 1\n}'
    )


def test_there_is_no_clock_and_no_die():
    assert text("{{ strftime_now('%Y-%m-%d %H') }}") == "2024-07-26 00"
    with pytest.raises(ValueError, match="line 1 of the chat template: No filter"):
        text("{{ [1, 2] | random }}")
    with pytest.raises(ValueError, match="'lipsum' is undefined"):
        text("{{ lipsum() }}")


@pytest.mark.parametrize(
    ("source", "said"),
    {
        "a\n{{ raise_exception('Roles must\n alternate.') }}": (
            "line 2 of the chat template: Roles must alternate."
        ),
        "\n\n{% if %}": "line 3 of the chat template: Expected an expression",
        "{% for x in y %}": "line 1 of the chat template: Unexpected end of template",
        "\n{{ nothing.there }}": "line 2 of the chat template: 'nothing' is undefined",
        "{{ 1 + 'a' }}": "line 1 of the chat template: unsupported operand.*TypeError",
        "{{ ''.__class__.__mro__ }}": "access to attribute '__class__'.*is unsafe",
        "{{ xs.append(1) }}": "'append' of 'list' object is unsafe",
        "{% set ns = namespace(__class__=1) %}": "cannot have the name '__class__'",
        "{% set ns = namespace() %}{% set ns._x = 1 %}": "cannot have the name '_x'",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
        "{% endfor %}": (
            "line 1 of the chat template: its loops turn more than 1,000,000 times"
        ),
        "{% for a in range(9999999) %}{% endfor %}": "Range too big",
        "\n{{ 'a' * 10 ** 9 }}": "line 2.*more than 16,777,216 characters",
        "{{ xs * 10 ** 9 }}": "more than 16,777,216 characters",
        "{{ 10 ** (10 ** 9) }}": "more than 16,777,216 characters",
        "{{ 'a'.ljust(999999999) }}": "more than 16,777,216 characters",
        "{{ '%999999999d' % 1 }}": "more than 16,777,216 characters",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
        "{% set n.x = n.x + n.x %}{% endfor %}": "more than 16,777,216 characters",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}": "more than 16,777,216 characters",
        "{% for i in range(9999) %}{{ xs | join }}{% endfor %}": (
            "more than 16,777,216 characters"
        ),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion.*RecursionError",
        "{% include 'secret' %}": "no loader",
    }.items(),
)
def test_what_a_template_must_not_is_one_line(source, said):
    with pytest.raises(ValueError, match=said) as error:
        text(source, xs=["a" * 9999])
    assert "\n" not in str(error.value)


def test_marks_are_where_the_text_is():
    source = (
        "a{% generation %}{{ x }}{% endgeneration %}c"
        "{%- generation -%} d {% endgeneration %}"
    )
    made = render(source, DATE, {"x": "bb"})
    assert [made.text[start:end] for start, end in made.spans] == ["bb", "d "]
    assert made.spans[0] == (1, 3)


def test_marks_inside_what_is_written_later_are_refused():
    source = (
        "{% macro f(x) %}[{% generation %}{{ x }}{% endgeneration %}]{% endmacro %}"
        "user:{{ f('b') }}"
    )
    with pytest.raises(ValueError, match="inside a macro"):
        render(source, DATE, {})


def test_loops_are_those_of_jinja():
    source = (
        "{% for x in xs %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.nextitem }};{% else %}none{% endfor %}"
    )
    assert text(source, xs="ab") == "1/2Falseb;2/2True;"
    assert text(source, xs=[]) == text(source) == "none"
    assert text(
        "{% for k, v in x.items() %}{{ k }}{{ v }}{% endfor %}", x={"a": 1}
    ) == ("a1")
    assert (
        text("{% for x in xs | map('upper') if x != 'B' %}{{ x }}{% endfor %}", xs="ab")
        == "A"
    )
