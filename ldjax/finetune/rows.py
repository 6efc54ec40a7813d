"""What a model is finetuned on and watched with: rows of texts, as token ids."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldjax.data.batches import Example, bucket_length, to_sequences
from ldjax.data.drawn import DrawnText
from ldjax.data.preferences import PreferenceRow, Preferences, read_preferences
from ldjax.data.responses import RowExamples, count_cuts, count_notes, fill_types
from ldjax.data.world.world import World
from ldjax.equation.sequences import ApplyFn, LossFn, Sequences, is_sequences
from ldjax.finetune.start import Base
from ldjax.models.decoder.sampling import generate_sampled
from ldjax.models.decoder.scoring import make_score_fn
from ldjax.models.hub.files import download
from ldjax.watch.probes import Probe
from ldjax.watch.record import row_name

# The tokenisation protocol of a run: `to_examples` with everything but the row, of
# which a keyword may be given anew.
Encoder = Callable[..., RowExamples]

__all__ = [
    "Data",
    "Encoder",
    "add_initial",
    "cropped",
    "file_data",
    "hub_data",
    "make_probes",
    "summed_over_sides",
    "told_of",
    "toy_data",
    "training_rows",
    "with_advantages",
]


class Data(NamedTuple):
    """Rows by set, and an account of how they were read.

    Attributes:
      train: Rows to train on, and to watch as the set `train` (the paper's D_prob).
      test: Rows that are watched only, as the set `test` (D_probtest).
      summary: For `summary.json`.
    """

    train: list[PreferenceRow]
    test: list[PreferenceRow]
    summary: dict[str, Any]


def toy_data(world: World) -> Data:
    """The rows of a toy world."""

    def rows(name: str, dicts: Sequence[dict[str, str]]) -> list[PreferenceRow]:
        return [
            PreferenceRow(
                content["prompt"],
                {type_: text for type_, text in content.items() if type_ != "prompt"},
                f"{name}:{number}",
            )
            for number, content in enumerate(dicts, 1)
        ]

    train, test = rows("train", world.train), rows("test", world.test)
    return Data(train, test, {"num_train": len(train), "num_test": len(test)})


def hub_data() -> tuple[Path, Path]:
    """Anthropic's helpful-base pairs, training and test, from the hub or its cache."""
    files = [f"helpful-base/{name}.jsonl.gz" for name in ("train", "test")]
    try:
        folder = download("Anthropic/hh-rlhf", patterns=files, kind="dataset")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}\nThey are --data FOLDER/{files[0]} --test-data FOLDER/{files[1]}"
        ) from error
    train, test = (folder / file for file in files)
    return train, test


def file_data(
    train: Path,
    test: Path | None,
    *,
    max_rows: int,
    required: Sequence[str],
    on_bad_row: Literal["error", "skip"],
    blank: Literal["bad", "keep"],
    seed: int,
) -> Data:
    """The rows of files, with the types that can be made from others filled in.

    Args:
      train: File to train on.
      test: File that is watched only.
      max_rows: Training rows that are used, the first ones; all if 0.
      required: Responses that a row must have.
      on_bad_row: As in `read_preferences`.
      blank: Likewise.
      seed: Of what is drawn.
    """

    def read(path: Path) -> Preferences:
        return read_preferences(
            path, required=required, on_bad_row=on_bad_row, blank=blank
        )

    found = read(train)
    held_out = None if test is None else read(test)
    unseen = [] if held_out is None else held_out.rows
    summary = {"train": found.summary()}
    if held_out is not None:
        summary["test"] = held_out.summary()
    rows = found.rows[: max_rows or None]
    rows = fill_types(rows, seed=seed, unseen=unseen)
    summary["left_out"] = _left_out(rows, has_unseen=bool(unseen))
    return Data(rows, unseen, summary)


def _left_out(rows: Sequence[PreferenceRow], *, has_unseen: bool) -> dict[str, int]:
    """Of how many rows a type could not be made (see `fill_types`)."""
    made = ["irr_train", "random_permute"]
    if has_unseen:
        made += ["irr_test", "random_nonhum"]
    lacking = {type_: sum(type_ not in row.responses for row in rows) for type_ in made}
    return {type_: count for type_, count in lacking.items() if count}


def add_initial(
    rows: Sequence[PreferenceRow],
    base: Base,
    encode: Encoder,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[PreferenceRow]:
    """Rows with `chosen_initial`, sampled from the model where they lack it.

    The samples keep the ids that were drawn, and end where the model ends them.
    """
    lacking = [row for row in rows if "chosen_initial" not in row.responses]
    if not lacking:
        return list(rows)
    prompts = [
        list(encode(row, tokenizer=base.tokenizer).examples["chosen"].prompt_ids)
        for row in lacking
    ]
    # A key for each row: what it gets does not depend on how many are drawn at a time.
    rows_of = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = rows_of(jax.random.key(seed), jnp.arange(len(prompts)))
    texts: list[DrawnText] = []
    for start in range(0, len(prompts), batch_size):
        drawn = generate_sampled(
            base.model,
            base.params,
            prompts[start : start + batch_size],
            key=keys[start : start + batch_size],
            max_new_tokens=max_new_tokens,
            eos_id=base.tokenizer.end_ids,
        )
        texts += [DrawnText(ids, base.tokenizer) for ids in drawn.responses()]
    sampled = iter(texts)
    return [
        row
        if "chosen_initial" in row.responses
        else row._replace(responses=row.responses | {"chosen_initial": next(sampled)})
        for row in rows
    ]


def make_probes(
    set_name: str,
    rows: Sequence[PreferenceRow],
    places: Sequence[int],
    encode: Encoder,
    types: Sequence[str],
) -> list[Probe]:
    """The probes of some rows; a row's name is its place in the file."""
    return [
        Probe(row_name(set_name, place), type_, example)
        for place in places
        for type_, example in encode(rows[place]).examples.items()
        if type_ in types
    ]


def training_rows(
    rows: Sequence[PreferenceRow],
    encode: Encoder,
    *,
    target: Sequence[str] | None,
    max_length: int,
    also: Sequence[PreferenceRow] = (),
) -> tuple[Any, dict[str, int]]:
    """The training examples as one padded pytree of rows, and how much was cut.

    Rows of the target's responses, or with None of pairs.

    Args:
      rows: The texts.
      encode: How they are read.
      target: Response types, each an example of its own; None for pairs.
      max_length: Length that others are padded to as well, in tokens; examples may be
        longer.
      also: Rows that are watched only: how they were read is counted, too.
    """
    encoded = [encode(row) for row in rows]

    def padded(examples: Sequence[Example]) -> Sequences:
        most = max([max_length, *(example.check() for example in examples)])
        return jax.tree.map(np.asarray, to_sequences(examples, max_length=most))

    if target is not None:
        # Each prompt with its targets in turn, as in the authors' extended set.
        rows_ = padded([row.examples[type_] for row in encoded for type_ in target])
    else:
        sides = ("chosen", "rejected")
        rows_ = {
            side: padded([row.examples[side] for row in encoded]) for side in sides
        }
    notes = count_notes([*encoded, *map(encode, also)])
    return rows_, count_cuts(encoded) | notes


def told_of(counts: dict[str, int]) -> str:
    """A line for each note among the counts of `training_rows`."""
    notes = {n: count for n, count in counts.items() if not n.startswith("num_")}
    return "".join(f"\nnote: {n} ({count:,} prompts)" for n, count in notes.items())


#: What the preference of a pair is worth to a policy gradient.
_ADVANTAGES = {"chosen": 1.0, "rejected": -1.0}


def with_advantages(
    apply_fn: ApplyFn, params: Any, rows: Any, *, batch_size: int
) -> dict[str, Sequences]:
    """Both sides of pairs as samples, as if the policy at the start had drawn them."""
    score_fn = make_score_fn(apply_fn)

    def sample(side: Sequences, advantage: float) -> Sequences:
        old = jnp.concatenate(
            [
                score_fn(params, jax.tree.map(lambda x: x[i : i + batch_size], side))  # noqa: B023
                for i in range(0, len(side.targets), batch_size)
            ]
        )
        worth = jnp.full_like(old, advantage)
        return side._replace(advantages=worth, old_log_probs=old)

    return {name: sample(rows[name], worth) for name, worth in _ADVANTAGES.items()}


def summed_over_sides(loss_fn: LossFn) -> LossFn:
    """A loss of samples on a batch with sides."""

    def total(logits: Any, batch: Any) -> Any:
        return sum(loss_fn(logits[side], batch[side]) for side in batch)

    return total


def cropped(batch_fn: Callable[[int], Any]) -> Callable[[int], Any]:
    """Batches without the padding that all of their rows have, in few lengths."""

    def cropped_batch(step: int) -> Any:
        batch = batch_fn(step)
        sides = jax.tree.leaves(batch, is_leaf=is_sequences)
        longest = max(
            int(np.flatnonzero(np.asarray(side.mask).any(0))[-1]) + 1 for side in sides
        )
        length = bucket_length(longest, max(side.mask.shape[1] for side in sides))

        def crop(side: Any) -> Any:
            # What has one number for each row, such as a reference, has no padding.
            return jax.tree.map(
                lambda leaf: leaf[:, :length] if leaf.ndim > 1 else leaf, side
            )

        return jax.tree.map(crop, batch, is_leaf=is_sequences)

    return cropped_batch
