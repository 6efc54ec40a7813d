"""Which matrices of a model the settings of PEFT choose, and their ranks and scales.

PEFT goes through a model's modules by their full names, such as
`model.layers.3.self_attn.q_proj`; so is it done here, by its own rules:

* `target_modules` and `exclude_modules` are a regular expression of the whole name, or
  a list of whole names and of their ends (of which some may fit nothing);
* `layers_to_transform` keeps, of what was chosen by ends, some blocks;
* `rank_pattern` and `alpha_pattern` have regular expressions of a name or its end, of
  which the first that fits gives the number.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ldjax.models.decoder.low_rank import LowRank, OtherAdapter, Target
from ldjax.models.hub.settings import Settings

__all__ = ["Matrix", "read_choice", "write_choice"]


class Matrix(NamedTuple):
    """A matrix of a model that may have an adapter.

    Attributes:
      layer: The number of its block.
      target: The name that it has in a block of ldjax.
      module: The full name of its module in the hub's model.
    """

    layer: int
    target: Target
    module: str


def read_choice(
    content: Mapping[str, Any], matrices: Sequence[Matrix], *, beside: Sequence[str]
) -> LowRank:
    """The adapters that settings of PEFT describe.

    Args:
      content: The content of `adapter_config.json`.
      matrices: The matrices of the model, block by block.
      beside: The modules that are in no block, and of which ldjax has no adapters.

    Returns:
      The adapters; as few of them as `others` as there can be.

    Raises:
      ValueError: If nothing is chosen, or something that ldjax does not adapt; or if a
        setting makes no sense.

    Examples:
      >>> up = Matrix(0, "up", "model.layers.0.mlp.up_proj")
      >>> content = {"r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
      >>> read_choice(content, [up], beside=()).targets
      ('up',)
    """
    choice = _Choice.of(Settings(content), matrices)
    outside = [module for module in beside if choice.has(module)]
    if outside:
        raise ValueError(
            f"`target_modules` chooses {', '.join(outside)}; ldjax adapts matrices of "
            "blocks only. Merge the adapters into their model with PEFT "
            "(`merge_and_unload`), save it, and load that."
        )
    chosen = [matrix for matrix in matrices if choice.has(matrix.module)]
    if not chosen:
        raise ValueError(
            f"`target_modules` is {content.get('target_modules')!r}, which is none of "
            "the matrices that ldjax adapts in this model: "
            f"{', '.join(_ends(matrices))}."
        )
    return _as_record(Settings(content), chosen, matrices)


def write_choice(adapters: LowRank, matrices: Sequence[Matrix]) -> dict[str, Any]:
    """The settings of PEFT that describe adapters; the inverse of `read_choice`.

    Args:
      adapters: The adapters.
      matrices: The matrices of the model, block by block.

    Examples:
      >>> up = Matrix(0, "up", "model.layers.0.mlp.up_proj")
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      >>> write_choice(adapters, [up])["target_modules"]
      ['mlp.up_proj']
    """
    others = {(other.layer, other.target): other for other in adapters.others}
    kept = [one for one in matrices if one.target in adapters.at(one.layer)]
    patterns = {
        re.escape(one.module): others[one[:2]] for one in kept if one[:2] in others
    }
    return {
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "use_rslora": adapters.rank_stabilized,
        "rank_pattern": {name: other.rank for name, other in patterns.items()},
        "alpha_pattern": {name: other.alpha for name, other in patterns.items()},
        # By full names where blocks differ.
        "target_modules": [one.module for one in kept] if others else _ends(kept),
        "layers_to_transform": (
            None if others else adapters.layers and list(adapters.layers)
        ),
        "layers_pattern": None,
        "exclude_modules": None,
    }


class _Choice(NamedTuple):
    wanted: str | list[str]
    excluded: str | list[str]
    layers: tuple[int, ...]
    containers: list[str]

    @classmethod
    def of(cls, settings: Settings, matrices: Sequence[Matrix]) -> "_Choice":
        wanted = _names(settings, "target_modules")
        layers = settings.layers("layers_to_transform") or ()
        if isinstance(wanted, str) and layers:
            raise ValueError(
                "`layers_to_transform` is of a list of `target_modules`, which are "
                f"the text {wanted!r}. (PEFT refuses it, too.)"
            )
        num_layers = 1 + max(matrix.layer for matrix in matrices)
        if beyond := sorted({*layers} - {*range(num_layers)}):
            raise ValueError(
                f"`layers_to_transform` has {beyond}; the model has {num_layers} "
                "layers, which count from 0."
            )
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            wanted = [matrix.module for matrix in matrices]
        return cls(
            wanted,
            _names(settings, "exclude_modules"),
            layers,
            settings.names("layers_pattern"),
        )

    def has(self, module: str) -> bool:
        if _fits(module, self.excluded):
            return False
        if isinstance(self.wanted, str) or module in self.wanted:
            return _fits(module, self.wanted)
        is_kept = not self.layers or self._layer_of(module) in self.layers
        return is_kept and _fits(module, self.wanted)

    def _layer_of(self, module: str) -> int | None:
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.containers]
        for pattern in patterns or [r".*?\.[^.]*\.(\d+)\."]:
            if found := re.match(pattern, module):
                return int(found[1])
        return None


def _names(settings: Settings, name: str) -> str | list[str]:
    """A regular expression that can be read, or a list of names."""
    value = settings.content.get(name)
    if not isinstance(value, str):
        return settings.names(name)
    _check_pattern(name, value)
    return value


def _fits(module: str, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == end or module.endswith(f".{end}") for end in names)


def _as_record(
    settings: Settings, chosen: Sequence[Matrix], matrices: Sequence[Matrix]
) -> LowRank:
    rank, alpha = settings.whole("r"), settings.positive("lora_alpha")
    ranks, alphas = (
        _pattern(settings, f"{name}_pattern") for name in ("rank", "alpha")
    )
    found = {}
    for matrix in chosen:
        of_rank, of_alpha = (_key(of.content, matrix.module) for of in (ranks, alphas))
        found[matrix[:2]] = (
            ranks.whole(of_rank, rank),
            alphas.positive(of_alpha, alpha),
        )
    layers = sorted({layer for layer, _ in found})
    targets = {target for _, target in found}
    places = [
        matrix[:2]
        for matrix in matrices
        if matrix.layer in layers and matrix.target in targets
    ]
    usual = rank, alpha
    unlike = {at: found.get(at, (0, alpha)) for at in places if found.get(at) != usual}
    return LowRank(
        rank=rank,
        alpha=alpha,
        targets=tuple(dict.fromkeys(target for _, target in places)),
        layers=None if len(layers) == 1 + matrices[-1].layer else tuple(layers),
        rank_stabilized=bool(settings.content.get("use_rslora")),
        others=tuple(
            OtherAdapter(layer=layer, target=target, rank=rank, alpha=alpha)
            for (layer, target), (rank, alpha) in unlike.items()
        ),
    )


def _pattern(settings: Settings, name: str) -> Settings:
    """Numbers by regular expression."""
    content = settings.content.get(name) or {}
    if not isinstance(content, Mapping):
        raise ValueError(f"`{name}` must be numbers by name, got {content!r}.")
    for pattern in content:
        _check_pattern(name, pattern)
    return Settings(content)


def _key(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that fits, or else the module, which is none of them."""
    fitting = (
        pattern
        for pattern in patterns
        if re.match(rf"(.*\.)?({pattern})$", module) is not None
    )
    return next(fitting, module)


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{name}` has {pattern!r}, which is no regular expression: {error}."
        ) from error


def _ends(matrices: Sequence[Matrix]) -> list[str]:
    """What tells matrices of a block apart, once: `self_attn.q_proj`."""
    ends = (".".join(matrix.module.split(".")[-2:]) for matrix in matrices)
    return list(dict.fromkeys(ends))
