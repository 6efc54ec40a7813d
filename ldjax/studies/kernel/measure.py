"""The exact kernel between two texts, seen in every view."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldjax import losses
from ldjax.equation.decompose import StepDecomposition, decompose
from ldjax.finetune.start import Base
from ldjax.linen import logits_fn
from ldjax.ntk import by_group
from ldjax.ntk.empirical import empirical_ntk
from ldjax.ntk.layers import FactoredMap
from ldjax.precision import exact_products
from ldjax.studies.kernel.texts import Text

__all__ = ["Analysis", "agreements", "analyse", "written_out"]

# Written out and compared up to this vocabulary.
_LARGEST_WRITTEN_OUT = 4096


class Analysis(NamedTuple):
    """The kernel in numbers, `m` a token of the probe and `l` of the update.

    Attributes:
      vocab: Number of logits.
      blocks: Of each block K[m, l]: `norm`, `trace`, `distance` from the nearest
        multiple of the identity, `body_norm`, `head` (the coefficient of the
        identity), each `[m, l]`.
      group_blocks: Likewise of the kernel of each group of parameters.
      change: First-order change of every log-prob of the probe, `[m, vocab]`, nats.
      probs: Probabilities there before the step.
      token_map: Share of each update token in the change of each probe token, `[m, l]`.
      group_changes: Share of each group of parameters in the change of each probe
        token, `[m]`.
      pairs: Numbers that are equal, by what they are, up to rounding.
    """

    vocab: int
    blocks: dict[str, np.ndarray]
    group_blocks: dict[str, dict[str, np.ndarray]]
    change: np.ndarray
    probs: np.ndarray
    token_map: np.ndarray
    group_changes: dict[str, np.ndarray]
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]


class _Views(NamedTuple):
    """The kernel of a pair of texts, seen in several ways; functions of parameters."""

    probe_fn: Any
    update_fn: Any
    probe: Text
    update: Text
    learning_rate: float
    drawn_residual: np.ndarray
    drawn_tokens: np.ndarray

    def terms(self, params: Any) -> StepDecomposition:
        """A, lazy K and G."""
        loss_fn = functools.partial(losses.sft, batch=self.update.scored)
        return decompose(self.probe_fn, self.update_fn, params, loss_fn=loss_fn)

    def at_targets(self, change: jax.Array) -> jax.Array:
        """The log-probs of the probe text among all."""
        targets = self.probe.scored.targets[..., None]
        return jnp.take_along_axis(change, targets, -1)[0, :, 0]

    def moved(self, terms: StepDecomposition) -> dict[str, jax.Array]:
        """What a kernel does to the residual and to a drawn one; one program."""
        both = jnp.stack([terms.residual, jnp.asarray(self.drawn_residual)])
        logits, drawn = jax.vmap(terms.kernel.mv)(both)
        change = -self.learning_rate * terms.adaptation @ logits
        return {
            "change": change[0],
            "target_change": self.at_targets(change),
            "drawn": drawn,
        }

    def by_passes(self, params: Any) -> dict[str, jax.Array]:
        """With a backward and a forward-mode pass for each application of K."""
        terms = self.terms(params)
        scored = self.probe.scored
        token_map = terms.token_map(
            scored.targets, self.learning_rate, mask=scored.mask
        )
        return self.moved(terms) | {
            "probs": jax.nn.softmax(self.probe_fn(params))[0],
            "residual": terms.residual,
            "token_map": token_map[0, :, 0],
        }

    def by_blocks(self, params: Any) -> dict[str, jax.Array]:
        """What the factored kernel says of every block."""
        return _blocks(
            empirical_ntk(self.probe_fn, self.update_fn, params, method="factored")
        )

    def by_entries(self, params: Any, residual: jax.Array) -> jax.Array:
        """First-order change of drawn logits, `[m, token]`, entry by entry of K."""
        K = empirical_ntk(self.probe_fn, self.update_fn, params, method="factored")
        entries = K.entries(self.drawn_tokens, jnp.arange(residual.shape[-1]))
        with exact_products():
            change = jnp.einsum("omtulw,ulw->mt", entries, residual)
        return -self.learning_rate * change

    def by_group(self, params: Any) -> dict[str, dict[str, Any]]:
        """The same of the kernel of each group of parameters."""
        kernels = by_group(
            self.probe_fn, self.update_fn, params, groups=_top_level, method="factored"
        )
        terms = self.terms(params)
        return {
            name: self.moved(terms._replace(kernel=K)) | {"blocks": _blocks(K)}
            for name, K in kernels.items()
        }

    def by_columns(self, params: Any, place: tuple[int, int]) -> jax.Array:
        """One block written out, a backward and a forward-mode pass for each column."""
        m, l = place
        K, vocab = self.terms(params).kernel, self.drawn_residual.shape[-1]
        # A rest after the last whole batch would be compiled by itself.
        batch_size = max(size for size in range(1, 65) if vocab % size == 0)
        return K.block((0, m), (0, l), batch_size=batch_size)


def analyse(
    base: Base, *, probe: Text, update: Text, learning_rate: float, seed: int
) -> Analysis:
    """Everything that is said of a pair of texts."""
    vocab = base.model.config.vocab_size
    rng = np.random.default_rng((seed, 1))
    num_probe, num_update = len(probe.positions), len(update.positions)
    views = _Views(
        *(
            logits_fn(base.model, text.sequences, positions=text.positions)
            for text in (probe, update)
        ),
        probe=probe,
        update=update,
        learning_rate=learning_rate,
        drawn_residual=rng.normal(size=(1, num_update, vocab)).astype(np.float32),
        drawn_tokens=rng.choice(vocab, size=4, replace=False),
    )

    def run(view: Any, *args: Any) -> Any:
        compiled = jax.jit(lambda params: view(params, *args))
        return jax.tree.map(np.asarray, compiled(base.params))

    passes, blocks, groups = map(
        run, (views.by_passes, views.by_blocks, views.by_group)
    )
    pairs = agreements(passes, blocks, groups)
    if vocab <= _LARGEST_WRITTEN_OUT:
        m, l = int(rng.integers(num_probe)), int(rng.integers(num_update))
        pairs |= written_out(run(views.by_columns, (m, l)), blocks, m, l)
        of_logits = run(views.by_entries, passes["residual"])
        tokens = views.drawn_tokens
        # Between tokens of one position, log-probs differ as logits do.
        pairs["predictions by entries of the factored kernel and by passes"] = (
            of_logits[:, 1:] - of_logits[:, :1],
            passes["change"][:, tokens[1:]] - passes["change"][:, tokens[:1]],
        )
    return Analysis(
        vocab=vocab,
        blocks=blocks,
        group_blocks={name: group["blocks"] for name, group in groups.items()},
        change=passes["change"],
        probs=passes["probs"],
        token_map=passes["token_map"],
        group_changes={name: group["target_change"] for name, group in groups.items()},
        pairs=pairs,
    )


def _top_level(params: Any) -> dict[str, str]:
    """Groups of parameters: embeddings, blocks, final norm, head."""
    return {name: name for name in params}


def _blocks(K: FactoredMap) -> dict[str, jax.Array]:
    """`[m, l]` of what a factored kernel of one text by one text says of its blocks."""
    fields = K.block_summary()._asdict()
    fields["head"] = fields.pop("identity")  # the name in the tables of runs
    return {name: value[0, :, 0] for name, value in fields.items()}


def agreements(
    passes: dict[str, Any], blocks: dict[str, Any], groups: dict[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What has to be equal in any kernel, from several views of it."""
    vocab = passes["change"].shape[-1]
    blocks = {name: np.asarray(table, float) for name, table in blocks.items()}
    head, trace = blocks["head"], blocks["trace"]
    target_change = passes["target_change"]

    def total(name: str) -> np.ndarray:
        return np.sum([group[name] for group in groups.values()], axis=0, dtype=float)

    group_traces = [group["blocks"]["trace"] for group in groups.values()]
    return {
        "sum of the groups and K, on a drawn vector": (
            total("drawn"),
            passes["drawn"],
        ),
        "sum of the groups and K, predictions": (total("target_change"), target_change),
        "sum of the groups and K, traces": (np.sum(group_traces, axis=0), trace),
        "sum of the token map and the prediction": (
            passes["token_map"].sum(1),
            target_change,
        ),
        "|c I|^2 + |Q B Q'|^2 + 2 <c I, Q B Q'> and |K|^2": (
            vocab * head**2
            + blocks["body_norm"] ** 2
            + 2 * head * (trace - head * vocab),
            blocks["norm"] ** 2,
        ),
        "|K - k I|^2 + |k I|^2 and |K|^2": (
            blocks["distance"] ** 2 + trace**2 / vocab,
            blocks["norm"] ** 2,
        ),
    }


def written_out(
    K_ml: np.ndarray, blocks: dict[str, Any], m: int, l: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The summary of one block, and the same from its entries."""
    K_ml = np.asarray(K_ml, np.float64)
    root = np.sqrt(len(K_ml))
    identity = np.eye(len(K_ml))
    k = np.trace(K_ml) / len(K_ml)
    entries = {
        "norm": np.linalg.norm(K_ml),
        "trace": k * root,  # over the root of V, so that all are at most the norm
        "distance": np.linalg.norm(K_ml - k * identity),
        "body_norm": np.linalg.norm(K_ml - blocks["head"][m, l] * identity),
    }
    found = [blocks[name][m, l] / (root if name == "trace" else 1) for name in entries]
    names = ", ".join(entries)
    return {
        f"{names} of block {m}, {l} and from its entries": (
            np.array(found),
            np.array(list(entries.values())),
        )
    }
