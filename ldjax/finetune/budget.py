"""How much memory a run takes, planned from shapes before any weights are read."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldjax import linen
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.equation.log_probs import token_log_probs
from ldjax.equation.sequences import Prompts, Sequences
from ldjax.equation.step import make_step
from ldjax.finetune.recipes import Recipe, make_optimizer
from ldjax.finetune.settings.records import Objective
from ldjax.finetune.start import Base
from ldjax.memory import default_limit, give_back, human_bytes
from ldjax.models import Transformer, is_adapter
from ldjax.ntk.cost import peak_bytes
from ldjax.runs.devices import data_mesh
from ldjax.theory.quantities import token_quantities
from ldjax.watch.sharing import padded

__all__ = [
    "MOST_PROBES",
    "Plan",
    "Work",
    "account_options",
    "fits",
    "make_plan",
    "map_sizes",
]

#: Probes at a time where memory is no matter.
MOST_PROBES = 96

# Far below the limit nothing needs to be traced: a step holds some twenty copies of the
# parameters and of its logits.
_COPIES = 100

# The process holds up to so many times what is planned, most likely memory that was
# freed and not given back: experiments/benchmarks/memory.py measured 1.4 times for SFT
# and 1.2 times for DPO in the shapes of SmolLM2-135M (1.52 and 1.77 before the steps
# were compiled in the order that takes the least).
_SLACK = 1.8

# What a process holds besides: the libraries, and what their compiler leaves behind,
# which grows with the program. A model of nothing and two blocks had 1.1 GB; one of 30
# blocks 1.4 GB more than `_SLACK` says.
_PROCESS, _PROCESS_PER_BLOCK = int(1.1e9), int(30e6)

# Tracing takes a fifth of a second for each block. Deeper models are traced at these
# depths: each further block adds as much as the last ones did.
_TRACED_DEPTHS = (4, 6)

_UPDATE, _OBSERVATION = "an update and its account", "an observation"


class Work(NamedTuple):
    """What a run computes.

    Attributes:
      objective: What is made smaller.
      recipe: The optimizer, and how many rows an update has.
      max_length: Length of the longest prompt and response, in tokens.
      num_tracked: Responses that are accounted for at every update.
      max_response: Length of the longest response alone, in tokens; None where each
        watched row is a whole text.
      watched: Responses that are observed together, where there are few.
      has_sampler: Whether `chosen_initial` is sampled from another model.
      nodes: Along each update; None for its start alone.
      is_dated: Whether the optimizer's history is split by where it comes from.
    """

    objective: Objective
    recipe: Recipe
    max_length: int
    num_tracked: int
    max_response: int | None = None
    watched: int | None = None
    has_sampler: bool = False
    nodes: int | None = None
    is_dated: bool = False


class Plan(NamedTuple):
    """What a run takes.

    Attributes:
      parts: Bytes by what they are for, as computed; the first two stay, of the others
        one is needed at a time. Empty where the model is so small that it is no matter.
      probes: Watched responses that are computed at a time.
      process: Bytes that the process takes besides, on a device that shares its memory.
    """

    parts: Mapping[str, int]
    probes: int
    process: int = 0

    @property
    def total(self) -> int:
        """Bytes at the worst moment, with an allowance for the allocator."""
        parameters, optimizer, *passing = self.parts.values()
        return self.process + int(_SLACK * (parameters + optimizer + max(passing)))

    def __str__(self) -> str:
        parts = ", ".join(f"{k} {human_bytes(v)}" for k, v in self.parts.items())
        return (
            f"memory: {human_bytes(self.total)} at most, {human_bytes(self.process)} "
            f"for the process and {_SLACK} times what is in use ({parts}; one of the "
            f"last three at a time), probes at a time: {self.probes}"
        )


def account_options(base: Base, objective: Objective, recipe: Recipe) -> dict[str, Any]:
    """What `ldjax.make_step` is told of a run."""
    options: dict[str, Any] = {
        # In the precision of the run; what is watched is in float32.
        "apply_fn": linen.apply_fn(base.trained_model),
        "watch_fn": linen.apply_fn(base.model),
        "loss_fn": objective.loss_fn,
        "optimizer": make_optimizer(recipe),
    }
    return options | ({"where": is_adapter} if base.is_adapted else {})


def fits(base: Base, work: Work) -> Plan:
    """What a run takes, with as many probes at a time as fit.

    Args:
      base: The model; of its parameters only the shapes are read.
      work: What is computed.

    Raises:
      MemoryError: If it does not fit, with the numbers and what to do.
    """
    give_back()  # what a run before this one in the same process has left
    limit = default_limit()
    parameters = _bytes(base.params)
    logits = 4 * base.model.config.vocab_size * (work.max_length - 1)
    logits *= max(MOST_PROBES, work.num_tracked)
    if _process_bytes(base) + _COPIES * (parameters + logits) < limit:
        return Plan({}, MOST_PROBES)
    probes = MOST_PROBES if work.watched is None else min(MOST_PROBES, work.watched)
    least = make_plan(base, work, 1)
    if least.total > limit:
        raise MemoryError(
            f"the run does not fit: {least}; there are {human_bytes(limit)} to use. "
            "Choose a smaller `model`, `batch_size` or `max_length`, adapters "
            "(`lora_rank`), an `optimizer` without moments (sgd), or `history=whole`"
        )
    plan = most = make_plan(base, work, probes)
    while plan.total > limit:
        probes //= 2
        plan = _between(least, most, probes, work.num_tracked)
    return plan


def make_plan(base: Base, work: Work, probes: int) -> Plan:
    """What a run takes with so many probes at a time, whatever there is to use."""
    return Plan(_parts(base, work, probes), probes, _process_bytes(base))


def _process_bytes(base: Base) -> int:
    if jax.default_backend() != "cpu":
        return 0
    return _PROCESS + base.model.config.num_layers * _PROCESS_PER_BLOCK


def map_sizes(plan: Plan) -> dict[str, int]:
    """How a token map is computed: one token at a time where memory matters."""
    if plan.parts:
        return {"batch_size": 1, "kept_bytes": 0}
    return {"batch_size": 64, "kept_bytes": min(2**30, default_limit() // 8)}


def _between(least: Plan, most: Plan, probes: int, num_tracked: int) -> Plan:
    """The plan for a number of probes between two others, without tracing anew.

    What is live at a moment grows in proportion to the probes, so the largest of all
    moments is a convex function of their number: a straight line between two points
    lies above it, but for the few percent that a loop over slices takes. The probes of
    an update are never more than are tracked.
    """

    def at(name: str) -> int:
        limit = num_tracked if name == _UPDATE else most.probes
        whole = min(most.probes, limit) - least.probes
        share = (min(probes, limit) - least.probes) / whole if whole else 1.0
        low, high = least.parts[name], most.parts[name]
        return math.ceil(low + share * (high - low))

    return most._replace(parts={name: at(name) for name in most.parts}, probes=probes)


def _parts(base: Base, work: Work, probes: int) -> dict[str, int]:
    """Bytes by what they are for; of deep models as few blocks are traced."""
    model = base.model.config
    low, high = _TRACED_DEPTHS
    if model.num_layers <= high:
        parts = _traced(base, work, probes)
    else:
        few, more = (_traced(_cut(base, n), work, probes) for n in (low, high))
        deeper = (model.num_layers - high) / (high - low)
        parts = {
            name: math.ceil(more[name] + deeper * (more[name] - few[name]))
            for name in few
        }
    # With the state after the update that is looked at, and one half-way there.
    parts[_OBSERVATION] += 2 * parts["parameters"] + parts["optimizer"]
    # Keys and values, and the model that is sampled from, if it is another.
    keys = model.num_layers * model.num_kv_heads * model.head_dim
    other = work.has_sampler * parts["parameters"]
    return parts | {"sampling": 8 * probes * work.max_length * keys + other}


def _traced(base: Base, work: Work, probes: int) -> dict[str, int]:
    """What a run keeps, and what an update and an observation take meanwhile."""
    length = work.max_length - 1
    step, state = _step(base, work, probes)
    update, watched = _update(work, length), _watched(work, work.num_tracked, probes)
    watch_fn = linen.apply_fn(base.model)

    def look(params: Any, batch: Sequences) -> Any:
        logits = watch_fn(params, batch)
        return token_quantities(logits, batch.targets, batch.mask)

    def compare(params: Any, new_params: Any, batch: Sequences) -> Any:
        def log_probs_of(p: Any) -> Any:
            return token_log_probs(watch_fn(p, batch), batch.targets, batch.mask)

        move = jax.tree.map(jnp.subtract, new_params, params)
        # At the start of a move, or at a node along it.
        there = jax.tree.map(lambda p, m: p + 0.5 * m, params, move)
        old, predicted = jax.jvp(log_probs_of, (there,), (move,))
        return predicted, log_probs_of(new_params) - old

    observed = _watched(work, probes, probes)
    return {
        "parameters": _bytes(state.params),
        "optimizer": _bytes((state.opt_state, state.origins)),
        _UPDATE: peak_bytes(step, state, update, watched),
        _OBSERVATION: max(
            peak_bytes(look, state.params, observed),
            peak_bytes(compare, state.params, state.params, observed),
        ),
    }


def _step(base: Base, work: Work, probes: int) -> tuple[Callable[..., Any], Any]:
    """The step of a run, and the shapes of its state."""
    init, step = make_step(
        probe_batch_size=probes,
        nodes=work.nodes,
        dated=work.is_dated,
        **account_options(base, work.objective, work.recipe),
    )
    update = _update(work, work.max_length - 1)
    return step, jax.eval_shape(init, base.params, update)


def _cut(base: Base, num_layers: int) -> Base:
    """The shapes of the same model with fewer blocks."""

    def with_fewer(model: Transformer) -> Transformer:
        return Transformer(dataclasses.replace(model.config, num_layers=num_layers))

    model = with_fewer(base.model)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return base._replace(
        model=model, trained_model=with_fewer(base.trained_model), params=params
    )


def _update(work: Work, length: int) -> Any:
    """Shapes of a batch."""
    rows, objective = work.recipe.batch_size, work.objective
    side: Any = _sequences(rows, length)
    if objective.named.trains_on == "samples":
        of_tokens: Any = jax.ShapeDtypeStruct((rows, length), jnp.float32)
        side = side._replace(advantages=of_tokens, old_log_probs=of_tokens)
    elif objective.named.has_reference:
        of_rows: Any = jax.ShapeDtypeStruct((rows,), jnp.float32)
        side = side._replace(reference=of_rows)
    return {"chosen": side, "rejected": side} if objective.has_pairs else side


def _watched(work: Work, probes: int, together: int) -> Sequences:
    """Shapes of what is watched, as `ldjax.watch.sharing` has it on one device."""
    length = work.max_length - 1
    if work.max_response is None or data_mesh().size > 1:
        return _sequences(probes, length)
    each = min(probes, together, len(RESPONSE_TYPES))
    prompts = math.ceil(probes / each)
    rows = _sequences(prompts * each, padded(work.max_response))
    begun = _sequences(prompts, padded(length))
    return rows._replace(prompts=Prompts(begun.tokens, begun.mask))


def _sequences(rows: int, length: int) -> Sequences:
    ids: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask: Any = jax.ShapeDtypeStruct((rows, length), jnp.bool_)
    return Sequences(ids, ids, mask)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
