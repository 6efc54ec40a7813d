"""The Jinja dialect of `transformers`' chat templates, in a sandbox with bounds.

A template comes with a model out of the hub, so it is a program of a stranger. It sees
plain data only, through Jinja's immutable sandbox, and what it may take is bounded:
loops, sizes of texts and of numbers. Nor has it a clock or a die: `strftime_now` gives
a date that is said, and what draws lots is not there; so the same conversation always
becomes the same text.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jinja2

__all__ = ["MOST_CHARACTERS", "MOST_TURNS_OF_LOOPS", "Rendered", "has_marks", "render"]

#: How often the loops of a template may turn in all, for one text.
MOST_TURNS_OF_LOOPS = 1_000_000
#: Characters of a text that a template makes; also bits of a number, items of a list.
MOST_CHARACTERS = 2**24

# A name that no template can spell, for what counts while one runs.
_METER = "what is counted"
_WIDE = re.compile(r"\d{6}|\*")
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Rendered(NamedTuple):
    """The text that a template makes.

    Attributes:
      text: The text.
      spans: Where the template marks that the assistant speaks (`{% generation %}`):
        first character of each, and the one behind the last.

    Examples:
      >>> Rendered("Q: A", ((3, 4),)).text[slice(*(3, 4))]
      'A'
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()


def has_marks(source: str) -> bool:
    """Whether a template marks what the assistant says, with `{% generation %}`.

    Args:
      source: Its text.

    Examples:
      >>> has_marks("{%- generation -%}{{ a }}{% endgeneration %}")
      True
    """
    return _MARK.search(source) is not None


def render(source: str, date: datetime.date, variables: Mapping[str, Any]) -> Rendered:
    """The text that a template makes of some variables.

    Args:
      source: The template's text.
      date: What `strftime_now` gives.
      variables: Plain data, as of JSON.

    Raises:
      ValueError: If the template is none, refuses what it is given, or does what it
        must not, with its line.

    Examples:
      >>> day = datetime.date(2024, 7, 26)
      >>> render("{{ strftime_now('%d %B') }}: {{ a }}", day, {"a": 1}).text
      '26 July: 1'
      >>> render("{{ raise_exception('no') }}", day, {})
      Traceback (most recent call last):
        ...
      ValueError: line 1 of the chat template: no.
    """
    import jinja2

    meter = _Meter()
    try:
        template = _compiled(source, date)
        for piece in template.generate({**variables, _METER: meter}):
            meter.write(piece)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(_at(error.lineno, error.message or "no template")) from error
    except (Exception, RecursionError) as error:
        said = str(error) or type(error).__name__
        if not isinstance(error, jinja2.TemplateError):
            said = f"{said} ({type(error).__name__})"
        raise ValueError(_at(_line_of(error), said)) from error
    text = "".join(meter.pieces)
    for start, said in meter.spans:
        if not text.startswith(said, start):
            raise ValueError(
                "the chat template has `{% generation %}` inside a macro or a block "
                "that it writes later, so that its place is not known: move it out"
            )
    return Rendered(text, tuple((at, at + len(said)) for at, said in meter.spans))


def _at(line: int | None, said: str) -> str:
    place = "the chat template" if line is None else f"line {line} of the chat template"
    return f"{place}: {' '.join(said.split()).rstrip('.')}."


def _line_of(error: BaseException) -> int | None:
    """The line of the template that an error comes from."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


class _Meter:
    """What a template has written, and how often its loops have turned."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0
        self.turns = 0
        self.spans: list[tuple[int, str]] = []

    def write(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)
        _bounded(self.length)

    def turn(self, count: int) -> None:
        self.turns += count
        if self.turns > MOST_TURNS_OF_LOOPS:
            _refuse(f"its loops turn more than {MOST_TURNS_OF_LOOPS:,} times")


def _refuse(said: str) -> None:
    from jinja2.exceptions import SecurityError

    raise SecurityError(said)


def _bounded(size: int) -> None:
    if size > MOST_CHARACTERS:
        _refuse(f"it makes something of more than {MOST_CHARACTERS:,} characters")


@functools.lru_cache(maxsize=16)
def _compiled(source: str, date: datetime.date) -> "jinja2.Template":
    """The template as a program; its loops and texts are counted."""
    import jinja2
    from jinja2 import nodes

    environment = _environment()
    environment.globals["strftime_now"] = date.strftime
    tree = environment.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "each turn", [], [], None, None)
    for join in [*tree.find_all(nodes.Concat)]:
        joined = nodes.Concat(join.nodes, lineno=join.lineno)
        join.nodes = [nodes.Filter(joined, "bounded", [], [], None, None)]
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.globals)


def _environment() -> "jinja2.Environment":
    """What templates are compiled in: `transformers`', but for clock and dice."""
    import jinja2
    from jinja2 import ext, nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _bounded(_size_of(operator, left, right))
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            for given in (*args, *kwargs.values()):  # such as a width
                _bounded(given if isinstance(given, int) else 0)
            return super().call(__context, __obj, *args, **kwargs)

    class Generation(ext.Extension):
        """Notes where the blocks `{% generation %}` begin and end."""

        tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("noted")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        @jinja2.pass_context
        def noted(self, context: Any, caller: Any) -> str:
            meter, said = context[_METER], caller()
            meter.spans.append((meter.length, said))
            return said

    class Names(Namespace):
        """Without names that lead into Python."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # so that `self` may be a name
            for name in dict(*args[1:], **kwargs):
                check(name)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    class Dict:
        """`dict` and its `fromkeys`, and nothing else of the class."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def check(name: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot have the name {name!r}")

    def refuse(message: Any) -> None:
        raise TemplateError(str(message))

    @jinja2.pass_context
    def each_turn(context: Any, items: Iterable[Any]) -> Iterable[Any]:
        items = items if hasattr(items, "__len__") else list(items)
        context[_METER].turn(len(items))  # type: ignore[arg-type]
        return items

    def bounded(text: Any) -> Any:
        _bounded(len(text))
        return text

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters |= {
        "tojson": _to_json,
        "each turn": each_turn,
        "bounded": bounded,
    }
    environment.globals |= {
        "raise_exception": refuse,
        "dict": Dict(),
        "namespace": Names,
    }
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML reads."""
    return json.dumps(
        x,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _size_of(operator: str, left: Any, right: Any) -> int:
    """Characters, items or bits that an operation makes, before it makes them."""
    sizes = [len(x) if hasattr(x, "__len__") else None for x in (left, right)]
    match operator, sizes, left, right:
        case "+", [int(a), int(b)], _, _:
            return a + b
        case "*", [int(a), None], _, int():
            return a * max(right, 0)
        case "*", [None, int(b)], int(), _:
            return max(left, 0) * b
        case "*", [None, None], int(), int():
            return left.bit_length() + right.bit_length()
        case "**", [None, None], int(), int():
            return left.bit_length() * max(right, 0)
        case "%", [int(), _], str(), _ if _WIDE.search(left):
            return MOST_CHARACTERS + 1
    return 0
