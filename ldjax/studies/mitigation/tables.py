"""The tables of `mitigation.py` in Markdown, from its summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldjax.studies.mitigation.results import (
    ARMS,
    DECODINGS,
    LENGTHS,
    QUANTITIES,
    SAME_LENGTH,
    rivals,
)
from ldjax.studies.policies import VERDICTS
from ldjax.studies.tables import markdown

__all__ = ["PUBLISHED", "tables", "title_of"]

#: Win rates of extend over baseline in the paper's Table 1, by judge, by epochs of DPO.
PUBLISHED = {
    "ChatGPT": {0: 0.4729, 2: 0.6518, 4: 0.6928, 6: 0.6667},
    "Claude 3": {0: 0.4679, 2: 0.5151, 4: 0.6045, 6: 0.5432},
}
TITLES = {
    "baseline": ("SFT", "DPO"),
    "extend": ("extended SFT", "DPO"),
    "ipo": ("SFT", "IPO"),
    "simpo": ("SFT", "SimPO"),
    "rpo": ("SFT", "RPO"),
    "gated_dpo": ("SFT", "gated DPO"),
}
_START = {
    "log_prob": "log-prob, nats",
    "prob": "p(y-) per token",
    "threshold": "threshold, mean of |p|² - p(y-)",
    "residual_norm": "|p - y-|, root mean square",
}

Seeds = Mapping[int, dict[str, Any]]


def title_of(name: str) -> str:
    """A policy in words: what it was trained by, and for how many epochs."""
    arm, _, epochs = name.partition("@")
    sft, loss = TITLES[arm]
    return f"{sft}, {loss} {epochs}" if int(epochs) else sft


def tables(seeds: Seeds, pooled: Mapping[str, Any]) -> str:
    """All tables; a cell is the mean over the seeds and each of them."""
    return "\n\n".join(
        [
            *(_wins(seeds, pooled, decoding) for decoding in DECODINGS),
            _changes(seeds),
            _same_length(seeds),
            *(_rates(seeds, decoding) for decoding in DECODINGS),
            _start(seeds),
            _signatures(seeds),
        ]
    )


def _wins(seeds: Seeds, pooled: Mapping[str, Any], decoding: str) -> str:
    def row(name: str) -> tuple[str, ...]:
        found = [each["wins"][decoding][name] for each in seeds.values()]
        of_all = pooled[decoding][name]
        is_published = name.startswith("extend") and decoding == DECODINGS[0]
        return (
            title_of(name),
            *map(_interval, (*found, of_all)),
            f"{of_all['ties']:.2f}",
            ", ".join(f"{rates[_epochs(name)]:.2f}" for rates in PUBLISHED.values())
            if is_published
            else "",
        )

    return _titled(
        f"Win rate over baseline at equal epochs, {decoding} responses (a tie counts "
        "half; 95 % intervals, of a seed over prompts, of the mean over seeds)",
        ("", *(f"seed {seed}" for seed in seeds), "mean", "ties", "paper's judges"),
        [row(name) for name in rivals(_policies(seeds))],
    )


def _changes(seeds: Seeds) -> str:
    names = [f"{arm}@{epochs}" for arm in ARMS for epochs in (0, *LENGTHS)]
    return _titled(
        "Change of mean log-prob in SFT (0 epochs of DPO) and since, trained prompts, "
        "nats",
        ("", *QUANTITIES.values()),
        [(title_of(name), *_cells_of_changes(seeds, name)) for name in names],
    )


def _same_length(seeds: Seeds) -> str:
    def bad(seed: Mapping[str, Any], name: str) -> float:
        rates = seed["rates"][DECODINGS[0]][name]
        return rates["malformed"] + rates["degenerate"]

    return _titled(
        f"The losses after {SAME_LENGTH} epochs: change since SFT, nats; share of "
        "malformed and degenerate sampled responses",
        ("", *QUANTITIES.values(), "malformed, degenerate"),
        [
            (
                title_of(name),
                *_cells_of_changes(seeds, name),
                _cell([bad(each, name) for each in seeds.values()], ".2f"),
            )
            for name in _policies(seeds)
            if _epochs(name) == SAME_LENGTH
        ],
    )


def _cells_of_changes(seeds: Seeds, name: str) -> list[str]:
    found = [each["changes"][name] for each in seeds.values()]
    return [_cell([change[key] for change in found], "+.1f") for key in QUANTITIES]


def _rates(seeds: Seeds, decoding: str) -> str:
    def cells(name: str) -> list[str]:
        found = [each["rates"][decoding][name] for each in seeds.values()]
        return [
            _cell([rates[verdict] for rates in found], ".2f") for verdict in VERDICTS
        ]

    return _titled(
        f"Share of verdicts, {decoding} responses to held-out prompts",
        ("", *VERDICTS),
        [(title_of(name), *cells(name)) for name in _policies(seeds)],
    )


def _start(seeds: Seeds) -> str:
    def cells(arm: str) -> list[str]:
        found = [each["start_of_dpo"][arm] for each in seeds.values()]
        return [_cell([start[key] for start in found], ".3f") for key in _START]

    return _titled(
        "Rejected responses to trained prompts where DPO starts",
        ("", *_START.values()),
        [(arm, *cells(arm)) for arm in ARMS],
    )


def _signatures(seeds: Seeds) -> str:
    def row(seed: int, verdict: Mapping[str, Any]) -> tuple[str, ...]:
        values = ", ".join(f"{k} {v:.2f}" for k, v in verdict["numbers"].items())
        return verdict["id"], str(seed), verdict["verdict"], values

    return _titled(
        "Published signatures of extend against baseline",
        ("", "seed", "verdict", "numbers, nats"),
        [
            row(seed, verdict)
            for seed, each in seeds.items()
            for verdict in each["signatures"]
        ],
    )


def _policies(seeds: Seeds) -> list[str]:
    return list(next(iter(seeds.values()))["changes"])


def _cell(values: Sequence[float], form: str) -> str:
    """The mean, and each seed."""
    each = ", ".join(f"{value:{form}}" for value in values)
    return f"{np.mean(values):{form}} ({each})" if len(values) > 1 else each


def _interval(win: Mapping[str, float]) -> str:
    return f"{win['rate']:.2f} [{win['low']:.2f}, {win['high']:.2f}]"


def _epochs(name: str) -> int:
    return int(name.partition("@")[2])


def _titled(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"**{title}**\n\n{markdown(heads, rows)}"
