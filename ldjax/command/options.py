"""The options of a command: records of them, and what their numbers may be.

Settings may be made of records, such as those that two commands share. On the command
line, and in `config.json`, the options of all records stand side by side.
"""

import dataclasses
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "COUNT",
    "POSITIVE",
    "SEED",
    "SHARE",
    "SIZE",
    "Range",
    "changed",
    "check_numbers",
    "flag",
    "flat",
    "restored",
    "wrong_numbers",
]

#: Steps, examples and tokens are counted in 32 bits.
_MOST = 2**31 - 1
#: The smallest and the largest number that float32 holds in full.
_TINY, _HUGE = 1.2e-38, 3.4e38


class Range(NamedTuple):
    """Which numbers are allowed.

    Attributes:
      least: The smallest.
      most: The largest.
      words: What a number must be, for the message; by default that it is between.
      also: Numbers outside that are allowed, which stand for something.
    """

    least: float = -_HUGE
    most: float = _HUGE
    words: str = ""
    also: tuple[float, ...] = ()

    def has(self, number: Any) -> bool:
        """Whether a number is allowed; NaN never is."""
        return bool(number in self.also or self.least <= number <= self.most)

    def __str__(self) -> str:
        return self.words or f"between {self.least:g} and {self.most:g}"


#: A number of things, at least one.
COUNT = Range(1, _MOST, f"at least 1 and at most {_MOST}")
#: A number of things, or none.
SIZE = Range(0, _MOST, f"not negative and at most {_MOST}")
#: What random numbers are drawn from.
SEED = Range(0, 2**32 - 1, f"not negative and at most {2**32 - 1}")
#: Of a whole.
SHARE = Range(0, 1)
#: A finite number above 0 that float32 does not round to it.
POSITIVE = Range(_TINY, _HUGE, f"positive: between {_TINY:g} and {_HUGE:g}")

Settings = TypeVar("Settings")

_FINITE = Range(words="finite")
_WHOLE = Range(-_MOST, _MOST)


def flag(name: str) -> str:
    """The option of a field, as it is written on the command line.

    Examples:
      >>> flag("batch_size")
      '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def flat(settings: Any) -> dict[str, Any]:
    """Every option of some settings by its name, those of records inside too.

    Args:
      settings: A dataclass, some of whose fields may be dataclasses.

    Examples:
      >>> @dataclasses.dataclass
      ... class Texts:
      ...     data: str = "toy"
      >>> @dataclasses.dataclass
      ... class Config:
      ...     texts: Texts = dataclasses.field(default_factory=Texts)
      ...     seed: int = 0
      >>> flat(Config())
      {'data': 'toy', 'seed': 0}
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        found |= flat(value) if _is_record(value) else {field.name: value}
    return found


def changed(settings: Settings, **options: Any) -> Settings:
    """The same settings with other values of some options, wherever they stand.

    Args:
      settings: A dataclass, some of whose fields may be dataclasses.
      **options: New values, by the names that `flat` gives.

    Raises:
      TypeError: If there is no such option.

    Examples:
      >>> @dataclasses.dataclass
      ... class Texts:
      ...     data: str = "toy"
      >>> @dataclasses.dataclass
      ... class Config:
      ...     texts: Texts = dataclasses.field(default_factory=Texts)
      >>> changed(Config(), data="pairs.jsonl").texts.data
      'pairs.jsonl'
    """
    if unknown := options.keys() - flat(settings).keys():
        kind = type(settings).__name__
        raise TypeError(f"{kind} has no option {', '.join(sorted(unknown))}")
    new = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if _is_record(value):
            inside = {k: v for k, v in options.items() if k in flat(value)}
            new[field.name] = changed(value, **inside)
        elif field.name in options:
            new[field.name] = options[field.name]
    return dataclasses.replace(settings, **new)  # type: ignore[type-var]


def restored(default: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings from what JSON has of them: the inverse of `flat`.

    Args:
      default: A dataclass, some of whose fields may be dataclasses; has the options
        that `values` lacks.
      values: By the names that `flat` gives; what is no option is left out. A text
        stands for a path, and for a number that JSON does not know, a list for a tuple.

    Raises:
      ValueError: If a value is none of its option; names it.

    Examples:
      >>> @dataclasses.dataclass
      ... class Config:
      ...     data: Path = Path("toy")
      ...     clip: float | None = None
      >>> restored(Config(), {"clip": "inf", "versions": {}})
      Config(data=PosixPath('toy'), clip=inf)
    """
    kinds = typing.get_type_hints(type(default))
    new: dict[str, Any] = {}
    for field in dataclasses.fields(default):  # type: ignore[arg-type]
        name, value = field.name, getattr(default, field.name)
        if _is_record(value):
            new[name] = restored(value, values)
        elif name in values:
            try:
                new[name] = _of_kind(kinds[name], values[name])
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"{name} cannot be {values[name]!r}.") from None
    return dataclasses.replace(default, **new)  # type: ignore[type-var]


def _of_kind(kind: Any, value: Any) -> Any:
    """A value of JSON as an annotation has it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = (each for each in inner if each is not type(None))
        return None if value is None else _of_kind(kind, value)
    if origin is tuple:
        return tuple(_of_kind(inner[0], each) for each in value)
    if origin is dict:
        return {name: _of_kind(inner[1], each) for name, each in value.items()}
    return kind(value) if kind in (Path, float) else value


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def wrong_numbers(config: Any, ranges: Mapping[str, Range]) -> list[str]:
    """What is wrong with the numbers of some settings, a sentence for each option.

    Every number is looked at, those in tuples and dicts too: what `ranges` does not
    name must be finite, and a whole number fit 32 bits.

    Args:
      config: A dataclass.
      ranges: By the name of the field.

    Examples:
      >>> @dataclasses.dataclass
      ... class Config:
      ...     clip: float = float("inf")
      ...     steps: int = 3
      >>> wrong_numbers(Config(), {"steps": COUNT})
      ['--clip must be finite, got inf']
      >>> wrong_numbers(Config(), {"clip": Range(0, float("inf"))})
      []
    """
    return [
        f"{flag(name)}{key} must be {allowed}, got {_written(number)}"
        for name, key, number in _numbers(config)
        if not (allowed := ranges.get(name, _default(number))).has(number)
    ]


def check_numbers(config: Any, ranges: Mapping[str, Range]) -> None:
    """Refuse settings with `wrong_numbers`.

    Raises:
      ValueError: Of one line, which names every option that is wrong.
    """
    if wrong := wrong_numbers(config, ranges):
        raise ValueError("; ".join(wrong))


def _numbers(config: Any) -> Iterator[tuple[str, str, Any]]:
    """Name of the option, key in it (with a space before) and number."""
    for name, value in flat(config).items():
        items = {"": value}
        if isinstance(value, Mapping):
            items = {f" {key}": number for key, number in value.items()}
        elif isinstance(value, tuple):
            items = dict(enumerate(value))
        for key, number in items.items():
            if isinstance(number, numbers.Real) and not isinstance(number, bool):
                yield name, key if isinstance(key, str) else "", number


def _default(number: Any) -> Range:
    return _WHOLE if isinstance(number, numbers.Integral) else _FINITE


def _written(number: Any) -> str:
    """Short, however many digits it has."""
    text = str(number)
    return text if len(text) <= 24 else f"a number of {len(text)} digits"
