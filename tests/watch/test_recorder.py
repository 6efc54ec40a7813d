"""A recorder in somebody's loop: its numbers against the step that explains itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from witnesses import references
from zoo.cases import apply_toy, toy_params

import ldjax
from ldjax.data.batches import Example, to_sequences
from ldjax.report.content import run_content
from ldjax.report.packing import unpacked
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.watch.probes import Probe, ProbeSet, make_change_fn, make_observe_fn

PROMPTS = ((1, 2, 3), (4, 2))
ANSWERS = {"chosen": (3, 0), "rejected": (2, 5, 1), "mine": (4,)}
PROBES = [
    Probe(f"{name}/{i:04d}", type_, Example(prompt, answer))
    for name in ("test", "train")
    for i, prompt in enumerate(PROMPTS)
    for type_, answer in ANSWERS.items()
]
BATCH = to_sequences([Example(prompt, ANSWERS["chosen"]) for prompt in PROMPTS])
NUM_STEPS = 5

loss_fn = lambda params: ldjax.losses.sft(apply_toy(params, BATCH), BATCH)
grad_fn = jax.jit(jax.value_and_grad(loss_fn))


@pytest.fixture(scope="module")
def updates():
    """The parameters before each update and after it, and its loss: plain optax."""
    params, optimizer = toy_params(), optax.adam(1e-2)
    state, found = optimizer.init(params), []
    for _ in range(NUM_STEPS):
        loss, gradient = grad_fn(params)
        changes, state = optimizer.update(gradient, state)
        new_params = optax.apply_updates(params, changes)
        found.append((params, new_params, loss))
        params = new_params
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory, updates):
    """Recorded in a loop."""
    path = tmp_path_factory.mktemp("recorder") / "mine"
    with ldjax.Recorder(
        path, apply_toy, PROBES, batch_size=5, examples_per_step=2
    ) as recorder:
        for step, (params, new_params, loss) in enumerate(updates):
            recorder(step, params, new_params, loss=loss)
    return recorder.run


def numbers(run, quantity, prefix=""):
    """`{(step, probe, type): value}`."""
    rows = run.metrics().filter(
        (pl.col("quantity") == quantity) & pl.col("probe").str.starts_with(prefix)
    )
    keys = rows.select("step", "probe", "type").rows()
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, rows["value"], strict=True))


def log_prob_by_hand(params, probe):
    """Alone, without padding."""
    prompt, answer = (list(ids) for ids in probe.example[:2])
    tokens = jnp.asarray([(prompt + answer)[:-1]])
    logits = np.asarray(apply_toy(params, ldjax.Sequences(tokens, tokens, tokens > 0)))
    return sum(
        references.log_softmax(logits[0, len(prompt) - 1 + place])[token]
        for place, token in enumerate(answer)
    )


def test_every_probe_is_observed_before_each_update_and_after_the_last(run, updates):
    found = numbers(run, "log_prob")
    assert len(found) == (NUM_STEPS + 1) * len(PROBES)
    for step, params in ((0, toy_params()), (2, updates[2][0]), (5, updates[4][1])):
        for probe in PROBES[::3] + PROBES[1:2]:
            value = found[step, probe.prompt_name, probe.type]
            assert value == pytest.approx(log_prob_by_hand(params, probe), rel=1e-12)
    losses = numbers(run, "loss")
    assert [losses[s, "", ""] for s in range(NUM_STEPS)] == [u[2] for u in updates]
    metrics = run.metrics()
    assert tuple(metrics.columns) == METRIC_COLUMNS
    assert (metrics["examples"] == 2 * metrics["step"]).all()
    assert {"argmax_log_prob", "squeezing_threshold"} <= set(metrics["quantity"])


def test_changes_are_those_of_the_step_that_explains_itself(run):
    watched = to_sequences([probe.example for probe in PROBES])
    init, step_fn = ldjax.make_step(
        apply_toy, ldjax.losses.sft, optax.adam(1e-2), parts=None
    )
    state = init(toy_params())
    of_step = {q: numbers(run, f"{q}_step") for q in ("predicted", "measured")}
    summed = {q: numbers(run, q) for q in ("predicted", "measured", "floor")}
    assert len(summed["floor"]) == NUM_STEPS * len(PROBES) // 2
    for step in range(NUM_STEPS):
        state, comparison = step_fn(state, BATCH, watched)
        for probe, floor, *changes in zip(
            PROBES,
            *(np.asarray(leaf).sum(-1) for leaf in (comparison.floor, *comparison[:2])),
            strict=True,
        ):
            name, type_, _ = probe
            tracked = (step, name.replace("train/", "tracked/"), type_)
            for quantity, change in zip(
                ("predicted", "measured"), changes, strict=True
            ):
                value = of_step[quantity][step, name, type_]
                assert value == pytest.approx(change, rel=1e-7, abs=1e-12)
                if name.startswith("train/"):
                    assert summed[quantity][tracked] == value
            if name.startswith("train/"):
                # Measured at the first step, and not again within 64.
                assert 0.5 * floor < summed["floor"][tracked] < 2 * floor


def test_measured_changes_add_up_to_the_change_of_the_run(run):
    log_probs = numbers(run, "log_prob", "train/")
    measured = numbers(run, "measured", "tracked/")
    for _, name, type_ in [key for key in log_probs if key[0] == 0]:
        there = name.replace("train/", "tracked/")
        total = sum(measured[step, there, type_] for step in range(NUM_STEPS))
        change = log_probs[NUM_STEPS, name, type_] - log_probs[0, name, type_]
        assert total == pytest.approx(change, rel=1e-9)
    changes = run.summary["changes"]
    assert set(changes) == {"train", "test"}
    means = [
        np.mean([log_probs[s, f"train/{i:04d}", "mine"] for i in range(2)])
        for s in range(NUM_STEPS + 1)
    ]
    expected = {"start": means[0], "end": means[-1], "highest": max(means)}
    assert changes["train"]["mine"] == pytest.approx(expected)


def test_without_decode_the_page_has_token_ids(run):
    lines = (run.path / "probes.jsonl").read_text().splitlines()
    contents = [json.loads(line) for line in lines]
    assert {"probe": "tracked/0001", "type": "rejected", "prompt": "4 2"}.items() <= (
        contents[-2].items()
    )
    assert contents[-2]["text"] == "2 5 1"
    assert contents[-2]["num_tokens"] == 3


constant = lambda params, s: params[None, None] + jnp.zeros((*s.tokens.shape, 6))


@pytest.fixture(scope="module")
def measures():
    """Compiled once for all recorders of this model."""
    watched = ProbeSet.of(PROBES, max_length=6, batch_size=len(PROBES))
    return make_observe_fn(constant, watched), make_change_fn(constant, watched)


@pytest.fixture
def compiled(measures, monkeypatch):
    for name, fn in zip(("observe", "change"), measures, strict=True):
        monkeypatch.setattr(
            f"ldjax.watch.recorder.make_{name}_fn", lambda *_, fn=fn: fn
        )


def move(recorder, steps):
    """A trivial model; each step is the number of updates before it."""
    at = lambda step: jnp.zeros(6).at[3].set(0.1 * step)
    for step in steps:
        recorder(step, at(step), at(step + 1))


@pytest.mark.usefixtures("compiled")
def test_what_is_left_out_is_not_added_up(tmp_path):
    def record_some(name, steps, **options):
        with ldjax.Recorder(tmp_path / name, constant, PROBES, **options) as recorder:
            move(recorder, steps)
        return recorder.run

    run = record_some("all", range(8))
    some = record_some("every", range(8), every=3)
    for quantity in ("log_prob", "predicted_step", "measured_step"):
        steps = {0, 3, 6, *({8} if quantity == "log_prob" else ())}
        expected = {k: v for k, v in numbers(run, quantity).items() if k[0] in steps}
        assert numbers(some, quantity) == expected
    gap = record_some("gap", (0, 1, 2, 4, 5))
    assert numbers(gap, "log_prob").keys() < numbers(run, "log_prob").keys()
    for incomplete in (some, gap):
        assert not numbers(incomplete, "measured")
        page = run_content(incomplete)
        assert page["curves"]["train"].keys() >= {"chosen", "rejected", "mine"}
        assert not any(page["tracked"].values())


@pytest.mark.usefixtures("compiled")
def test_the_page_shows_the_run(tmp_path):
    decode = lambda ids: "<" + "".join("abcdefg"[i] for i in ids)
    options = {"decode": decode, "examples_per_step": 2}
    with ldjax.Recorder(tmp_path / "mine", constant, PROBES, **options) as recorder:
        move(recorder, range(NUM_STEPS))
    run = recorder.run
    page = run_content(run)
    assert page["curves"].keys() == {"train", "test"}
    log_probs = numbers(run, "log_prob", "test/")
    means = [
        np.mean([log_probs[s, f"test/{i:04d}", "mine"] for i in range(2)])
        for s in range(NUM_STEPS + 1)
    ]
    curve = page["curves"]["test"]["mine"]
    np.testing.assert_allclose(unpacked(curve["y"]), np.array(means) - means[0], 1e-4)
    np.testing.assert_array_equal(unpacked(curve["x"]), np.arange(NUM_STEPS + 1))
    for kind in ("measured", "predicted"):
        assert len(unpacked(page["tracked"][kind]["mine"]["y"])) == NUM_STEPS + 1
    browser = page["probes"]
    responses = [(r["prompt"], r["type"], r["text"]) for r in browser["responses"]]
    assert len(responses) == len(PROBES)
    assert [p["text"] for p in browser["prompts"]] == 2 * ["<bcd", "<ec"]
    assert (0, "rejected", "<cfb") in responses
    steps = browser["observed"]["steps"]
    assert steps == list(range(NUM_STEPS + 1))
    table = unpacked(browser["observed"]["tables"]["measured_step"])
    place = responses.index((1, "chosen", "<da"))
    value = numbers(run, "measured_step")[4, "test/0001", "chosen"]
    assert table[4, place] == pytest.approx(value, rel=1e-6)
    assert len(browser["tracked"]["places"]) == len(PROBES) // 2


@pytest.mark.usefixtures("compiled")
def test_a_killed_recorder_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("ldjax.watch.recorder.WRITE_AFTER", 3)
    with ldjax.Recorder(tmp_path / "whole", constant, PROBES) as recorder:
        move(recorder, range(20))
    whole = recorder.run.metrics().sort(METRIC_COLUMNS[:5])
    killed = ldjax.Recorder(tmp_path / "killed", constant, PROBES)
    move(killed, range(11))
    there = open_run(tmp_path / "killed").metrics()
    assert there["step"].max() == 8  # of 11 recorded the last two are lost
    options = {"resume": True, "log": ("tensorboard",)}
    with ldjax.Recorder(tmp_path / "killed", constant, PROBES, **options) as recorder:
        move(recorder, range(6, 20))  # from an older checkpoint of the user
    assert recorder.run.metrics().sort(METRIC_COLUMNS[:5]).equals(whole)
    assert any((tmp_path / "killed" / "tensorboard").iterdir())
    # Where the loop goes on after a gap, nothing is added up over it.
    with ldjax.Recorder(tmp_path / "killed", constant, PROBES, **options) as recorder:
        move(recorder, range(21, 23))
    assert not numbers(recorder.run, "measured")
    assert len(numbers(recorder.run, "log_prob")) == len(PROBES) * 24


@pytest.mark.usefixtures("compiled")
def test_an_error_in_the_loop_keeps_what_was_recorded(tmp_path):
    def loop():
        with recorder:
            move(recorder, range(2))
            raise KeyError

    recorder = ldjax.Recorder(tmp_path / "run", constant, PROBES)
    with pytest.raises(KeyError):
        loop()
    assert recorder.run.metrics()["step"].max() == 1


@pytest.mark.usefixtures("compiled")
def test_a_training_that_diverges_is_recorded(tmp_path):
    with ldjax.Recorder(tmp_path / "run", constant, PROBES) as recorder:
        recorder(0, jnp.zeros(6), jnp.full(6, jnp.nan))
    assert recorder.run.summary["changes"]["train"]["mine"]["end"] is None
    assert numbers(recorder.run, "log_prob")[0, "test/0000", "mine"] < 0
    assert run_content(recorder.run)["curves"]["train"]


def copies(tree):
    return jax.tree.map(jnp.copy, tree)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("is_left", [False, True], ids=["close", "with"])
def test_what_was_recorded_is_written_when_the_last_parameters_are_gone(
    tmp_path, is_left
):
    """As where the loop donates its buffers."""
    recorder = ldjax.Recorder(tmp_path / "run", constant, PROBES)

    def loop():
        params = jnp.zeros(6)
        for step in range(3):  # fewer than are written on the way
            new_params = params + 0.1
            recorder(step, params, new_params)
            params = new_params
        params.delete()
        if is_left:
            with recorder:
                pass
        else:
            recorder.close()

    with pytest.warns(RuntimeWarning, match="after update 2 were donated") as found:
        loop()
    assert "\n" not in str(found[0].message)
    log_probs = numbers(recorder.run, "log_prob")
    assert {key[0] for key in log_probs} == {0, 1, 2}
    assert len(numbers(recorder.run, "measured")) == 3 * len(PROBES) // 2
    assert recorder.run.summary["changes"]["train"]["mine"]["end"] < 0
    recorder.close()  # a second time is nothing


def test_parameters_that_were_donated_lose_nothing(tmp_path):
    donating = jax.jit(lambda params: params + 0.1, donate_argnums=0)
    with ldjax.Recorder(tmp_path / "run", constant, PROBES[:1]) as recorder:
        params = jnp.zeros(6)
        recorder(0, params, params + 0.1)
        for before, after in ((params, params), (jnp.zeros(6), params)):
            donating(params) if not params.is_deleted() else None
            with pytest.raises(ValueError, match="params` was donated to a compiled"):
                recorder(1, before, after)
        recorder(1, jnp.zeros(6), jnp.ones(6))  # the same step again, of what exists
    log_probs = numbers(recorder.run, "log_prob")
    assert {key[0] for key in log_probs} == {0, 1, 2}
    assert len(numbers(recorder.run, "measured", "tracked/")) == 0  # only a test probe


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_step_is_recorded_as_a_whole_or_not_at_all(tmp_path, monkeypatch, error):
    recorder = ldjax.Recorder(tmp_path / "run", constant, PROBES)

    def loop():
        with recorder:
            move(recorder, range(2))
            monkeypatch.setattr(recorder, "_change", fail)
            move(recorder, [2])

    def fail(*args):
        raise error

    with pytest.raises(error):
        loop()
    steps = set(recorder.run.metrics()["step"])
    assert steps == {0, 1}
    assert len(numbers(recorder.run, "measured")) == 2 * len(PROBES) // 2


@pytest.mark.usefixtures("compiled")
def test_what_an_earlier_recorder_left_stays_where_the_next_one_fails(tmp_path):
    with ldjax.Recorder(tmp_path / "run", constant, PROBES) as recorder:
        move(recorder, range(3))
    before = recorder.run.metrics()
    again = ldjax.Recorder(tmp_path / "run", constant, PROBES, resume=True)
    with pytest.raises(TypeError, match="`params` must hold at least one array"):
        again(1, None, None)
    again.close()
    assert again.run.metrics().equals(before)


def test_a_classifier_is_refused_by_the_shape_of_its_logits(tmp_path):
    recorder = ldjax.Recorder(tmp_path / "run", lambda w, s: w[s.tokens[:, 0]], PROBES)
    params = jnp.zeros((6, 6))
    with pytest.raises(ValueError, match=r"logits of shape \(12, 6\) for targets of"):
        recorder(0, params, params)
    recorder.close()
    assert not (tmp_path / "run" / "metrics.parquet").exists()


def test_ids_beyond_the_vocabulary_are_refused_with_their_probe(tmp_path):
    recorder = ldjax.Recorder(tmp_path / "run", lambda w, s: w[s.tokens], PROBES)
    params = jnp.zeros((5, 5))
    with pytest.raises(ValueError, match=r"probe 'test/0000' \('rejected'\): .*5"):
        recorder(0, params, params)
    recorder.close()
    assert not (tmp_path / "run" / "metrics.parquet").exists()


@pytest.mark.usefixtures("compiled")
def test_a_log_prob_of_minus_infinity_is_recorded(tmp_path):
    with ldjax.Recorder(tmp_path / "run", constant, PROBES) as recorder:
        recorder(0, jnp.zeros(6), jnp.zeros(6).at[4].set(-jnp.inf))
    assert recorder.run.summary["changes"]["train"]["mine"]["end"] is None


@pytest.mark.usefixtures("compiled")
def test_a_text_that_cannot_be_decoded_replaces_no_run(tmp_path):
    with ldjax.Recorder(tmp_path / "run", constant, PROBES) as recorder:
        move(recorder, range(2))
    with pytest.raises(KeyError):
        ldjax.Recorder(
            *(tmp_path / "run", constant, PROBES), decode={}.__getitem__, overwrite=True
        )
    assert len(open_run(tmp_path / "run").metrics())


@pytest.mark.usefixtures("compiled")
def test_mistakes_are_one_message(tmp_path):
    def make(probes=PROBES, path=tmp_path / "run", **options):
        return ldjax.Recorder(path, constant, probes, **options)

    first = PROBES[0]
    bad = {
        "at least one probe": {"probes": []},
        "of no set. Begin": {"probes": [first._replace(prompt_name="mine")]},
        "Two probes are 'chosen'": {"probes": [first, first]},
        "`every` must be at least 1": {"every": 0},
        "`batch_size` must be at least 1": {"batch_size": 0},
        "'test/0000' .'chosen'.*append END": {
            "probes": [first._replace(example=Example((1,), ()))]
        },
    }
    for message, options in bad.items():
        with pytest.raises(ValueError, match=message):
            make(**options)
        assert not (tmp_path / "run").exists()
    recorder = make()
    move(recorder, [jnp.array(0), np.int64(1)])
    with pytest.raises(ValueError, match="`step` must go up: got 1 after 1"):
        move(recorder, [1])
    with pytest.raises(TypeError, match=r"`step` must be an integer, got 2\.5"):
        recorder._checked(2.5)
    with pytest.raises(ValueError, match=r"`loss` must be a scalar, .*\(2,\)"):
        recorder(2, jnp.zeros(6), jnp.zeros(6), loss=np.zeros(2))
    recorder.close()
    with pytest.raises(RuntimeError, match=r"is closed. To go on .*`resume=True`"):
        move(recorder, [2])
    with pytest.raises(FileExistsError, match=r"resume=True.*overwrite=True"):
        make()
    with pytest.raises(ValueError, match=r"cannot resume .*recorder was .*'every': 1"):
        make(resume=True, every=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not a run"):
        make(path=tmp_path / "other", overwrite=True)
    recorder = make(overwrite=True)
    assert not (tmp_path / "run" / "metrics.parquet").exists()
    del recorder  # which recorded nothing
    assert (tmp_path / "run" / "metrics.parquet").exists()
