"""Which blocks have a sliding window."""

from typing import Any

from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.settings import Settings, shown

__all__ = ["read_sliding", "read_window", "write_layer_types"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_window(settings: Settings, default: int | None = None) -> int | None:
    """The window in tokens; None where the setting is null.

    Args:
      settings: The content of a `config.json`.
      default: The window where it is left out; None for none.
    """
    content = {"sliding_window": default, **settings.content}
    if content["sliding_window"] is None:
        return None
    return Settings(content).whole("sliding_window")


def read_sliding(
    settings: Settings,
    config: TransformerConfig,
    *,
    window: int | None,
    default: tuple[int, ...],
) -> dict[str, Any]:
    """The fields of a window, by `layer_types`.

    Args:
      settings: The content of a `config.json`.
      config: The architecture without them.
      window: The window in tokens, if any.
      default: The blocks with a window where `layer_types` is left out.
    """
    kinds = settings.content.get("layer_types")
    layers = default
    if kinds is not None:
        known = isinstance(kinds, list) and all(k in (_FULL, _SLIDING) for k in kinds)
        if not known or len(kinds) != config.num_layers:
            raise ValueError(
                f"`layer_types` must be {_FULL} or {_SLIDING} for each of the "
                f"{config.num_layers} blocks, got {shown(kinds)}."
            )
        layers = tuple(i for i, kind in enumerate(kinds) if kind == _SLIDING)
    if not layers:
        return {}
    if window is None:
        raise ValueError(
            f"`layer_types` has {_SLIDING}, but there is no `sliding_window`."
        )
    return {"sliding_window": window, "sliding_layers": layers}


def write_layer_types(config: TransformerConfig) -> dict[str, Any]:
    """The settings of a window.

    Args:
      config: The architecture.
    """
    return {
        "sliding_window": config.sliding_window,
        "layer_types": [
            _SLIDING if layer in config.sliding_layers else _FULL
            for layer in range(config.num_layers)
        ],
    }
