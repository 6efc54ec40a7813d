"""The kernel experiment as its users run it, and its checks."""

import json

import numpy as np
import pytest
from shell.scripts import run_script

from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.studies.kernel import measure, results, texts
from ldjax.studies.kernel import study as kernel
from ldjax.theory.claims import failures, stored

FIGURES = ["block_norms", "groups", "head_and_body", "pushed_tokens", "token_map"]
PROBE, UPDATE = "why , bana dorby sells", "why , bana dorby hawks glass"


@pytest.fixture(scope="module")
def base():
    return texts.random_model(0)


@pytest.mark.exhaustive  # a notebook runs the same in CI
def test_smoke_leaves_a_whole_run_whose_identities_hold(tmp_path):
    out = tmp_path / "run"
    words = ("--probe-text", PROBE, "--update-text", UPDATE)
    result = run_script("kernel.py", "--smoke", *words, "--out", out)
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    assert run.config["settings"]["update_text"] == UPDATE
    assert len(run.summary["identities"]) == 8
    assert all(check["holds"] for check in run.summary["identities"])
    assert sorted(path.stem for path in (out / "figures").glob("*.png")) == FIGURES
    for name in FIGURES:
        assert str(out / "figures" / f"{name}.png") in result.stdout

    tokens = run.summary["tokens"]
    assert "".join(tokens["probe"][:-1]) == f" {PROBE}"
    assert tokens["probe"][-1] == "<|endoftext|>"
    assert len(run.summary["pushed"]) == len(tokens["probe"])
    metrics = run.metrics()
    assert tuple(metrics.columns) == METRIC_COLUMNS
    assert metrics["value"].is_finite().all()

    def values(quantity):
        return metrics.filter(metrics["quantity"] == quantity)["value"].to_numpy()

    num_blocks = len(tokens["probe"]) * len(tokens["update"])
    for quantity in ("norm", "trace", "distance", "body_norm", "head", "token_map"):
        assert len(values(quantity)) == num_blocks
    numbers = run.summary["numbers"]
    assert np.linalg.norm(values("norm")) == pytest.approx(numbers["norm"])
    for quantity in ("token_map", "group_change"):
        assert values(quantity).sum() == pytest.approx(
            numbers["predicted_change"], rel=1e-4
        )
    assert values("group_trace_share").sum() == pytest.approx(1, rel=1e-4)

    again = run_script("kernel.py", "--smoke", *words, "--out", out)
    assert again.returncode == 1
    assert "already holds a run" in again.stderr


@pytest.mark.exhaustive
def test_help_shows_defaults_and_units():
    result = run_script("kernel.py", "--help")
    assert result.returncode == 0
    for text in ("--update-text", "1e-05", "nats"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe_text": " "}, "--probe-text is empty"),
        ({"update_prompt": "Who?"}, "--update-prompt needs --update-text"),
        ({"model": "./nowhere"}, "There is no folder nowhere"),
        ({"update_text": " why" * 32}, "have 33 tokens but the model reads at most 32"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, settings, message):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as error:
        kernel.main(kernel.Config(out=out, smoke=True, **settings))
    assert str(error.value).startswith("kernel: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_a_text_that_just_fits_is_taken(base):
    config = kernel.Config(smoke=True, update_text=" why" * 31)
    assert texts.make_text(config, "update", base).sequences.tokens.shape == (1, 32)


def test_the_text_alone_is_scored(base):
    config = kernel.Config(
        smoke=True, probe_prompt=" question :", probe_text="why , bana"
    )
    text = texts.make_text(config, "probe", base)
    targets = text.scored.targets[0].tolist()
    assert base.tokenizer.decode(targets) == " why , bana<|endoftext|>"
    assert text.positions.tolist() == [2, 3, 4, 5]  # END, question, :, why, ...


def blocks_of(K):
    """What `BlockSummary` says of dense blocks `[m, l, V, V]`, with head 0.5."""
    vocab = K.shape[-1]
    norms = lambda blocks: np.sqrt((blocks**2).sum((-1, -2)))
    trace = np.trace(K, axis1=-1, axis2=-2)
    k = (trace / vocab)[..., None, None]
    return {
        "norm": norms(K),
        "trace": trace,
        "distance": norms(K - k * np.eye(vocab)),
        "body_norm": norms(K - 0.5 * np.eye(vocab)),
        "head": np.full(K.shape[:2], 0.5),
    }


def analysed(seed=0):
    """An analysis of a drawn kernel of two groups, without a model."""
    rng = np.random.default_rng(seed)
    parts = {name: rng.normal(size=(3, 2, 5, 5)) for name in ("blocks_0", "head")}
    K = np.sum(list(parts.values()), axis=0)
    blocks = blocks_of(K)
    token_map = rng.normal(size=(3, 2))
    change, drawn = rng.normal(size=(3, 5)), rng.normal(size=(1, 3, 5))
    groups = {
        name: {
            "blocks": blocks_of(part),
            "target_change": token_map.sum(1) / 2,
            "drawn": drawn / 2,
        }
        for name, part in parts.items()
    }
    passes = {
        "change": change,
        "target_change": token_map.sum(1),
        "token_map": token_map,
        "drawn": drawn,
    }
    pairs = measure.agreements(passes, blocks, groups)
    pairs |= measure.written_out(K[1, 0], blocks, 1, 0)
    return measure.Analysis(
        5, blocks, {}, change, np.full((3, 5), 0.2), token_map, {}, pairs
    )


def test_the_identities_hold_for_true_blocks_and_fail_for_wrong_ones():
    analysis = analysed()
    checks = results.check_identities(analysis)
    assert all(check.holds for check in checks), checks
    for text, (found, expected) in analysis.pairs.items():
        for wrong in (1.01 * expected, np.full_like(found, np.nan)):
            pairs = analysis.pairs | {text: (wrong, expected)}
            found_wrong = results.check_identities(analysis._replace(pairs=pairs))
            assert failures(found_wrong)
            json.dumps(stored(found_wrong), allow_nan=False)


def test_what_is_pushed_is_ranked_by_probability(base):
    change = np.zeros((1, base.tokenizer.vocab_size))
    probs = np.full_like(change, 1e-9)
    change[0, 5:9] = [2.0, 0.5, -0.1, -9.0]  # the first and last are never said
    probs[0, 6:8] = [0.5, 0.4]
    analysis = analysed()._replace(change=change, probs=probs)
    pushed = results.pushed(analysis, 0, 1, base.tokenizer)
    assert [entry["change"] for entry in pushed["up"]] == [0.5]
    assert [entry["change"] for entry in pushed["down"]] == [-0.1]
