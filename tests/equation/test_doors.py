"""Doors: whatever takes ids, parameters or logits refuses those that are none, by name.

A table of doors and of bad inputs. Each message names the argument, and an input that
is right passes the same door.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from zoo.cases import VOCAB, apply_toy, toy_params
from zoo.decoders import make_decoder

import ldjax
from ldjax.data.batches import Example, bucketed_batches, check_count, to_sequences
from ldjax.data.reference import add_reference
from ldjax.equation.doors import check_params
from ldjax.linen import apply_fn as linen_apply_fn
from ldjax.linen import logits_fn
from ldjax.models.decoder.sampling import generate_greedy
from ldjax.models.decoder.scoring import make_score_fn, score_examples, score_responses
from ldjax.programs.lookups import find_lookups
from ldjax.runs.loop import make_train_step, mean_token_loss
from ldjax.theory.displacement import pair_products
from ldjax.watch.probes import Probe, ProbeSet, make_change_fn, make_observe_fn

PROMPT, ANSWER = (1, 2, 3), (4, 0)
PARAMS = toy_params()
MOVED = jax.tree.map(lambda leaf: 1.01 * leaf, PARAMS)


def batch_of(prompt=PROMPT, answer=ANSWER):
    """One row of four positions, of which the last two are scored."""
    ids = np.array([*prompt, *answer])
    mask = np.arange(len(ids) - 1)[None] >= len(prompt) - 1
    return ldjax.Sequences(*map(jnp.asarray, (ids[None, :-1], ids[None, 1:], mask)))


def probe_set(batch):
    """Batches of one's own."""
    probe = Probe("train/0", "chosen", Example(PROMPT, ANSWER))
    return ProbeSet((probe,), ((np.array([0]), batch),))


def score(apply_fn, params, batch):
    return make_score_fn(apply_fn)(params, batch)


def observe(apply_fn, params, batch):
    return make_observe_fn(apply_fn, probe_set(batch))(params)


def change(apply_fn, params, batch):
    moved = jax.tree.map(lambda leaf: leaf, params)
    return make_change_fn(apply_fn, probe_set(batch))(params, moved)


def reference(apply_fn, params, batch):
    return add_reference(apply_fn, params, {"chosen": batch}, batch_size=2)


def train(apply_fn, params, batch):
    init, step = make_train_step(apply_fn, mean_token_loss, optax.sgd(0.1))
    return step(init(params), batch)


DOORS = {
    "score": score,
    "observe": observe,
    "change": change,
    "reference": reference,
    "train": train,
}


class Tagger(nn.Module):
    """Somebody's own model."""

    num_tokens: int = VOCAB

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(VOCAB)(nn.Embed(self.num_tokens, 3)(tokens))


def linen_model():
    module = Tagger()
    params = jax.jit(module.init)(jax.random.key(0), batch_of().tokens)["params"]
    return linen_apply_fn(module), params


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(VOCAB, 4, rngs=rngs)
            self.out = nnx.Linear(4, VOCAB, rngs=rngs)

        def __call__(self, tokens):
            return self.out(self.embed(tokens))

    graph, params = nnx.split(Model(nnx.Rngs(0)), nnx.Param)
    return lambda p, s: nnx.merge(graph, p)(s.tokens), params


def one_hot_model():
    params = jnp.asarray(np.random.default_rng(0).normal(size=(VOCAB, VOCAB)))
    return lambda p, s: jax.nn.one_hot(s.tokens, VOCAB) @ p, params


def compiled_model():
    inner = jax.jit(lambda p, s: apply_toy(p, s))
    inner(PARAMS, batch_of())  # traced before any door sees it
    return lambda p, s: inner(p, s), PARAMS


MODELS = {
    "toy": lambda: (apply_toy, PARAMS),
    "linen": linen_model,
    "nnx": nnx_model,
    "one-hot": one_hot_model,
    "compiled before": compiled_model,
}

BAD_IDS = {
    "token beyond": (
        batch_of(prompt=(1, VOCAB, 3)),
        r"tokens` is 7 at \[0, 1\]",
    ),
    "negative token": (batch_of(prompt=(1, -2, 3)), r"tokens` is -2 at \[0, 1\]"),
    "target beyond": (
        batch_of()._replace(targets=jnp.full((1, 4), VOCAB)),
        r"targets` is 7 at \[0, 2\], where the mask is true",
    ),
    "target of -100": (
        batch_of()._replace(targets=jnp.full((1, 4), -100)),
        r"targets` is -100 at \[0, 2\], where the mask is true; set the mask to false",
    ),
    "float mask": (
        batch_of()._replace(mask=jnp.ones((1, 4))),
        "mask` must be booleans, got float64",
    ),
    "float targets": (
        batch_of()._replace(targets=jnp.ones((1, 4))),
        "targets` must be integers, got float64",
    ),
    "a list": (batch_of()._replace(tokens=[[1, 2, 3, 4]]), "tokens` must be an array"),
    "short targets": (
        batch_of()._replace(targets=jnp.ones((1, 3), int)),
        r"targets` must have the shape \(1, 4\)",
    ),
}


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("door", DOORS)
def test_ids_that_a_model_does_not_know_are_refused(door, bad):
    batch, message = BAD_IDS[bad]
    with pytest.raises((ValueError, TypeError), match=message):
        DOORS[door](apply_toy, PARAMS, batch)


@pytest.mark.parametrize("model", MODELS)
def test_the_vocabulary_of_any_model_is_found(model):
    apply_fn, params = MODELS[model]()
    score_fn = make_score_fn(apply_fn)
    assert np.isfinite(score_fn(params, batch_of())).all()
    for bad in ("token beyond", "target beyond"):
        batch, message = BAD_IDS[bad]
        with pytest.raises(ValueError, match=message):
            score_fn(params, batch)


def test_ids_of_other_tables_and_guarded_lookups_are_not_mistaken():
    table = jnp.zeros((VOCAB, VOCAB))
    fits = {
        "more tokens than labels": lambda p, s: jnp.zeros((VOCAB + 1, VOCAB))[s.tokens],
        "clip": lambda p, s: p[jnp.clip(s.tokens, 0, VOCAB - 1)],
        "mode": lambda p, s: jnp.take(p, s.tokens, axis=0, mode="clip"),
        "unknown words": lambda p, s: p[jnp.where(s.tokens < VOCAB, s.tokens, 0)],
    }
    batch, _ = BAD_IDS["token beyond"]
    for name, apply_fn in fits.items():
        found = make_score_fn(apply_fn)(table, batch)
        np.testing.assert_allclose(found[0, 2:], -np.log(VOCAB), err_msg=name)


@pytest.mark.parametrize("transform", ["grad", "vmap", "scan", "remat", "map"])
def test_lookups_are_found_wherever_they_are(transform):
    table, tokens = jnp.zeros((5, 3)), jnp.zeros((2, 4), int)
    read = lambda table, ids: table[ids]
    fns = {
        "grad": jax.grad(lambda *args: read(*args).sum()),
        "vmap": jax.vmap(read, (None, 0)),
        "scan": lambda t, ids: jax.lax.scan(lambda c, x: (c, t[x]), 0, ids)[1],
        "remat": jax.checkpoint(read),
        "map": lambda t, ids: jax.lax.map(lambda x: t[x], ids, batch_size=1),
    }
    jaxpr = jax.make_jaxpr(fns[transform])(table, tokens).jaxpr
    assert set(find_lookups(jaxpr, [False, True]).vocab_sizes) == {5}


def test_more_positions_than_a_table_has_are_refused():
    def apply_fn(params, s):
        place = jnp.arange(s.tokens.shape[1])
        return params["embed"][s.tokens] + params["place"][place][None]

    params = {"embed": jnp.zeros((VOCAB, VOCAB)), "place": jnp.zeros((3, VOCAB))}
    with pytest.raises(ValueError, match=r"have 4 positions, .* learned 3"):
        score(apply_fn, params, batch_of())


BAD_LOGITS = {
    "classifier": (lambda z: z[:, 0], r"logits of shape \(., 7\) for targets of shape"),
    "a position less": (lambda z: z[:, 1:], r"logits of shape \(., 3, 7\) for targets"),
    "bfloat16": (lambda z: z.astype("bfloat16"), "bfloat16 logits, too coarse"),
    "integers": (lambda z: z.astype(int), "int64 logits"),
    "tuple": (lambda z: (z, None), "must return logits, one array .* got tuple"),
    "dict": (lambda z: {"logits": z}, "must return logits, one array .* got dict"),
}


@pytest.mark.parametrize("bad", BAD_LOGITS)
@pytest.mark.parametrize("door", DOORS)
def test_what_are_no_logits_is_refused(door, bad):
    spoil, message = BAD_LOGITS[bad]
    with pytest.raises((ValueError, TypeError), match=message):
        DOORS[door](lambda p, s: spoil(apply_toy(p, s)), PARAMS, batch_of())


def donated():
    params = jax.tree.map(jnp.copy, PARAMS)
    params["bias"].delete()
    return params


BAD_PARAMS = {
    "none": (lambda: None, "`params` must hold at least one array of floats, got None"),
    "string": (
        lambda: {"a": "weights"},
        r"`params\['a'\]` must be an array of",
    ),
    "integers": (
        lambda: {**PARAMS, "count": jnp.array(3)},
        r"`params\['count'\]` is int64, which has no derivative",
    ),
    "bools": (
        lambda: {**PARAMS, "is_on": np.array(True)},
        r"`params\['is_on'\]` is bool, which has no derivative",
    ),
    "donated": (donated, r"`params\['bias'\]` was donated to a compiled function"),
}


@pytest.mark.parametrize("bad", BAD_PARAMS)
def test_what_are_no_parameters_is_refused(bad, tmp_path):
    make, message = BAD_PARAMS[bad]
    change_fn = make_change_fn(apply_toy, probe_set(batch_of()))
    with pytest.raises((ValueError, TypeError), match=message):
        change_fn(make(), PARAMS)
    with pytest.raises((ValueError, TypeError), match=message):
        check_params(make())
    probes = [Probe("train/0", "chosen", Example(PROMPT, ANSWER))]
    recorder = ldjax.Recorder(tmp_path / "run", apply_toy, probes)
    with pytest.raises((ValueError, TypeError), match=message):
        recorder(0, make(), PARAMS)
    if bad in ("string", "donated"):
        for door in (score, observe):
            with pytest.raises((ValueError, TypeError), match=message):
                door(apply_toy, make(), batch_of())


def test_parameters_before_and_after_a_step_are_alike():
    change_fn = make_change_fn(apply_toy, probe_set(batch_of()))
    for other, message in (
        (
            {**PARAMS, "bias": jnp.zeros(3)},
            r"`new_params\['bias'\]` is float64\(3,\), ",
        ),
        ({"embed": PARAMS["embed"]}, r"`new_params\['bias'\]` is nothing, "),
    ):
        with pytest.raises(ValueError, match=message):
            change_fn(PARAMS, other)


def test_a_state_is_whole_after_a_batch_was_refused():
    init, step = make_train_step(apply_toy, mean_token_loss, optax.sgd(0.1))
    state = init(PARAMS)
    with pytest.raises(ValueError, match=r"`batch.tokens` is 7 at \[0, 1\]"):
        step(state, BAD_IDS["token beyond"][0])
    after, _ = step(state, batch_of())
    with pytest.raises(ValueError, match=r"`state.params\['bias'\]` was donated"):
        step(state, batch_of())
    assert np.isfinite(after.loss)


def test_a_door_does_not_trace_a_second_time_and_is_open_inside_transformations():
    calls = []

    def apply_fn(params, s):
        calls.append(s.tokens.shape)
        return apply_toy(params, s)

    score_fn = make_score_fn(apply_fn)
    score_fn(PARAMS, batch_of())
    score_fn(PARAMS, batch_of())
    assert len(calls) == 1
    slope = jax.jit(jax.grad(lambda p, s: score_fn(p, s).sum()))(PARAMS, batch_of())
    assert jax.tree.structure(slope) == jax.tree.structure(PARAMS)
    jax.grad(lambda p: score_fn(p, batch_of()).sum())(PARAMS)


def test_a_door_knows_each_model_that_passes():
    score_fn = make_score_fn(lambda table, s: table[s.tokens])
    batch = batch_of()
    score_fn(jnp.zeros((8, 8)), batch)
    with pytest.raises(ValueError, match=r"tokens` is 4 at \[0, 3\]"):
        score_fn(jnp.zeros((4, 4)), batch)
    score_fn(jnp.zeros((8, 8)), batch)


def make_example(*ids):
    """Of whatever somebody may pass."""
    return Example(*ids)


BAD_EXAMPLES = {
    "negative": (
        Example((1, -100), (2,)),
        r"`prompt_ids` is -100 at \[1\], which",
    ),
    "floats": (
        make_example((1.0, 2.5), (2,)),
        "`prompt_ids` must be token ids, one",
    ),
    "image": (
        make_example(np.zeros((28, 28)), (3,)),
        r"got float64 of shape \(28, 28\)",
    ),
    "bools": (make_example((True, False), (2,)), "`prompt_ids` must be token ids"),
    "words": (make_example((1,), "yes"), "`response_ids` must be token ids"),
    "huge": (make_example((1,), (2**40,)), r"`response_ids` is 1099511627776 at \[0\]"),
    "no prompt": (make_example((), (1,)), "`prompt_ids` must hold at least one token"),
    "no answer": (
        make_example((1,), ()),
        "`response_ids` must hold at least one token",
    ),
}


@pytest.mark.parametrize("bad", BAD_EXAMPLES)
def test_what_are_no_ids_does_not_become_a_batch(bad, tmp_path):
    example, message = BAD_EXAMPLES[bad]
    doors = {
        "check": example.check,
        "to_sequences": lambda: to_sequences([example]),
        "batches": lambda: list(
            bucketed_batches([example], max_length=2000, batch_size=1)
        ),
        "ProbeSet": lambda: ProbeSet.of(
            [Probe("train/0", "mine", example)], max_length=2000, batch_size=1
        ),
        "Recorder": lambda: ldjax.Recorder(
            tmp_path / "run", apply_toy, [Probe("train/0", "mine", example)]
        ),
        "score_examples": lambda: score_examples(
            *(make_score_fn(apply_toy), PARAMS, [example]), max_length=9, batch_size=1
        ),
    }
    for name, door in doors.items():
        if bad == "image" and name == "score_examples":
            continue  # too long before anything else
        with pytest.raises((ValueError, TypeError), match=message):
            door()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [0, -1, True])
def test_sizes_that_count_nothing_are_refused(size, tmp_path):
    probes = [Probe("train/0", "chosen", Example(PROMPT, ANSWER))]
    doors = (
        lambda: ProbeSet.of(probes, max_length=8, batch_size=size),
        lambda: ldjax.Recorder(tmp_path, apply_toy, probes, batch_size=size),
        lambda: add_reference(apply_toy, PARAMS, batch_of(), batch_size=size),
    )
    for door in doors:
        with pytest.raises((ValueError, TypeError), match="`batch_size` must be "):
            door()
    for value in (1.5, "8", None):
        with pytest.raises(TypeError, match="`every` must be a positive integer, got"):
            check_count("every", value)


def test_a_probe_of_unknown_ids_is_named():
    probes = [
        Probe("train/0", "chosen", Example(PROMPT, ANSWER)),
        Probe("test/3", "mine", Example((1, 2), (5, VOCAB, 2))),
    ]
    watched = ProbeSet.of(probes, max_length=8, batch_size=2)
    for call in (
        lambda: make_observe_fn(apply_toy, watched)(PARAMS),
        lambda: make_change_fn(apply_toy, watched)(PARAMS, MOVED),
    ):
        with pytest.raises(ValueError, match=r"'test/3' \('mine'\): .*tokens` is 7 at"):
            call()


def test_images_are_probes_as_batches_of_ones_own():
    """Float tokens are kept, and one position is watched."""
    images = jnp.asarray(np.random.default_rng(0).random((2, 3)))
    batch = ldjax.Sequences(images, jnp.array([[1], [0]]), jnp.ones((2, 1), bool))
    example = Example(PROMPT, ANSWER)
    probes = tuple(Probe(f"test/{i}", "label", example) for i in range(2))
    watched = ProbeSet(probes, ((np.arange(2), batch),))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    found = make_observe_fn(lambda w, s: (s.tokens @ w)[:, None], watched)(weights)
    logits = np.asarray(images @ weights)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        found["log_prob"], [expected[0, 1], expected[1, 0]], rtol=1e-12
    )
    bad = watched._replace(
        batches=((np.arange(2), batch._replace(targets=batch.targets + 3)),)
    )
    with pytest.raises(ValueError, match=r"'test/0' \('label'\): .*targets` is 4 at"):
        make_observe_fn(lambda w, s: (s.tokens @ w)[:, None], bad)(weights)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 4\) for targets of"):
        make_observe_fn(lambda w, s: s.tokens @ w, watched)(weights)


@pytest.fixture(
    scope="module", params=["gpt2", pytest.param("llama", marks=pytest.mark.slow)]
)
def decoder(request):
    model, params = make_decoder(request.param, num_layers=1, max_positions=8)
    return model, params, model.config.vocab_size


def test_a_decoder_refuses_ids_where_it_sees_them(decoder):
    model, params, size = decoder
    apply = lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs)
    mask = jnp.array([[True, True, False]])
    for bad in (size, -1):
        tokens = jnp.array([[1, bad, 2]])
        for args in ((tokens,), (tokens, mask)):
            with pytest.raises(ValueError, match=rf"`tokens` is {bad} at \[0, 1\]"):
                apply(*args)
        with pytest.raises(ValueError, match=r"`tokens` is"):
            apply(tokens, cache_length=4, method=model.prefill)
    assert np.isfinite(apply(jnp.array([[1, 2, size]]), mask)).all()  # padding
    _, cache = apply(jnp.array([[1, 2, 3]]), cache_length=4, method=model.prefill)
    with pytest.raises(ValueError, match="`cache` has 1 slots left"):
        apply(jnp.array([[1, 2]]), cache, method=model.extend)
    with pytest.raises(TypeError, match="`mask` must be booleans"):
        model.__class__._check(model, tokens, mask.astype(int), None)


def test_a_decoder_refuses_positions_that_it_did_not_learn(decoder):
    model, params, _ = decoder
    apply = lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs)
    tokens, mask = jnp.ones((1, 9), int), jnp.ones((1, 9), bool)
    example = Example((1,) * 5, (1,) * 5)
    calls = {
        "9 positions but the model learned 8": lambda: apply(tokens, mask),
        r"`positions` is 8 at \[0, 1\]": lambda: apply(
            tokens[:, :2], None, jnp.array([[0, 8]])
        ),
        "9 positions but": lambda: apply(
            tokens, mask, cache_length=9, method=model.prefill
        ),
        "9 positions but the": lambda: score(
            *(linen_apply_fn(model), params), to_sequences([example], max_length=10)
        ),
        "have 9 positions": lambda: score_responses(
            model, params, (1,) * 5, responses=[(1,) * 5], max_length=10
        ),
    }
    for message, call in calls.items():
        if model.config.positions == "learned":
            with pytest.raises(ValueError, match=message):
                call()
        elif "`positions`" not in message:
            call()
    apply(tokens, mask.at[0, 0].set(False))  # eight real tokens


def test_a_response_may_end_one_token_behind_the_last_position(decoder):
    model, params, _ = decoder
    example = Example((1, 2, 3), (4, 5, 6, 7, 8, 9))
    scores = score_examples(
        make_score_fn(linen_apply_fn(model)),
        *(params, [example]),
        max_length=9,
        batch_size=1,
    )
    (shared,) = score_responses(
        model, params, example[0], responses=[example[1]], max_length=9
    )
    np.testing.assert_allclose(shared, scores[0], atol=1e-10)


def test_doors_of_a_decoder_name_the_argument(decoder):
    model, params, size = decoder
    batch = batch_of(prompt=(1, size, 3))
    with pytest.raises(ValueError, match=r"`sequences.tokens` is 23 at \[0, 1\]"):
        logits_fn(model, batch)
    with pytest.raises(ValueError, match=r"`sequences.tokens` is 23 at \[0, 1\]"):
        score(linen_apply_fn(model), params, batch)
    masked = lambda p, s: model.apply({"params": p}, s.tokens, s.tokens != 0)
    with pytest.raises(ValueError, match=r"`sequences.tokens` is 23 at \[0, 1\]"):
        score(masked, params, batch)
    for prompt, answer, message in (
        ((1, size), (2,), r"`prompt_ids` is 23 at \[0, 1\]"),
        ((1,), (2, -100), r"`response_ids` is -100 at \[1\]"),
        ((1,), (2, size), r"`responses` is 23 at \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            score_responses(model, params, prompt, responses=[answer], max_length=8)


def test_positions_of_a_kernel_are_integers():
    with pytest.raises(TypeError, match="`positions` must be integers"):
        logits_fn(Tagger(), batch_of(), positions=np.array([0.5]))


def test_a_module_of_more_than_logits_is_refused():
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Embed(VOCAB, VOCAB)(tokens), tokens

    params = Pair().init(jax.random.key(0), batch_of().tokens)["params"]
    with pytest.raises(TypeError, match="Pair must return logits, one array; got"):
        linen_apply_fn(Pair())(params, batch_of())


def test_decoding_refuses_prompts_that_it_cannot_read(decoder):
    model, params, size = decoder
    for prompt, message in (
        ((1, size), r"from 0 to 22, got 0 to 23; the first is at `prompts\[1\]\[1\]`"),
        ((-1,), r"`prompts\[1\]` is -1 at \[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_greedy(model, params, [(1,), prompt], max_new_tokens=2)


def test_pairs_of_unmasked_filler_are_refused():
    bad, message = BAD_IDS["target of -100"]
    with pytest.raises(ValueError, match=message):
        pair_products(apply_toy, PARAMS, {"chosen": batch_of(), "rejected": bad})
