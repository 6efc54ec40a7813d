r"""Fingerprint: texts of one writer are alike for the model, whatever they say.

The alignment of two texts is that of the exact kernels of their logits, independent of
any loss:

    |K(a, b)|² / (|K(a, a)| |K(b, b)|),

from 0 to 1, with Frobenius norms. Beside it the paper's heat map: what learning a text
of one type does to first order to the log-prob of a text of another type.

In both, the two texts always belong to different prompts.

Claims: each source is aligned more with itself than with the other sources on average;
learning an answer by the gpt writer lifts that writer's other texts more (on average)
than the preferred writer's answer to the same question.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ldjax import losses
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.studies.phenomena.results import Number, Outcome
from ldjax.studies.phenomena.settings import Config
from ldjax.studies.phenomena.start import Start, padded, watched
from ldjax.studies.scored import Scored, factored_kernel, pushes
from ldjax.theory.influence import make_influence_fn

__all__ = [
    "GPT_TEXTS",
    "SOURCES",
    "aligned",
    "between_prompts",
    "heat",
    "last_positions",
    "measure",
    "push_gap",
    "square_norms",
]

#: A type of response for each source of text.
SOURCES = {
    "chosen": "preferred writer",
    "chosen_gptsemantic": "gpt writer",
    "chosen_initial": "the model",
    "irr_hum": "unrelated text",
    "random_permute": "shuffled answer",
    "random_nonhum": "shuffled words",
}
#: By the same writer as `chosen_gptsemantic`, saying something else.
GPT_TEXTS = ("chosen_gptformat", "reject_gptsemantic", "reject_gptformat", "irr_hum")


def measure(start: Start, config: Config) -> Outcome:
    """Of the base model of a seed."""
    texts = texts_of_sources(start, config)
    model, params = start.study.base.model, start.study.base.params
    squares = square_norms(model, params, texts)
    alignment = aligned(squares)
    similar = between_prompts(alignment, len(SOURCES))
    own = np.diagonal(similar)
    others = (similar.sum(1) - own) / (len(SOURCES) - 1)
    warm = heat(gram_of_types(start, config), len(RESPONSE_TYPES))
    at = RESPONSE_TYPES.index
    by_gpt = warm[:, at("chosen_gptsemantic")]
    lifted = float(np.mean([by_gpt[at(name)] for name in GPT_TEXTS]))
    plain = float(by_gpt[at("chosen")])
    table = {
        f"alignment of {name} ({told}) {what}": values[i]
        for i, (name, told) in enumerate(SOURCES.items())
        for what, values in (("with itself", own), ("with the others", others))
    }
    table |= {
        "learning chosen_gptsemantic: of its own effect, on the gpt writer's other "
        "texts": lifted,
        "the same, on chosen": plain,
    }
    return Outcome(
        table=table,
        claims={
            "each source is aligned more with itself than with the others": bool(
                (own > others).all()
            ),
            "learning the gpt writer lifts its other texts more than the preferred "
            "writer's": lifted > plain,
        },
        gaps={
            "norms of K(a, b) and of K(b, a), relative to the largest": float(
                abs(squares - squares.T).max() / squares.max()
            ),
            "K G of a token, by the factors - along the parameters": push_gap(
                model, params, texts
            ),
            "alignment above 1": max(float(alignment.max()) - 1, 0.0),
        },
        numbers=[
            *_cells("alignment", similar, tuple(SOURCES)),
            *_cells("heat", warm, RESPONSE_TYPES),
        ],
    )


def texts_of_sources(start: Start, config: Config) -> Scored:
    """The texts of all sources, prompt by prompt, at some of their tokens."""
    study = start.study
    probes = watched(study, tuple(SOURCES), prompts=config.kernel_prompts)
    batch = padded(study, probes)
    positions = last_positions(np.asarray(batch.mask), config.kernel_tokens)
    return Scored(batch, jnp.asarray(positions), jnp.ones(positions.shape, bool))


def last_positions(mask: np.ndarray, count: int) -> np.ndarray:
    """Places of each row's scored tokens, evenly spread, with the last.

    Without the first: it is predicted from the prompt alone, which says nothing of the
    response.

    Args:
      mask: True where a token is scored, `[row, pos]`.
      count: How many places.
    """
    rows = []
    for scored in mask:
        (there,) = np.nonzero(scored)
        spread = np.linspace(0, len(there) - 1, count + 1)[1:]
        rows.append(there[np.ceil(spread).astype(int)])
    return np.array(rows)


def square_norms(model: nn.Module, params: Any, texts: Scored) -> np.ndarray:
    """`|K(a, b)|²` at the scored tokens of every two texts, `[text, text]`."""
    # A Python loop: inside `lax.map` XLA's CPU code takes twice as long.
    columns = [
        _square_norms_with(
            model, params, texts, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], texts)
        )
        for i in range(len(texts.positions))
    ]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _square_norms_with(
    model: nn.Module, params: Any, texts: Scored, one: Scored
) -> Array:
    kernel = factored_kernel(model, params, None, texts, one)
    return (kernel.block_summary().norm ** 2).sum((1, 2, 3))


def push_gap(model: nn.Module, params: Any, texts: Scored) -> float:
    """`K G` of a token of the first text: by the factors, and along the parameters.

    The alignment is the same for a kernel that is wrong by any factor; this is not.
    """
    one = jax.tree.map(lambda leaf: leaf[:1], texts).token(0)
    batch = one.batch
    residual = jax.grad(losses.sft)(one.logits_fn(model)(params), batch)
    labels = texts.batch.targets[0]
    by_factors, by_params = map(
        np.asarray, pushes(model, params, None, texts, one, residual, labels)
    )
    return float(abs(by_factors - by_params).max() / abs(by_params).max())


def aligned(squares: np.ndarray) -> np.ndarray:
    """`|K(a, b)|² / (|K(a, a)| |K(b, b)|)` of squared norms, `[text, text]`."""
    own = np.sqrt(np.diagonal(squares))
    return squares / (own[:, None] * own)


def between_prompts(table: np.ndarray, num_types: int) -> np.ndarray:
    """Mean over every two different prompts, `[type, type]`.

    Args:
      table: Between all texts, prompt by prompt.
      num_types: Texts of a prompt.
    """
    num_prompts = len(table) // num_types
    cells = table.reshape(num_prompts, num_types, num_prompts, num_types)
    same = sum(cells[p, :, p] for p in range(num_prompts))
    return (cells.sum((0, 2)) - same) / (num_prompts * (num_prompts - 1))


def gram_of_types(start: Start, config: Config) -> np.ndarray:
    """Inner products of the gradients of all texts of all types, prompt by prompt."""
    study = start.study
    texts = padded(study, watched(study, RESPONSE_TYPES, prompts=config.heat_prompts))
    return make_influence_fn(study.apply_fn)(study.base.params, texts, texts)


def heat(gram: np.ndarray, num_types: int) -> np.ndarray:
    """What learning a type (column) does to another (row), by what it does to itself.

    Args:
      gram: Inner products of gradients between all texts, prompt by prompt.
      num_types: Texts of a prompt.
    """
    own = np.diagonal(gram).reshape(-1, num_types).mean(0)
    return between_prompts(gram, num_types) / own


def _cells(arm: str, cells: np.ndarray, names: tuple[str, ...]) -> list[Number]:
    """A row is the type of a number, a column its quantity."""
    return [
        Number(arm, 0, names[i], names[j], value)
        for (i, j), value in np.ndenumerate(cells)
    ]
