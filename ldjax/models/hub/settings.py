"""Settings in a JSON object, read one by one with a complaint that names them."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Settings", "shown"]

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
#: Sizes of arrays and ids of tokens are 32-bit integers.
_LARGEST = 2**31 - 1


class Settings(NamedTuple):
    """Access to JSON settings that complains by name.

    A number that is null has the default, as if it were left out, unless it is
    `optional`. Flags and names that
    are null are refused, as `transformers` refuses them: its versions read them
    differently.

    Attributes:
      content: The JSON object.

    Examples:
      >>> Settings({"rank": 2}).whole("rank")
      2
    """

    content: Mapping[str, Any]

    def number(self, name: str, default: int | float | None = None) -> int | float:
        """A finite number; refuses anything else."""
        value = self.content.get(name)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"`{name}` is missing.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"`{name}` must be a number, got {shown(value)}.")
        if not abs(value) <= sys.float_info.max:  # JSON has NaN, Infinity and 1e400
            raise ValueError(f"`{name}` must be finite, got {shown(value)}.")
        return value

    def positive(self, name: str, default: int | float | None = None) -> float:
        """A number above zero; refuses anything else."""
        value = self.number(name, default)
        if value <= 0:
            raise ValueError(f"`{name}` must be positive, got {shown(value)}.")
        return float(value)

    def optional(self, name: str, default: float | None) -> float | None:
        """A number above zero, or None if null; refuses anything else."""
        content = {name: default, **self.content}
        return None if content[name] is None else Settings(content).positive(name)

    def whole(
        self, name: str, default: int | None = None, *, most: int = _LARGEST
    ) -> int:
        """A positive whole number that is not too large; refuses anything else."""
        value = self.number(name, default)
        if value != int(value) or value < 1:
            raise ValueError(
                f"`{name}` must be a whole number from 1 on, got {shown(value)}."
            )
        if value > most:
            raise ValueError(f"`{name}` must be at most {most}, got {shown(value)}.")
        return int(value)

    def layers(self, name: str) -> tuple[int, ...] | None:
        """Numbers of blocks, or one of them; None if null."""
        value = self.content.get(name)
        if value is None:
            return None
        value = value if isinstance(value, list) else [value]
        for number in value:
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise ValueError(
                    f"`{name}` must be whole numbers from 0 on, got {shown(number)}."
                )
        return tuple(value)

    def names(self, name: str) -> list[str]:
        """Texts, or one of them; none if null."""
        value = self.content.get(name)
        value = value if isinstance(value, list) else [] if value is None else [value]
        for text in value:
            if not isinstance(text, str):
                raise ValueError(f"`{name}` must be names, got {shown(text)}.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false; refuses anything else."""
        value = self.content.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be true or false, got {shown(value)}.")
        return value

    def activation(self, name: str, default: str) -> Any:
        """The name of an activation in ldjax."""
        value = self.content.get(name, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise ValueError(
                f"`{name}` is {shown(value)}; ldjax computes {', '.join(_ACTIVATIONS)}."
            )
        return _ACTIVATIONS[value]

    def require(self, name: str, value: Any) -> None:
        """Refuses a setting that changes the computation to one ldjax has not."""
        found = self.content.get(name, value)
        if found != value and found is not None:
            only = "without" if value is None else f"only {value!r}"
            raise ValueError(f"`{name}` is {shown(found)}; ldjax computes {only}.")


def shown(value: Any, most: int = 60) -> str:
    """A value of JSON in a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"an integer of {value.bit_length()} bits"
    return text if len(text) <= most else f"{text[:most]}..."
