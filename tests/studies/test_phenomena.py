"""The study of the paper's phenomena: its numbers, its verdicts, and a smoke run."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from shell.scripts import run_script
from witnesses.closeness import assert_close

import ldjax
from ldjax.data.batches import Example, to_sequences
from ldjax.data.preferences import PreferenceRow
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.linen import apply_fn, logits_fn
from ldjax.models import Transformer, gpt2_config
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.studies.phenomena import (
    fingerprint,
    hallucination,
    on_policy,
    results,
    settings,
    start,
    study,
)
from ldjax.studies.policies import Study
from ldjax.theory import influence
from ldjax.watch.probes import Probe

PHENOMENA = ["fingerprint", "hallucination", "longer_sft", "on_policy", "repeater"]


@pytest.fixture(scope="module")
def model():
    """A tiny decoder with its parameters, in float64."""
    config = gpt2_config(
        vocab_size=7,
        width=8,
        num_layers=1,
        num_heads=2,
        mlp_width=8,
        max_positions=16,
        tied_head=False,
    )
    decoder = Transformer(config)
    params = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))[
        "params"
    ]
    return decoder, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)


@pytest.fixture(scope="module")
def texts():
    """Three responses of other lengths."""
    ids = [((1, 2), (3, 4, 0)), ((2,), (5, 0)), ((6, 1), (2, 2, 5, 0))]
    return to_sequences([Example(*each) for each in ids])


def run_smoke(out, cache, *args):
    args = ("--smoke", "--out", out, "--cache", cache, *args)
    return run_script("phenomena.py", *args)


@pytest.mark.parametrize(
    "names",
    [
        # Four phenomena more are two minutes more of compilation.
        pytest.param(["hallucination"], marks=pytest.mark.slow),
        pytest.param(PHENOMENA, marks=pytest.mark.exhaustive, id="all"),
    ],
)
def test_a_smoke_run_is_whole_and_its_identities_hold(tmp_path, names):
    out = tmp_path / "run"
    result = run_smoke(out, tmp_path / "cache", "--only", ",".join(names))
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    metrics = run.metrics()
    assert tuple(metrics.columns) == METRIC_COLUMNS
    assert metrics["value"].is_finite().all()
    assert sorted({name.split("/")[0] for name in metrics["probe"]}) == names
    assert sorted(path.stem for path in (out / "figures").glob("*.png")) == names
    found = run.summary["phenomena"]
    assert sorted(found) == names
    checks = [check for one in found.values() for check in one["identities"]]
    assert len(checks) == (1 if names == ["hallucination"] else 4)
    assert all(check["holds"] for check in checks)
    verdicts = {claim["verdict"] for one in found.values() for claim in one["claims"]}
    assert verdicts <= {"held", "refuted"}  # of one seed
    table = (out / "table.md").read_text()
    assert unaligned(table).count("| claim | seed 0 | verdict |") == len(names)
    assert table in result.stdout


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--only", "repeater,magic"], "--only has magic: choose of hallucination"),
        (["--only", ","], "--only names no phenomenon"),
        (["--seeds", "1", "1"], "--seeds must be different"),
        (["--world", "large"], "--world must be one of demo"),
        (["--sft-lengths", "5", "2"], "--sft-lengths must be positive and ascending"),
        (["--samples", "1"], "--samples must be at least 2"),
        (["--sft-epochs", "0"], "--sft-epochs must be at least 1"),
        (["--checkpoints", "0"], "--checkpoints must be at least 1"),
        (["--kernel-prompts", "1"], "--kernel-prompts must be at least 2"),
        (["--heat-prompts", "41"], "--heat-prompts must be at least 2 and at most"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, args, part):
    out = tmp_path / "run"
    config = tyro.cli(study.Config, args=["--out", str(out), *args])
    with pytest.raises(SystemExit, match=r"^phenomena: [^\n]*$") as error:
        study.main(config)
    assert part in str(error.value)
    assert not out.exists()


def test_only_what_is_asked_for_is_trained():
    config = settings.Config
    assert config().chosen == settings.NAMES == tuple(study.PHENOMENA)
    assert config().longest_sft == 20
    some = config(only="repeater,hallucination")
    assert some.chosen == ("hallucination", "repeater")
    assert some.longest_sft == 10


# Hallucination


@pytest.mark.slow
def test_an_influence_is_a_k_g_and_all_of_them_sum_to_the_step(model, texts):
    decoder, params = model
    apply = apply_fn(decoder)
    found = influence.make_influence_fn(apply)(params, texts, texts)

    @jax.jit
    def expected(params, probe, update):
        terms = ldjax.decompose(
            logits_fn(decoder, probe),
            logits_fn(decoder, update),
            params,
            loss_fn=functools.partial(ldjax.losses.sft, batch=update),
        )
        change = terms.predict(1.0)
        own = jnp.take_along_axis(change, probe.targets[..., None], axis=-1)
        return jnp.where(probe.mask, own[..., 0], 0).sum()

    row = lambda i: jax.tree.map(lambda leaf: leaf[i : i + 1], texts)
    rows = [row(i) for i in range(3)]
    for i, j in np.ndindex(3, 3):
        exact = np.asarray(expected(params, rows[i], rows[j]))
        assert_close(found[i, j], exact, terms=1000)
    whole = influence.make_step_fn(apply)(params, texts, texts)
    assert_close(found.mean(1), whole, terms=1000)


def test_the_donor_of_an_answer_is_found_by_its_text():
    rows = [
        PreferenceRow("", {"chosen": own, "irr_train": other}, "")
        for own, other in (("a", "c"), ("b", "a"), ("c", "b"))
    ]
    assert start.donors(rows).tolist() == [2, 0, 1]


def test_terms_are_split_by_the_pairs_that_they_come_from():
    terms = np.array([[1.0, 5.0, 2.0], [4.0, -1.0, 0.0]])
    answers, prompts = np.array([1, 2]), np.array([0, 0])
    parts = hallucination.split(terms, {"answer": answers, "prompt": prompts})
    assert parts == {"answer": 2.5, "prompt": 2.5, "others": 0.5, "whole": 5.5}
    assert hallucination.rank(terms, answers).tolist() == [1, 2]
    # Where nothing moves, no pair is the largest.
    assert hallucination.rank(0 * terms, answers).tolist() == [3, 3]


def test_the_moments_have_both_ends():
    moments = hallucination.moments
    assert moments(10) == [0, 1, 2, 5, 10]
    assert moments(2) == [0, 1, 2]
    assert moments(1) == [0, 1]


def test_a_probe_knows_the_place_of_its_prompt():
    probe = Probe("train/0017", "chosen", Example((1,), (2,)))
    assert start.place_of(probe) == 17


# Fingerprint


def test_the_kernel_of_a_response_is_taken_at_its_last_tokens():
    last = fingerprint.last_positions
    mask = np.array([[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]]) > 0
    assert last(mask, 2).tolist() == [[3, 5], [4, 4]]
    assert last(mask, 1).tolist() == [[5], [4]]


@pytest.mark.exhaustive
def test_the_norms_are_those_of_the_dense_kernel(model, texts):
    decoder, params = model
    positions = jnp.asarray(fingerprint.last_positions(np.asarray(texts.mask), 2))
    some = fingerprint.Scored(texts, positions, jnp.ones(positions.shape, bool))
    squares = fingerprint.square_norms(decoder, params, some)
    fn = some.logits_fn(decoder)
    dense = jax.jit(
        lambda params: ldjax.empirical_ntk(fn, fn, params, method="lazy").dense()
    )(params)
    expected = (np.asarray(dense) ** 2).sum((1, 2, 4, 5))
    assert_close(squares, expected, terms=1000)
    alignment = fingerprint.aligned(squares)
    assert_close(np.diagonal(alignment), np.ones(3), terms=1000)
    assert alignment.max() <= 1 + 1e-12
    assert fingerprint.push_gap(decoder, params, some) < 1e-12


def test_only_texts_to_different_prompts_are_compared():
    # Two prompts with two types each; what must not count is 100.
    table = np.array(
        [[100, 100, 1, 2], [100, 100, 3, 4], [5, 6, 100, 100], [7, 8, 100, 100]]
    )
    means = [[3.0, 4.0], [5.0, 6.0]]
    assert fingerprint.between_prompts(table, 2).tolist() == means
    # By what a text does to itself, of each column.
    np.fill_diagonal(table, [10, 40, 10, 40])
    assert_close(fingerprint.heat(table, 2), np.array(means) / [10, 40])


# DPO


def score(study, row, text):
    """The number that the text is."""
    del study, row
    return float(text)


def test_the_best_and_the_worst_sample_make_a_pair():
    ranked = on_policy.ranked
    study = Study._make([None] * len(Study._fields))
    row = PreferenceRow("a question", {}, "a:1")
    assert ranked(study, row, ["1", "3", "0", "3.0"], score) == ("3", "0")
    assert ranked(study, row, ["1", "1.0"], score) is None


def test_all_arms_have_pairs_for_the_same_prompts():
    rows = [
        PreferenceRow(prompt, {name: f"{name} {prompt}" for name in RESPONSE_TYPES}, "")
        for prompt in "abc"
    ]
    arms = on_policy.make_arms(rows, [("x", "y"), None, ("v", "w")])
    assert {arm: [row.prompt for row in of] for arm, of in arms.items()} == {
        arm: ["a", "c"] for arm in ("valley", "off", "on")
    }
    sides = {arm: of[1].responses for arm, of in arms.items()}
    assert sides == {
        "valley": {"chosen": "chosen c", "rejected": "random_permute c"},
        "off": {"chosen": "chosen c", "rejected": "rejected c"},
        "on": {"chosen": "v", "rejected": "w"},
    }
    assert len(on_policy.UNTRAINED) == 9


def test_the_probability_of_a_token_is_a_geometric_mean():
    mean = start.geometric_mean
    log_probs = np.log([0.5**2, 0.125**4])
    assert mean(log_probs, np.array([2, 4])) == pytest.approx(0.25)


# Verdicts


def unaligned(table):
    return re.sub(" +", " ", table)


def make_outcomes(truths, gap=0.0):
    return {
        seed: results.Outcome(
            table={"share": 0.1 * seed},
            claims={"a": truth, "b": True},
            gaps={"identity": gap * seed},
            numbers=[results.Number("arm", 3, "chosen", "share", 0.5)],
        )
        for seed, truth in enumerate(truths)
    }


@pytest.mark.parametrize(
    ("truths", "verdict", "whole"),
    [
        ([True, True], "held", "held"),
        ([False, False], "refuted", "depends"),
        ([True, False], "depends", "depends"),
    ],
)
def test_a_claim_is_held_under_all_seeds_and_refuted_under_none(truths, verdict, whole):
    outcomes = make_outcomes(truths)
    claims = results.check_claims(outcomes)
    assert [claim.verdict for claim in claims] == [verdict, "held"]
    assert [claim.holds for claim in claims] == [verdict == "held", True]
    assert results.overall(claims) == whole
    lines = unaligned(results.tables("Title", outcomes)).splitlines()
    assert lines[0] == f"## Title: {whole}"
    assert f"| a | {' | '.join(str(t).lower() for t in truths)} | {verdict} |" in lines
    assert "| share | 0 | 0.1 | 0.05 [0, 0.1] |" in lines


def test_an_identity_that_fails_under_one_seed_fails():
    good = results.check_identities(make_outcomes([True, True], gap=1e-6))
    assert [check.holds for check in good] == [True]
    bad = results.check_identities(make_outcomes([True, True], gap=1e-3))
    assert [check.holds for check in bad] == [False]


def test_the_long_table_names_phenomenon_seed_and_arm():
    rows = results.metric_rows("repeater", make_outcomes([True, True]), batch_size=8)
    assert rows[1] == (3, 24, "repeater/1/arm", "chosen", "share", 0.5)
