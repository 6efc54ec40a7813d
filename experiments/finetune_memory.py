"""How much memory a run takes, planned from shapes before any weights are read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from finetune_config import Config
from finetune_recipes import make_optimizer
from finetune_start import Base

import ldjax
from ldjax import AdvantagedSequences, ReferencedSequences, Sequences
from ldjax.losses import make_loss
from ldjax.memory import default_limit, human_bytes, peak_bytes
from ldjax.models import is_adapter

__all__ = ["MOST_PROBES", "Plan", "account_options", "map_sizes", "plan_memory"]

#: Probes at a time where memory is no matter.
MOST_PROBES = 96

# Far below the limit nothing needs to be traced: a step holds some twenty copies of the
# parameters and of its logits.
_COPIES = 100

# The process holds up to so many times what is planned, most likely memory that was
# freed and not given back: 1.5 and 1.7 were measured (`benchmark_model.py`).
_SLACK = 1.7


class Plan(NamedTuple):
    """What a run takes.

    Attributes:
      parts: Bytes by what they are for, as computed; the first two stay, of the others
        one is needed at a time. Empty where the model is so small that it is no matter.
      probes: Watched responses that are computed at a time.
    """

    parts: Mapping[str, int]
    probes: int

    @property
    def total(self) -> int:
        """Bytes at the worst moment, with an allowance for the allocator."""
        parameters, optimizer, *passing = self.parts.values()
        return int(_SLACK * (parameters + optimizer + max(passing)))

    def __str__(self) -> str:
        parts = ", ".join(f"{k} {human_bytes(v)}" for k, v in self.parts.items())
        return (
            f"memory: {human_bytes(self.total)} at most, {_SLACK} times what is in use "
            f"({parts}; one of the last three at a time), probes at a time: "
            f"{self.probes}"
        )


def account_options(base: Base) -> dict[str, Any]:
    """What `ldjax.make_step` is told of a run besides loss and optimizer."""
    options: dict[str, Any] = {"watch_fn": ldjax.linen.apply_fn(base.model)}
    return options | ({"where": is_adapter} if base.is_adapted else {})


def plan_memory(
    config: Config, base: Base, *, max_length: int, num_tracked: int
) -> Plan:
    """What a run takes, with as many probes at a time as fit.

    Args:
      config: The settings.
      base: The model; of its parameters only the shapes are read.
      max_length: Of the longest prompt and response, in tokens.
      num_tracked: Responses that are accounted for at every update.

    Raises:
      MemoryError: If it does not fit, with the numbers and what to do.
    """
    limit = default_limit()
    parameters = _bytes(base.params)
    logits = 4 * base.model.config.vocab_size * (max_length - 1)
    logits *= max(MOST_PROBES, num_tracked)
    if _COPIES * (parameters + logits) < limit:
        return Plan({}, MOST_PROBES)
    probes = MOST_PROBES
    while True:
        parts = _parts(config, base, max_length, num_tracked, probes)
        plan = Plan(parts, probes)
        if plan.total <= limit:
            return plan
        if probes == 1:
            raise MemoryError(
                f"the run does not fit: {plan}; there are {human_bytes(limit)} to use. "
                "Choose a smaller --model, --batch-size or --max-length, adapters "
                "(--lora-rank), or an --optimizer without moments (sgd)"
            )
        probes //= 2


def map_sizes(plan: Plan) -> dict[str, int]:
    """How a token map is computed: one token at a time where memory matters."""
    if plan.parts:
        return {"batch_size": 1, "kept_bytes": 0}
    return {"batch_size": 64, "kept_bytes": min(2**30, default_limit() // 8)}


def _parts(
    config: Config, base: Base, max_length: int, num_tracked: int, probes: int
) -> dict[str, int]:
    length = max_length - 1
    init, step = ldjax.make_step(
        ldjax.linen.apply_fn(base.trained_model),
        make_loss(config.loss, **config.coefficients),
        make_optimizer(config.as_recipe()),
        probe_batch_size=probes,
        **account_options(base),
    )
    state = jax.eval_shape(init, base.params)
    update = _update(config, length)
    watch_fn = ldjax.linen.apply_fn(base.model)
    model = base.model.config

    def observe(params: Any, new_params: Any, batch: Sequences) -> Any:
        move = jax.tree.map(jnp.subtract, new_params, params)
        return jax.jvp(lambda p: watch_fn(p, batch), (params,), (move,))

    return {
        "parameters": _bytes(state.params),
        "optimizer": _bytes(state.opt_state),
        "an update and its account": peak_bytes(
            step, state, update, _sequences(num_tracked, length)
        ),
        # With the state after the update that is looked at, and one half-way there.
        "an observation": _bytes((state.params, state.params, state.opt_state))
        + peak_bytes(observe, state.params, state.params, _sequences(probes, length)),
        # Keys and values, and the model that is sampled from, if it is another.
        "sampling": 8
        * (probes * max_length * model.num_layers * model.num_kv_heads * model.head_dim)
        + bool(config.initial_from) * _bytes(state.params),
    }


def _update(config: Config, length: int) -> Any:
    """Shapes of a batch."""
    side: Any = _sequences(config.batch_size, length)
    texts = side.tokens, side.targets, side.mask
    number: Any = jax.ShapeDtypeStruct((config.batch_size,), jnp.float32)
    if config.named_loss.trains_on == "samples":
        side = AdvantagedSequences(*texts, number, number)
    elif config.named_loss.has_reference:
        side = ReferencedSequences(*texts, number)
    return {"chosen": side, "rejected": side} if config.has_pairs else side


def _sequences(rows: int, length: int) -> Sequences:
    ids: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask: Any = jax.ShapeDtypeStruct((rows, length), jnp.bool_)
    return Sequences(ids, ids, mask)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
