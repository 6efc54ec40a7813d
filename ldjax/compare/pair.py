"""Two models as one architecture with two sets of parameters.

Between the two lies the straight line along which a difference is divided, so both need
the same parameters. A model without adapters beside one that has them gets adapters
that do nothing; a head that is tied to the embedding becomes a matrix of its own, so
that what either use of it did is told apart.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldjax.data.tokenizers import Tokenizer, load_tokenizer
from ldjax.equation.subset import merge, split
from ldjax.memory import refuse_above
from ldjax.models import Pretrained, Transformer, is_adapter, load, merge_adapters
from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.hub.tensors import leaf_names, nested
from ldjax.models.pretrained import with_adapters

__all__ = ["Pair", "Source", "named", "pair_of", "silenced", "untied"]

#: What `ldjax.models.load` takes, or a model that is loaded already.
Source = str | Path | Pretrained

#: Sets of parameters that are held at a time: both ends, their difference, a place on
#: the way, and a gradient there.
_COPIES = 5

#: What a model computes does not depend on them.
_FREE = {"dtype", "param_dtype", "remat", "adapters"}


class Pair(NamedTuple):
    """Two models of one architecture.

    Attributes:
      model: The architecture as a Linen module.
      before: The parameters of the first.
      after: Those of the second.
      tokenizer: That of both; None if they have none.
      notes: What was done to make them comparable, in words.
    """

    model: Transformer
    before: Any
    after: Any
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]


def pair_of(
    before: Source,
    after: Source,
    *,
    tokenizer: Path | None = None,
    is_untied: bool = True,
) -> Pair:
    """Load two models that have one architecture.

    Args:
      before: The first model.
      after: The second one.
      tokenizer: A folder with a `tokenizer.json` that reads the texts of both, instead
        of their own.
      is_untied: Whether a tied head becomes a matrix of its own.

    Raises:
      FileNotFoundError: As `ldjax.models.load`.
      MemoryError: If they do not fit, before their weights are read.
      ValueError: If they differ in architecture, naming the first setting that does; if
        their tokenizers differ.

    Examples:
      >>> pair_of("/nowhere", "/nowhere")
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no folder /nowhere.
    """
    shapes = (_loaded(before, shapes_only=True), _loaded(after, shapes_only=True))
    names = named(before), named(after)
    _refuse_other_architecture(*shapes, names)
    read = _tokenizer(*shapes, names, tokenizer)
    needed = _COPIES * max(map(_bytes, shapes))
    refuse_above(
        None, needed, what="the comparison", instead="compare on a larger machine"
    )
    first, second, notes = _alike(_loaded(before), _loaded(after))
    if first.config.tied_head and is_untied:
        notes.append("The tied embedding counts apart, as embedding and as head.")
        first, second = untied(first), untied(second)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves((first.params, second.params))]
    wide = jnp.result_type(jnp.float32, *dtypes)
    params = (
        jax.tree.map(lambda x: x.astype(wide), first.params),
        jax.tree.map(lambda x: x.astype(wide), second.params),
    )
    model = Transformer(dataclasses.replace(first.config, dtype=None))
    return Pair(model, *params, read, tuple(notes))


def untied(model: Pretrained) -> Pretrained:
    """The same function with a head of its own, a copy of the embedding.

    Args:
      model: A model with a tied head.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> config = gpt2_config(vocab_size=10, num_layers=1)
      >>> model = Transformer(config)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
      >>> tied = Pretrained(model, params, config, None)
      >>> untied(tied).params["unembedding"]["kernel"].shape
      (64, 10)
    """
    config = dataclasses.replace(model.config, tied_head=False)
    head = model.params["token_embedding"]["embedding"].T
    params = model.params | {"unembedding": {"kernel": head}}
    return Pretrained(Transformer(config), params, config, model.tokenizer)


def named(source: Source) -> str:
    """What messages call a model."""
    return "the given model" if isinstance(source, Pretrained) else str(source)


def _loaded(source: Source, *, shapes_only: bool = False) -> Pretrained:
    if isinstance(source, Pretrained):
        return source
    return load(source, shapes_only=shapes_only)


def _refuse_other_architecture(
    first: Pretrained, second: Pretrained, names: tuple[str, str]
) -> None:
    """Name the first setting in which two models differ."""
    free = set(_FREE)
    if first.config.positions == "rotary":
        free.add("max_positions")  # stated and not enforced
    for field in dataclasses.fields(TransformerConfig):
        values = [getattr(of.config, field.name) for of in (first, second)]
        if field.name not in free and values[0] != values[1]:
            raise ValueError(
                f"{names[0]} and {names[1]} are not two checkpoints of one "
                f"architecture: `{field.name}` is {values[0]!r} in the first and "
                f"{values[1]!r} in the second."
            )


def _tokenizer(
    first: Pretrained, second: Pretrained, names: tuple[str, str], given: Path | None
) -> Tokenizer | None:
    """What reads the texts of both."""
    if given is not None:
        return load_tokenizer(given, vocab_size=first.config.vocab_size)
    found = [of.tokenizer for of in (first, second) if of.tokenizer is not None]
    if len(found) == 2 and not found[0].agrees(found[1]):
        raise ValueError(
            f"{names[0]} and {names[1]} have different tokenizers: the same ids mean "
            "other texts. Say `tokenizer` and the folder of the one that reads the "
            "texts of both, if there is one."
        )
    return found[0] if found else None


def _alike(
    first: Pretrained, second: Pretrained
) -> tuple[Pretrained, Pretrained, list[str]]:
    """Both with the same adapters, or none."""
    of_first, of_second = first.config.adapters, second.config.adapters
    if of_first == of_second:
        return first, second, []
    if of_first is None:
        return _silenced_on(first, second), second, ["Before, the adapters do nothing."]
    if of_second is None:
        return first, _silenced_on(second, first), ["After, the adapters do nothing."]
    note = "The adapters of the two differ in kind, so they are merged in both."
    return merge_adapters(first), merge_adapters(second), [note]


def silenced(adapted: Pretrained) -> Pretrained:
    """A model whose adapters do nothing: their `B` is zero.

    Their `A` stays. So the product of the two, and with it the model, moves on a
    straight line to the adapters as they are.

    Args:
      adapted: A model with adapters.

    Examples:
      >>> from ldjax.models import LowRank, llama_config
      >>> adapters = LowRank(rank=2, alpha=4.0, targets=("up",))
      >>> config = llama_config(vocab_size=10, num_layers=1)
      >>> config = dataclasses.replace(config, adapters=adapters)
      >>> tokens = jnp.zeros((1, 1), int)
      >>> params = Transformer(config).init(jax.random.key(0), tokens)["params"]
      >>> found = silenced(Pretrained(Transformer(config), params, config, None))
      >>> float(abs(found.params["blocks_0"]["mlp"]["up_lora_b"]["kernel"]).max())
      0.0
    """
    chosen, rest = split(adapted.params, is_adapter)
    is_b: Callable[[str], bool] = lambda name: name.endswith("_lora_b/kernel")
    leaves = {
        name: jnp.zeros_like(leaf) if is_b(name) else leaf
        for name, leaf in leaf_names(chosen).items()
    }
    return adapted._replace(params=merge(nested(leaves), rest))


def _silenced_on(base: Pretrained, adapted: Pretrained) -> Pretrained:
    """A model with another one's adapters, which do nothing."""
    chosen, _ = split(silenced(adapted).params, is_adapter)
    return with_adapters(base, adapted.config.adapters, chosen)


def _bytes(model: Pretrained) -> int:
    leaves = jax.tree.leaves(model.params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
