"""The record of what is read and scored: what it takes, and what passes through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldjax import Sequences
from ldjax.equation.sequences import check_sequences, like, sides_of
from ldjax.runs.devices import data_mesh, fill_up, shard


def _answers(**fields):
    """Two rows of three positions, ids and labels below 5; right but for `fields`."""
    mask = jnp.array([[False, True, True], [False, True, False]])
    right = {
        "tokens": jnp.array([[0, 1, 2], [3, 4, 0]]),
        "targets": jnp.where(mask, jnp.array([[1, 2, 3], [4, 0, 0]]), -100),
        "mask": mask,
    }
    return Sequences(**(right | fields))


RIGHT = [
    _answers(),
    _answers(reference=jnp.zeros(2, jnp.bfloat16)),
    _answers(advantages=np.zeros((2, 3))),
    _answers(tokens=np.zeros((2, 28, 28), np.float32)),  # images
    _answers(targets=jnp.ones((2, 1), int), mask=jnp.ones((2, 1), bool)),  # classifier
    {"chosen": _answers(), "rejected": _answers(), "weight": jnp.float32(-1)},
    jax.eval_shape(lambda: _answers()),  # nothing to see
    Sequences(jnp.zeros((0, 3), int), jnp.zeros((0, 3), int), jnp.zeros((0, 3), bool)),
]


@pytest.mark.parametrize("sequences", RIGHT, ids=range(len(RIGHT)))
def test_what_can_be_scored_passes(sequences):
    check_sequences(sequences)
    check_sequences(sequences, vocab_size=5)


WRONG = {
    # field: what stands there, what the message says
    "ignored label": (
        {"targets": jnp.array([[0, -100, 3], [0, 0, 0]])},
        r"`batch.targets` is -100 at \[0, 1\], where the mask is true.*in \[0, 5\)",
    ),
    "label beyond": (
        {"targets": jnp.array([[9, 1, 3], [9, 5, 9]])},
        r"`batch.targets` is 5 at \[1, 1\]",
    ),
    "id beyond": (
        {"tokens": jnp.array([[0, 1, 2], [3, 4, 5]])},
        r"`batch.tokens` is 5 at \[1, 2\], which is no token id. .*in \[0, 5\)",
    ),
    "negative id": (
        {"tokens": np.array([[0, -1, 2], [3, 4, 0]])},
        r"`batch.tokens` is -1 at \[0, 1\]",
    ),
    "no batch axis": (
        {"mask": jnp.ones(3, bool)},
        r"mask` must be \[batch, pos\]",
    ),
    "no position": (
        {"targets": jnp.zeros(2, int)},
        r"`batch.targets` must have the shape \(2, 3\).*got \(2,\)",
    ),
    "other rows": ({"tokens": jnp.zeros((3, 3), int)}, r"tokens` must have 2 rows"),
    "not shifted": (
        {"tokens": jnp.zeros((2, 4), int)},
        r"each position has one target, the token after it",
    ),
    "reference of tokens": ({"reference": jnp.zeros((2, 3))}, r"the shape \(2,\)"),
    "advantage of rows": ({"advantages": jnp.zeros(2)}, r"the shape \(2, 3\)"),
    "mask of ints": ({"mask": jnp.ones((2, 3), int)}, "must be booleans, got int64"),
    "float labels": ({"targets": jnp.ones((2, 3))}, "must be integers, got float64"),
    "bool tokens": ({"tokens": jnp.ones((2, 3), bool)}, "token ids .integers. or im"),
    "integer reference": ({"reference": jnp.zeros(2, int)}, "must be floats, got int"),
    "a list": ({"targets": [[0] * 3] * 2}, "`batch.targets` must be an array, got li"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_would_be_scored_wrongly_is_named(case):
    fields, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=message):
        check_sequences(_answers(**fields), vocab_size=5, name="batch")
    side = r"batch\['side'\]."  # the same inside a pair, by its key
    with pytest.raises((ValueError, TypeError), match=message.replace("batch.", side)):
        check_sequences({"side": _answers(**fields)}, vocab_size=5, name="batch")


def test_a_classifier_of_texts_has_two_vocabularies():
    texts = Sequences(jnp.full((1, 4), 900), jnp.array([[2]]), jnp.ones((1, 1), bool))
    check_sequences(texts, vocab_size=1000, num_labels=3)
    with pytest.raises(ValueError, match=r"targets` is 2 .* in \[0, 2\)"):
        check_sequences(texts, vocab_size=1000, num_labels=2)


def test_what_is_traced_is_taken_as_it_is():
    wrong = _answers(targets=jnp.full((2, 3), -100))

    def check(sequences):
        check_sequences(sequences, vocab_size=5)
        return sequences.mask.sum()

    assert jax.jit(check)(wrong) == 3
    assert jax.vmap(check)(wrong).sum() == 3


def test_what_is_not_given_stays_so_whatever_is_done_with_rows():
    pair = {"chosen": _answers(reference=jnp.arange(2.0)), "rejected": _answers()}
    mesh = data_mesh()
    for done in (
        jax.tree.map(lambda leaf: leaf[-1:], pair),
        jax.tree.map(np.asarray, pair),
        jax.jit(lambda pair: pair)(pair),
        jax.vmap(lambda pair: pair)(pair),
        shard(fill_up(pair, mesh), mesh),
    ):
        assert done["chosen"].reference[-1] == 1
        assert done["chosen"].advantages is None
        assert done["rejected"].reference is None


def test_a_batch_comes_apart_in_plain_sides_and_together_again():
    answer = _answers(advantages=jnp.zeros((2, 3)))
    sides = sides_of({"pair": [answer, answer]})
    assert [*sides] == ["pair/0", "pair/1"]
    assert sides["pair/0"].advantages is None
    assert like({"pair": [answer, answer]}, [1, 2]) == {"pair": [1, 2]}
    with pytest.raises(TypeError, match=r"^A batch is a .* got ArrayImpl"):
        sides_of({"chosen": answer, "rejected": jnp.zeros(2)})
