"""Finetuning as its users run it, as a machine kills it, and what it reports."""

import dataclasses
import json
import os
import random
import re

import jax
import numpy as np
import optax
import pytest
from shell.killing import kill_at, start_script
from shell.scripts import run_script
from zoo.cases import apply_toy, sentences, toy_params
from zoo.watched import watched_only

from ldjax.data.batches import Example, to_sequences
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.finetune import pipeline, results
from ldjax.finetune import run as finetune
from ldjax.finetune.rows import cropped
from ldjax.finetune.settings.records import Objective
from ldjax.finetune.start import find_regime
from ldjax.finetune.track import observers as observers_of_runs
from ldjax.finetune.track.observers import make_observers
from ldjax.finetune.track.step import make_tracked_step
from ldjax.losses import sft
from ldjax.models import load
from ldjax.models.decoder.scoring import make_score_fn
from ldjax.report.words import headline
from ldjax.runs.checkpoints import Checkpoints
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.theory.curves import Curves
from ldjax.watch.probes import Probe, ProbeSet, make_change_fn

TINY = ("--smoke", "--epochs", "0.5")  # 30 updates


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of compiled functions, and of the base model."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """A whole pipeline at tiny size: its result, and where it is."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    args = ("--smoke", "--out", out, "--cache", cache, "--log", "tensorboard")
    return run_script("pipeline.py", *args, cache=cache), out


@pytest.mark.slow
def test_a_smoke_pipeline_leaves_whole_runs(runs):
    result, out = runs
    assert result.returncode == 0, result.stderr
    assert "What happened to the responses" in result.stdout
    parts = {"sft": {"update", "history"}}
    dated = {"history of chosen", "history of rejected", "before"}
    for name in ("sft", "dpo_after_sft", "dpo_from_base"):
        run = open_run(out / name)
        metrics = run.metrics()
        assert tuple(metrics.columns) == METRIC_COLUMNS
        assert metrics["value"].is_finite().all()
        assert set(metrics["type"]) == {"", *RESPONSE_TYPES}
        found = {q for q in metrics["quantity"].unique() if q.startswith("part:")}
        sides = parts.get(name, {"chosen", "rejected", *dated})
        assert found == {f"part:{side}" for side in sides | {"rounding"}}
        assert all(check["holds"] for check in run.summary["identities"])
        assert run.config["settings"]["regime"] == name
        pictures = {path.stem for path in (run.path / "figures").iterdir()}
        assert pictures >= {"curves", "predicted_against_measured", "remainder"}
        probes = [
            json.loads(line)
            for line in (run.path / "probes.jsonl").read_text().splitlines()
        ]
        assert {probe["type"] for probe in probes} == set(RESPONSE_TYPES)
        assert len({(probe["probe"], probe["type"]) for probe in probes}) == len(probes)


@pytest.mark.slow
def test_the_tokens_of_a_run_add_up_to_its_sequences(runs):
    _, out = runs
    run = open_run(out / "sft")
    tokens = np.load(run.path / "tokens.npz")
    metrics = run.metrics()
    tracked = metrics.filter(metrics["probe"].str.starts_with("tracked/"))
    for quantity in ("predicted", "integrated", "measured"):
        values = tracked.filter(tracked["quantity"] == quantity)["value"]
        batches = [name for name in tokens if name.startswith(f"{quantity}_")]
        total = sum(tokens[name].sum() for name in batches)
        assert total == pytest.approx(values.sum(), rel=1e-4)


def of_each_probe(tokens, arrays, name):
    """Sums over all axes but the first, in the order of the tracked probes."""
    found = {}
    for i in range(sum(key.startswith("probes_") for key in tokens)):
        sums = arrays[name.format(i)].reshape(len(tokens[f"probes_{i}"]), -1).sum(1)
        found |= dict(zip(tokens[f"probes_{i}"].tolist(), sums, strict=True))
    return np.array([found[place] for place in sorted(found)])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo_after_sft"])
def test_the_tokens_of_an_update_add_up_to_its_own_part(runs, stage):
    _, out = runs
    run = open_run(out / stage)
    tokens = np.load(run.path / "tokens.npz")
    (path,) = (run.path / "token_maps").glob("*.npz")
    maps = np.load(path)
    metrics = run.metrics().filter(step=int(path.stem))
    parts, sums = [], []
    for side in [name[8:] for name in maps if name.startswith("targets_")]:
        part = metrics.filter(quantity=f"part:{side}")["value"].to_numpy()
        parts.append(part.astype(float))
        sums.append(of_each_probe(tokens, maps, f"map_{{}}_{side}").astype(float))
    largest = np.abs(parts).max()
    # A float32 product of 5e4 entries is known to sqrt(5e4) 6e-8 = 1.3e-5 of the
    # product of norms, of which the largest may be a quarter (seen: 1.5e-5).
    np.testing.assert_allclose(sum(sums), sum(parts), rtol=0, atol=5e-5 * largest)
    # Adam's first step divides by |g|. Where the gradients of a pair cancel to their
    # rounding, so is what one side does; only what both do is not (seen: 9e-4, 4e-6).
    each = 5e-5 if len(parts) == 1 else 1e-2
    np.testing.assert_allclose(sums, parts, rtol=0, atol=each * largest)


@pytest.mark.slow
def test_the_tokens_that_gained_and_lost_are_the_extremes(runs):
    _, out = runs
    run = open_run(out / "sft")
    tokens = np.load(run.path / "tokens.npz")
    before, after = np.exp(tokens["moved_before_0"]), np.exp(tokens["moved_after_0"])
    gain = after - before
    mask = tokens["mask_0"]
    up, down = np.split(gain[mask], 2, axis=-1)
    assert (np.diff(up) <= 1e-7).all()
    assert (np.diff(down) >= -1e-7).all()
    # The response's own token is among them or moved less than they did.
    log_prob = tokens["log_prob_0"][[0, -1]][:, mask]
    own = np.exp(log_prob[1]) - np.exp(log_prob[0])
    assert (own <= up[:, 0] + 1e-5).all()
    assert (own >= down[:, 0] - 1e-5).all()


@pytest.mark.slow
def test_a_pipeline_ends_with_a_page_of_its_stages(runs):
    result, out = runs
    assert str(out / "report.html") in result.stdout
    for name in ("", "sft", "dpo_after_sft", "dpo_from_base"):
        assert (out / name / "report.html").stat().st_size < 6e6
    begun = [
        headline(open_run(out / name).config["settings"]) for name in pipeline.STAGES
    ]
    assert [text.rpartition(", ")[2] for text in begun[1:]] == [
        "from the run sft",
        begun[0].rpartition(", ")[2],
    ]
    assert begun[0].rpartition(", ")[2].startswith("from the base model base-")


@pytest.mark.slow
def test_a_log_is_written_beside_each_stage(runs):
    _, out = runs
    for name in ("sft", "dpo_after_sft", "dpo_from_base"):
        assert list((out / name / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_dpo_begins_at_its_reference(runs):
    _, out = runs
    for name in ("dpo_after_sft", "dpo_from_base"):
        metrics = open_run(out / name).metrics()
        losses = metrics.filter(metrics["quantity"] == "loss").sort("step")
        # Log-probs of 50 tokens in float32, twice: in another batch and program.
        assert losses["value"][0] == pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.slow
def test_the_samples_are_the_base_models_in_every_stage(runs):
    _, out = runs

    def samples(name):
        lines = (out / name / "probes.jsonl").read_text().splitlines()
        probes = [json.loads(line) for line in lines]
        return [p["text"] for p in probes if p["type"] == "chosen_initial"]

    assert samples("sft") == samples("dpo_after_sft") == samples("dpo_from_base")
    assert len(set(samples("sft"))) > 1


@pytest.mark.parametrize(
    ("changes", "before", "regime"),
    [
        ({}, {}, "sft"),
        ({"target": ("chosen", "rejected")}, {}, "sft_extend"),
        ({"target": ("chosen_gptsemantic",)}, {}, None),
        ({"loss": "dpo"}, {}, "dpo_from_base"),
        ({"loss": "dpo"}, {"loss": "sft", "regime": "sft"}, "dpo_after_sft"),
        ({"loss": "dpo"}, {"loss": "sft", "regime": "sft_extend"}, "dpo_after_extend"),
        ({"loss": "dpo"}, {"loss": "dpo", "regime": "dpo_from_base"}, None),
    ],
)
def test_the_regime_follows_from_loss_target_and_start(
    tmp_path, changes, before, regime
):
    (tmp_path / "config.json").write_text(json.dumps({"settings": before}))
    assert find_regime(Objective(**changes), str(tmp_path)) == regime


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "kills"),
    [pytest.param("sft", 3, marks=pytest.mark.exhaustive), ("dpo", 1)],
)
def test_a_run_that_is_killed_ends_with_the_same_bits(
    tmp_path, runs, cache, loss, kills
):
    base = open_run(runs[1]).summary["base"]
    args = (*TINY, "--loss", loss, "--init", base, "--cache", tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    draw = random.Random(f"{os.environ.get('KILL_SEED', '0')} {loss}")
    for step in sorted(draw.sample(range(2, 26), kills)):
        process = start_script(
            "finetune.py", *args, "--out", killed, "--resume", cache=cache
        )
        kill_at(process, killed / "checkpoints", step, draw.uniform(0, 0.2))
    for out in (killed, whole):
        result = run_script("finetune.py", *args, "--out", out, "--resume", cache=cache)
        assert result.returncode == 0, result.stderr
    found, wanted = (
        jax.tree.leaves(Checkpoints(out / "checkpoints").restore())
        for out in (killed, whole)
    )
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert open_run(killed).metrics().equals(open_run(whole).metrics())
    assert open_run(killed).summary == open_run(whole).summary
    for name in ("probes.jsonl", "tokens.npz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--world", "huge"], "--world must be one of demo, small, paper"),
        (["--model", "7B"], "--model must be one of 0.1M, 0.4M, 1M, 4M, toy"),
        (["--target", "good"], "--target must be of chosen, chosen_initial"),
        (["--loss", "ipo", "--target", "rejected"], "ipo trains on chosen and rejec"),
        (["--loss", "ppo"], "--loss must be one of sft, gradient_ascent"),
        (
            ["--loss", "dpo", "--coefficients", "beta", "0"],
            "--coefficients: `beta` must be positive",
        ),
        (
            ["--loss", "simpo", "--coefficients", "tau", "1"],
            "the loss 'simpo' has no coefficient 'tau'; it has beta, gamma",
        ),
        (["--tracked", "50"], "--tracked must be at most --probe-prompts"),
        (["--batch-size", "-1"], "--batch-size must be at least 1"),
        (["--resume", "--overwrite"], "contradict"),
        (["--init", "nowhere"], "there is no folder nowhere"),
        (["--data", "nowhere.jsonl"], "no file or folder nowhere.jsonl"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, args, part):
    out = tmp_path / "run"
    config = finetune.parse(["--out", str(out), *args])
    with pytest.raises(SystemExit, match=r"^finetune: [^\n]*$") as error:
        finetune.main(config)
    assert part in str(error.value)
    assert not out.exists()


BAD_ROWS = [
    ('{"prompt": "a", "chosen": "b"', "not JSON"),
    ('{"prompt": "a", "chosen": "b"}', "rejected"),
    ('{"prompt": "a", "chosen": "b", "rejected": " "}', "'rejected' is blank"),
    (
        '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", '
        '"rejected": "\\n\\nHuman: c\\n\\nAssistant: d"}',
        "prompt",
    ),
]


@pytest.mark.parametrize(("line", "part"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, part):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"prompt": "x", "chosen": "y", "rejected": "z"}}\n{line}\n')
    config = finetune.Config.of(out=tmp_path / "run", data=str(path), loss="dpo")
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ")) as error:
        finetune.finetune(config)
    assert part in str(error.value)


def test_a_recipe_fills_in_what_is_not_said():
    config = finetune.Config.of(recipe="paper", learning_rate=1e-3).resolved()
    recipe = config.recipe
    assert recipe.optimizer == "rmsprop"
    assert (recipe.learning_rate, recipe.batch_size) == (1e-3, 4)
    assert (recipe.warmup_steps, recipe.clip) == (150, 10.0)
    assert config == config.resolved()
    assert dataclasses.replace(config, smoke=True).resolved().recipe.batch_size == 4


def test_nothing_is_not_the_default():
    """As `--clip 0`, which once meant the recipe's."""
    config = finetune.parse(["--recipe", "paper", "--clip", "0", "--warmup-steps", "0"])
    assert (config.recipe.clip, config.recipe.warmup_steps) == (0, 0)
    for option in ("--epochs", "--lora-alpha", "--batch-size", "--max-rows"):
        config = finetune.parse(["--lora-rank", "2", option, "0"])
        with pytest.raises(ValueError, match=f"{option} must be"):
            config.resolved().check()


def test_settings_are_kept_as_in_runs_made_before():
    kept = finetune.kept(finetune.Config())
    old = {"max_rows": 0, "lora_rank": 0, "lora_alpha": 0.0, "preset": ""}
    assert {name: kept[name] for name in old} == old
    assert kept["initial_from"] == ""
    # Options that the pipeline did not have are kept where they are said.
    given = pipeline.Config.of(recipe="slow", dpo_epochs=2.0)
    settings = pipeline.all_settings(given)
    assert (settings["sft_epochs"], settings["dpo_epochs"]) == (0.0, 2.0)
    assert settings["recipe"] == "slow"
    later = {"clip", "keep", "lora_rank", "nodes", "tolerance", "history"}
    assert not later & settings.keys()
    paper = pipeline.parse(["--preset", "pythia-410m"])
    assert "recipe" not in pipeline.all_settings(paper)


def make_series(seed=0, steps=6, probes=4):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(steps, probes))
    predicted = measured + 0.1 * rng.normal(size=(steps, probes))
    floor = np.full((steps, probes), 1e-6)
    return {"predicted": predicted, "measured": measured, "floor": floor}


@pytest.mark.parametrize("broken", ["parts", "measured"])
def test_identities_that_do_not_hold_are_seen(broken):
    series = make_series()
    series |= {
        "part:update": 0.4 * series["predicted"],
        "part:history": 0.6 * series["predicted"],
    }
    ends = np.stack([np.zeros(4), series["measured"].sum(0)])
    checks = results.check_identities({"train": series}, {"log_prob": ends})
    assert all(check.holds for check in checks)
    if broken == "parts":
        series["part:update"] = series["part:update"] + 0.01
    else:
        ends[1, 2] += 1e-3
    checks = results.check_identities({"train": series}, {"log_prob": ends})
    assert [check.holds for check in checks] == [
        broken != "parts",
        broken != "measured",
    ]


def test_a_run_that_is_not_complete_is_no_start(tmp_path):
    (tmp_path / "config.json").write_text('{"settings": {"model": {}, "num_steps": 5}}')
    with pytest.raises(ValueError, match="stopped at step 0 of 5; go on"):
        load(tmp_path)


def test_a_cropped_batch_keeps_every_scored_token():
    def rows(lengths):
        examples = [Example((1,), (2,) * length) for length in lengths]
        return to_sequences(examples, max_length=65)

    sides = {"chosen": rows([3, 40, 20]), "rejected": rows([2, 9, 30])}

    def batch_fn(step):
        return jax.tree.map(lambda leaf: leaf[step : step + 1], sides)

    crop = cropped(batch_fn)
    widths = []
    for step in range(3):
        batch = crop(step)
        widths.append({side: rows.mask.shape[1] for side, rows in batch.items()})
        for side, whole in batch_fn(step).items():
            assert batch[side].mask.sum() == whole.mask.sum()
    assert [width["chosen"] for width in widths] == [16, 64, 32]
    assert [width["rejected"] for width in widths] == [16, 32, 32]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--world", "huge"], "--world must be one of demo, small, paper"),
        (["--tracked", "50"], "--tracked must be at most --probe-prompts"),
        (["--resume", "--overwrite"], "contradict"),
    ],
)
def test_a_mistake_of_the_pipeline_is_one_clear_line(tmp_path, args, part):
    out = tmp_path / "run"
    config = pipeline.parse(["--out", str(out), *args])
    with pytest.raises(SystemExit, match=r"^pipeline: [^\n]*$") as error:
        pipeline.main(config)
    assert part in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize("rate", [1e-8, 3.0])
def test_the_order_of_a_remainder_is_found_at_any_rate(rate, monkeypatch):
    computed = []

    def make_counted(apply_fn):
        score_fn = make_score_fn(apply_fn)
        return lambda *args: computed.append(args) or score_fn(*args)

    monkeypatch.setattr(observers_of_runs, "make_score_fn", make_counted)
    probes = [Probe(f"tracked/{i}", "chosen", Example((i, 2), (3, 1))) for i in (0, 1)]
    tracked = ProbeSet.of(probes, max_length=4, batch_size=None)
    init, step = make_tracked_step(apply_toy, sft, optax.sgd(rate), tracked)
    observers = make_observers(
        apply_toy,
        watched_only(tracked),
        num_steps=2,
        evaluations=1,
        probe_batch_size=8,
        is_explained=False,
    )
    state = init(toy_params())
    following = step(state, sentences(6, 3, 4))
    found = observers["order"].observe(state, *following)
    assert 3.8 < found["remainder_ratio"] < 4.2
    assert computed
    computed.clear()
    # So much of the update, and first order is off by a tenth.
    radius = observers["trust"].observe(state, *following)["radius"]
    assert not computed  # the search is the same
    there = jax.tree.map(
        lambda a, b: a + radius * (b - a), state.params, following[0].params
    )
    change = make_change_fn(apply_toy, tracked)(state.params, there)
    rest = np.linalg.norm(change["measured"] - change["predicted"])
    assert rest / np.linalg.norm(change["measured"]) == pytest.approx(0.1, rel=0.1)


def test_extended_sft_is_not_asked_to_lower_the_rejected():
    rising = np.linspace(-50.0, -30.0, 21)
    curves = Curves({"chosen": rising, "rejected": rising})
    order = np.array([4.0, 4.0])
    for regime, expected in (("sft_extend", True), ("dpo_after_extend", False)):
        checks = results.check_claims(regime, curves, [], order)
        assert all(check.holds for check in checks) == expected
