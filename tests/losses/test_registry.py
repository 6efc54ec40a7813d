"""The losses by name, and what the first step of each does on the toy data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldjax import Sequences, losses, make_step
from ldjax.data.batches import Example, to_sequences
from ldjax.data.tokenizers import train_word_level
from ldjax.data.world.world import make_world
from ldjax.linen import apply_fn
from ldjax.models import Transformer, gpt2_config

SIDES = ("chosen", "rejected")
# What a first small step has to do; None where theory leaves it open. A push of equal
# strength on all pairs widens the mean margin by the squared norm of its gradient; a
# pure push moves its own response its own way. The losses with a likelihood term lift
# chosen here, where that term outweighs what the other side takes.
FIRST_MOVES = {
    "sft": (1, None, None),
    "gradient_ascent": (None, -1, None),
    "unlikelihood": (None, -1, None),
    "dpo": (None, None, 1),
    "sigmoid": (None, None, 1),
    "cdpo": (None, None, 1),
    "spin": (None, None, 1),
    "reference_free": (None, None, 1),
    "ipo": (None, None, 1),
    "hinge": (None, None, 1),
    "slic": (None, None, 1),
    "sppo_hard": (None, None, 1),
    "simpo": (None, None, 1),
    "orpo": (1, None, None),
    "rpo": (None, None, 1),
    "kto": (None, None, 1),
    "gated_dpo": (1, None, 1),
    "reinforce": (None, None, 1),
    "grpo": (None, None, 1),
}


@pytest.fixture(scope="module")
def toy():
    """Four pairs of the toy world, a small decoder, and its log-probs of both sides."""
    world = make_world("demo", seed=0)
    tokenizer = train_word_level([" ".join(["", *world.words, "\n"])])
    pairs = {
        side: to_sequences(
            [
                Example(
                    tuple(tokenizer.encode(row["prompt"])),
                    (*tokenizer.encode(row[side]), tokenizer.end_id),
                )
                for row in world.train[:4]
            ]
        )
        for side in SIDES
    }
    model = Transformer(
        gpt2_config(
            vocab_size=tokenizer.vocab_size,
            width=16,
            num_layers=1,
            num_heads=2,
            max_positions=128,
        )
    )
    params = jax.jit(model.init)(jax.random.key(0), pairs["chosen"].tokens)["params"]
    return apply_fn(model), params, pairs


def batch_of(name, fn, params, pairs):
    """What a loss of this name trains on."""
    loss = losses.LOSSES[name]
    if loss.trains_on == "responses":
        return pairs["chosen" if name == "sft" else "rejected"]
    log_probs = {
        side: jnp.where(
            s.mask,
            jnp.take_along_axis(
                jax.nn.log_softmax(fn(params, s)), s.targets[..., None], -1
            )[..., 0],
            0,
        )
        for side, s in pairs.items()
    }
    if loss.has_reference:
        return {
            side: s._replace(reference=log_probs[side].sum(-1))
            for side, s in pairs.items()
        }
    if loss.trains_on == "samples":
        worth = {"chosen": 1.0, "rejected": -1.0}
        longest = max(s.tokens.shape[1] for s in pairs.values())
        pad = lambda x: jnp.pad(x, ((0, 0), (0, longest - x.shape[1])))
        samples = [
            s._replace(
                advantages=jnp.full_like(log_probs[side], worth[side]),
                old_log_probs=log_probs[side],
            )
            for side, s in pairs.items()
        ]
        join = lambda *sides: jnp.concatenate(jax.tree.map(pad, sides))
        return jax.tree.map(join, *samples)
    return pairs


def test_every_loss_has_an_expected_first_move():
    assert FIRST_MOVES.keys() == losses.LOSSES.keys()


@pytest.mark.parametrize(
    "name",
    [
        n
        if n in ("sft", "dpo", "grpo")
        else pytest.param(n, marks=pytest.mark.exhaustive)
        for n in FIRST_MOVES
    ],
)
@pytest.mark.slow
def test_the_first_move_on_the_toy_data_has_the_expected_signs(name, toy):
    fn, params, pairs = toy
    init, step = make_step(fn, losses.make_loss(name), optax.sgd(1e-4), parts=None)
    update = batch_of(name, fn, params, pairs)
    _, comparison = step(init(params), update, pairs)
    moves = {
        kind: {side: change.sum(-1).mean() for side, change in values.items()}
        for kind, values in (
            ("measured", comparison.measured),
            ("predicted", comparison.predicted),
        )
    }
    for moved in moves.values():
        found = (*moved.values(), moved["chosen"] - moved["rejected"])
        for change, sign in zip(found, FIRST_MOVES[name], strict=True):
            assert sign is None or np.sign(change) == sign, (name, found)


def test_coefficients_and_defaults():
    assert losses.LOSSES["cdpo"].coefficients == {"beta": 0.1, "label_smoothing": 0.1}
    assert losses.LOSSES["sft"].coefficients == {}
    # A command line gives numbers; a reduction is a word.
    assert losses.LOSSES["kto"].coefficients == {
        "beta": 0.1,
        "desirable": 1.0,
        "undesirable": 1.0,
    }
    assert losses.LOSSES["kto"].options["reduction"] == "pairs"
    assert losses.make_loss("sft") is losses.sft


def test_a_reduction_passes_by_name():
    logits = {side: jnp.zeros((2, 2, 3)) for side in SIDES}
    mask = jnp.array([[True, True], [True, False]])
    zeros = jnp.zeros((2, 2), int)
    answer = Sequences(zeros, zeros, mask, jnp.zeros(2))
    pair = {"chosen": answer, "rejected": answer}
    for name, word in (("kto", "responses"), ("rpo", "tokens"), ("orpo", "tokens")):
        make = getattr(losses, name)
        found = losses.make_loss(name, reduction=word)(logits, pair)
        assert found == make(reduction=word)(logits, pair)


def test_without_a_reference_both_responses_are_taken_to_be_equally_likely():
    logits = {side: jnp.asarray([[[0.0, i, 2.0]]]) for i, side in enumerate(SIDES)}
    one = jnp.ones((1, 1), int)
    plain = dict.fromkeys(SIDES, Sequences(one, one, one > 0))
    same = {k: s._replace(reference=jnp.full(1, -3.0)) for k, s in plain.items()}
    free, equal = losses.make_loss("reference_free"), losses.make_loss("dpo")
    assert free(logits, plain) == equal(logits, same)


@pytest.mark.parametrize(
    ("name", "coefficients", "message"),
    [
        ("ppo", {}, "there is no loss 'ppo'; there are sft, gradient_ascent, "),
        ("sft", {"beta": 0.1}, "'sft' has no coefficient 'beta'; it has none"),
        ("rpo", {"gamma": 0.1}, "no coefficient 'gamma'; it has alpha, beta"),
        ("ipo", {"beta": -1.0}, "`beta` must be positive"),
        (
            "kto",
            {"reduction": "sum"},
            "`reduction` must be 'pairs' or 'responses', got",
        ),
        ("ipo", {"reduction": "tokens"}, "'ipo' has no coefficient 'reduction'"),
    ],
)
def test_mistakes_are_named(name, coefficients, message):
    with pytest.raises(ValueError, match=message):
        losses.make_loss(name, **coefficients)
