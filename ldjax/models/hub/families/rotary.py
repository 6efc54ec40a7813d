"""Rotary settings: `rope_parameters` since transformers 5, before it `rope_scaling`.

Where blocks with a window are rotated in another way (Gemma 3, OLMo 3), the newer form
has one set for each kind of block, and the older one a base for them.
"""

import math
from collections.abc import Mapping
from typing import Any

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.rotary import RotaryScaling
from ldjax.models.hub.settings import Settings, shown

__all__ = [
    "read_by_kind",
    "read_rotary",
    "read_scaling",
    "rope_of",
    "write_by_kind",
    "write_rotary",
    "write_scaling",
]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def rope_of(settings: Settings) -> Settings:
    """The rotary settings of a model whose blocks are rotated alike.

    Args:
      settings: The content of a `config.json`.
    """
    content = settings.content
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(
        isinstance(value, Mapping) for value in rope.values()
    ):
        raise ValueError(
            f"the rotary settings are {shown(rope)}; ldjax computes one set for all "
            "layers."
        )
    return Settings(rope)


def read_rotary(
    settings: Settings, config: TransformerConfig, *, theta: float = 1e4
) -> dict[str, Any]:
    """The fields of a model whose blocks are rotated alike, in full.

    Args:
      settings: The content of a `config.json`.
      config: The architecture without them.
      theta: The base of the wavelengths where it is left out.
    """
    rope = rope_of(settings)
    rope.require("partial_rotary_factor", 1.0)
    return {
        "rotary_theta": rope.positive(
            "rope_theta", settings.positive("rope_theta", theta)
        ),
        "rotary_scaling": read_scaling(rope, config.max_positions),
    }


def write_rotary(config: TransformerConfig) -> dict[str, Any]:
    """The settings of a model whose blocks are rotated alike.

    Args:
      config: The architecture.
    """
    return {
        "rope_theta": config.rotary_theta,
        "rope_scaling": write_scaling(config.rotary_scaling),
    }


def read_by_kind(
    settings: Settings, config: TransformerConfig, *, theta: float, local_theta: float
) -> dict[str, Any]:
    """The fields of a model whose blocks with a window are rotated in another way.

    Args:
      settings: The content of a `config.json`.
      config: The architecture without them, its window included.
      theta: The base of the wavelengths where it is left out.
      local_theta: That of the blocks with a window.
    """
    full, sliding = _kinds(settings)
    fields = {
        "rotary_theta": full.positive(
            "rope_theta", settings.positive("rope_theta", theta)
        ),
        "rotary_scaling": read_scaling(full, config.max_positions),
        "local_rotary_theta": sliding.positive(
            "rope_theta", settings.positive("rope_local_base_freq", local_theta)
        ),
    }
    scaling = read_scaling(sliding, config.max_positions)
    if not config.sliding_layers:
        return fields | {"local_rotary_theta": None}
    if scaling is None:
        return fields
    if (fields["local_rotary_theta"], scaling) != (
        fields["rotary_theta"],
        fields["rotary_scaling"],
    ):
        raise ValueError(
            f"the rotary settings of {_SLIDING} are {shown(dict(sliding.content))}; "
            f"ldjax computes a scaling there only if it is that of {_FULL}."
        )
    return fields | {"local_rotary_theta": None}


def write_by_kind(config: TransformerConfig) -> dict[str, Any]:
    """The settings of such a model, in the newer form and in the older one.

    Args:
      config: The architecture.
    """
    scaling = write_scaling(config.rotary_scaling)
    full = {"rope_theta": config.rotary_theta, **(scaling or {"rope_type": "default"})}
    sliding = full
    if config.local_rotary_theta is not None:
        sliding = {"rope_theta": config.local_rotary_theta, "rope_type": "default"}
    return {
        "rope_parameters": {_FULL: full, _SLIDING: sliding},
        "rope_theta": config.rotary_theta,
        "rope_local_base_freq": sliding["rope_theta"],
        "rope_scaling": scaling,
    }


def _kinds(settings: Settings) -> tuple[Settings, Settings]:
    by_kind = settings.content.get("rope_parameters") or {}
    old = settings.content.get("rope_scaling") or {}
    kinds = (_FULL, _SLIDING)
    if not isinstance(by_kind, Mapping) or set(by_kind) - set(kinds):
        raise ValueError(
            f"`rope_parameters` is {shown(by_kind)}; this family has one set of rotary "
            f"settings for {_FULL} and one for {_SLIDING}."
        )
    full, sliding = (by_kind.get(kind) or {} for kind in kinds)
    for rope in (full, sliding, old):
        if not isinstance(rope, Mapping):
            raise ValueError(
                f"the rotary settings are {shown(rope)}, which are no set."
            )
    # The library takes yarn's `truncate` for true here, whatever it is.
    both = (
        Settings({**full, **old, "truncate": True}),
        Settings({**sliding, "truncate": True}),
    )
    for rope in both:
        rope.require("partial_rotary_factor", 1.0)
    return both


def read_scaling(settings: Settings, max_positions: int) -> RotaryScaling | None:
    """The change of the wavelengths, if any.

    Args:
      settings: One set of rotary settings.
      max_positions: The length that the model is meant for, in tokens.
    """
    rope = settings.content
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(
            f"the rotary scaling is {shown(kind)}; ldjax computes linear, llama3 and "
            "yarn."
        )
    original = settings.whole("original_max_position_embeddings", max_positions)
    # Yarn's may be left out.
    ratio = max_positions / original if kind == "yarn" else None
    factor = settings.positive("factor", ratio)
    if kind == "linear":
        return RotaryScaling(kind="linear", factor=factor)
    if kind == "llama3":
        return RotaryScaling(
            kind="llama3",
            factor=factor,
            original_max_positions=original,
            slow=settings.positive("low_freq_factor"),
            fast=settings.positive("high_freq_factor"),
        )
    return RotaryScaling(
        kind="yarn",
        factor=factor,
        original_max_positions=original,
        slow=settings.positive("beta_slow", 1),
        fast=settings.positive("beta_fast", 32),
        amplitude=_yarn_amplitude(settings, factor),
        whole_indices=settings.flag("truncate", True),
    )


def _yarn_amplitude(settings: Settings, factor: float) -> float:
    if settings.content.get("attention_factor") is not None:
        return settings.positive("attention_factor")

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if settings.content.get("mscale") and settings.content.get("mscale_all_dim"):
        weights = (settings.positive(name) for name in ("mscale", "mscale_all_dim"))
        above, below = map(of, weights)
        return above / below
    return of(1.0)


def write_scaling(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    """The settings of a change of the wavelengths.

    Args:
      scaling: The change, if any.
    """
    if scaling is None:
        return None
    content = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return content
    content["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        return content | {
            "low_freq_factor": scaling.slow,
            "high_freq_factor": scaling.fast,
        }
    return content | {
        "beta_slow": scaling.slow,
        "beta_fast": scaling.fast,
        "attention_factor": scaling.amplitude,
        "truncate": scaling.whole_indices,
    }
