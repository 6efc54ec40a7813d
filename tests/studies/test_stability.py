"""The study of the kernel's stability: what it measures, checks and reports."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from shell.scripts import run_script
from zoo.decoders import make_decoder

from ldjax import losses
from ldjax.data.batches import Example
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.runs.folder import METRIC_COLUMNS, open_run
from ldjax.studies import scored
from ldjax.studies.stability import measure, results, study, training
from ldjax.watch.probes import Probe

pytestmark = pytest.mark.slow

FIGURES = ["norms", "proxies", "stability"]
GAPS = ("push_gap", "columns_gap", "symmetry_gap")


@pytest.mark.exhaustive
def test_a_smoke_run_is_whole_and_its_identities_hold(tmp_path):
    out = tmp_path / "run"
    args = ("--smoke", "--out", out, "--cache", tmp_path / "cache")
    result = run_script("kernel_stability.py", *args)
    assert result.returncode == 0, result.stderr
    run = open_run(out)
    metrics = run.metrics()
    assert tuple(metrics.columns) == METRIC_COLUMNS
    assert metrics["value"].is_finite().all()
    for kernel in ("K", "K_P"):
        norms = metrics.filter(metrics["quantity"] == f"{kernel}:norm")
        assert (norms["value"] > 0).all()
        assert set(norms["type"]) == set(RESPONSE_TYPES)
        assert {name.split("/")[0] for name in norms["probe"]} == {"sft", "dpo"}
    summary = run.summary
    assert len(summary["identities"]) == 6
    assert all(check["holds"] for check in summary["identities"])
    assert {claim["holds"] for claim in summary["claims"]} <= {True, False}
    for stage in summary["stages"].values():
        for of_kernel in stage["kernels"].values():
            tightness = of_kernel["tightness"]["lbk:predicted"]
            assert 0 < tightness["smallest"] <= tightness["largest"] <= 1
            matrix = np.array(of_kernel["stability"]["norm"]["matrix"])
            np.testing.assert_allclose(np.diagonal(matrix), 1)
    # Both sides of a pair add up to its norm.
    sides = {
        name: metrics.filter(metrics["quantity"] == f"K:norm{name}").filter(
            metrics["probe"]
            .str.starts_with("dpo/")
            .filter(metrics["quantity"] == f"K:norm{name}")
        )["value"]
        for name in ("", ":chosen", ":rejected")
    }
    total = sides[":chosen"] ** 2 + sides[":rejected"] ** 2
    np.testing.assert_allclose(total, sides[""] ** 2, rtol=1e-12)
    assert sorted(path.stem for path in (out / "figures").glob("*.png")) == FIGURES


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--updates", "0"], "--updates must be at least 1"),
        (["--updates", "30"], "--updates must be at most --probe-prompts"),
        (["--times", "1"], "--times must be at least 2"),
        (["--step-norm", "0"], "--step-norm must be positive"),
        (["--update-tokens", "-1"], "--update-tokens must be not negative"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, args, part):
    out = tmp_path / "run"
    config = tyro.cli(study.Config, args=["--out", str(out), *args])
    with pytest.raises(SystemExit, match=r"^stability: [^\n]*$") as error:
        study.main(config)
    assert part in str(error.value)
    assert not out.exists()


def test_the_moments_have_both_ends_and_grow_apart():
    moments = training.moments
    assert moments(300, 4) == [0, 33, 133, 300]
    assert moments(2, 8) == [0, 1, 2]


def make_probes():
    """Two prompts of other lengths with two responses each."""
    return [
        Probe(f"train/{i}", type_, Example((1,) * prompt, (5, 6, 7, 8, 9)[:length]))
        for i, prompt in enumerate((2, 4))
        for type_, length in (("rejected", 3), ("chosen", 5 - i))
    ]


def test_an_update_example_learns_evenly_spread_tokens_of_its_own_responses():
    make = scored.make_update_examples
    first, second = make(make_probes(), ("chosen",), num_tokens=3)
    assert first.places.tolist() == [0, 1]
    assert first.rows == {"chosen": 1}
    learned = first.sides["chosen"]
    assert learned.positions.tolist() == [[1, 3, 5]]  # of 1 to 5, after two of prompt
    assert learned.batch.targets.tolist() == [[5, 7, 9]]
    assert second.sides["chosen"].batch.targets.tolist() == [[5, 7, 8]]
    # Probes have all their tokens, and all prompts one shape.
    assert first.probes.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert first.probes.batch.targets[0, :3].tolist() == [5, 6, 7]
    shapes = [example.probes.sequences.tokens.shape for example in (first, second)]
    assert shapes == [(2, 7), (2, 7)]
    whole, _ = make(make_probes(), ("chosen",), num_tokens=0)
    assert whole.sides["chosen"].batch.targets.tolist() == [[5, 6, 7, 8, 9]]


def test_the_blocks_of_the_transposed_kernel_are_found():
    make = scored.make_update_examples
    gap_of = measure._symmetry_gap
    example, _ = make(make_probes(), ("chosen", "rejected"), num_tokens=2)
    # Any symmetric table over all tokens of both responses: rejected 0-2, chosen 3-7.
    table = np.random.default_rng(0).random((8, 8))
    table = table + table.T
    tokens = {"rejected": [0, 2], "chosen": [3, 7]}
    blocks = {}
    for side, columns in tokens.items():
        blocks[side] = np.zeros((2, 5, 2))
        blocks[side][0, :3] = table[:3, columns]
        blocks[side][1] = table[3:, columns]
    assert gap_of(blocks, example) == 0
    blocks["chosen"][0, 2, 0] += 0.1  # rejected's last token by chosen's first
    learned = np.concatenate([*tokens.values()])
    assert gap_of(blocks, example) == pytest.approx(
        0.1 / max(table[np.ix_(learned, learned)].max(), blocks["chosen"][0, 2, 0])
    )


def make_table(times=3, prompts=2):
    """Drawn measurements of a stage, with its two lists of probes."""
    rng = np.random.default_rng(0)
    example = Example((1,), (2,))
    probes = [
        Probe(f"train/{i}", type_, example)
        for i in range(prompts)
        for type_ in RESPONSE_TYPES
    ]
    shape = (times, len(probes))
    norm = 1 + 3 * rng.random(shape)
    bound = 0.5 * norm**2
    series = {"K:norm": norm, "K:distance": 0.1 * norm} | {
        f"K:{name}:{kind}": bound
        for name in ("lbk", "sign_delta", "influence")
        for kind in ("predicted", "measured", "published")
    }
    gaps = dict.fromkeys(GAPS, np.full(times, 1e-7))
    names = ("log_prob", "adaptation_norm_published", "residual_norm_published")
    evaluated = {name: rng.random(shape) for name in names}
    step = {"step": np.arange(times)}
    return {"kernel": series | gaps | step, "evaluated": evaluated | step}, probes


def test_identities_that_do_not_hold_are_seen():
    check = results.check_identities
    table, _ = make_table()
    assert [one.holds for one in check("sft", table)] == [True] * 3
    for place, name in enumerate(GAPS):
        broken = table["kernel"] | {name: np.array([0.0, 0.01, 0.0])}
        holds = [one.holds for one in check("sft", {"kernel": broken})]
        assert holds == [i != place for i in range(3)]


def two_sided(logits, batch):
    """A loss that lifts one side and pushes the other down half as hard."""
    lift, push = (
        losses.sft(logits[side], batch[side]) for side in ("chosen", "rejected")
    )
    return lift - 0.5 * push


@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_a_kernel_that_is_wrong_by_a_factor_is_seen(monkeypatch, factor):
    """The bound on the proxy, by 1e8 too large, would not see it."""
    make = scored.make_update_examples
    model, params = make_decoder("gpt2")
    example, _ = make(make_probes(), ("chosen", "rejected"), num_tokens=2)
    batch = {side: learned.batch for side, learned in example.sides.items()}
    P = jax.tree.map(lambda leaf: 0.1 + jnp.abs(leaf), params)
    true_kernel, pushes = scored.factored_kernel, cast(Any, scored.pushes)

    def planted(model, params, P, probes, update):
        P = jax.tree.map(lambda leaf: factor * leaf, P)
        return true_kernel(model, params, P, probes, update)

    monkeypatch.setattr(scored, "factored_kernel", planted)
    pushes.clear_cache()
    gap = measure._push_gap(model, two_sided, params, P, example, batch, turn=1)
    pushes.clear_cache()
    assert gap == pytest.approx(1 - factor, abs=1e-12)


def test_the_stability_is_spearmans_between_times():
    table, probes = make_table()
    found = results.study(table, probes, probes)
    assert found["types"] == list(RESPONSE_TYPES)
    of_kernel = found["kernels"]["K"]
    norm = table["kernel"]["K:norm"].reshape(3, 2, 12)
    stability = of_kernel["stability"]["norm"]
    for i, j in np.ndindex(3, 3):
        ranks = norm[[i, j]].argsort().argsort()  # there are no ties
        by_hand = np.mean([np.corrcoef(ranks[:, p])[0, 1] for p in range(2)])
        assert stability["matrix"][i][j] == pytest.approx(by_hand)
    assert stability["start_to_end"] == stability["matrix"][0][2]
    successive = [stability["matrix"][0][1], stability["matrix"][1][2]]
    assert stability["successive"] == min(successive)
    drift = np.array(of_kernel["drift"]["from_start"])
    np.testing.assert_allclose(drift[:, 2], (norm[2] / norm[0]).mean(0))
    proxies = of_kernel["proxies"]
    assert proxies["lbk:predicted"]["mean"] == pytest.approx(1)
    assert of_kernel["tightness"]["lbk:predicted"]["median"] == pytest.approx(0.5)
    assert -1 <= proxies["lbk over intervals"]["mean"] < 1
    verdicts = results.verdicts({"sft": found})
    assert [one.holds for one in verdicts] == [
        one.numbers["value"] > one.numbers["bound"] for one in verdicts
    ]
    assert {one.holds for one in verdicts} == {True, False}


def test_the_proxies_of_the_code_are_those_of_its_evaluations():
    table, probes = make_table()
    found = results.study(table, probes, probes)["published"]
    evaluated = {
        name: values.reshape(3, 2, 12)
        for name, values in table["evaluated"].items()
        if name != "step"
    }
    change = np.diff(evaluated["log_prob"], axis=0)
    chosen = RESPONSE_TYPES.index("chosen")
    scale = (
        np.sqrt(evaluated["adaptation_norm_published"][1:].mean(1))
        * (evaluated["residual_norm_published"][1:, :, chosen].mean(1)[:, None])
    )
    np.testing.assert_allclose(
        np.array(found["lbk"]).T, np.linalg.norm(change, axis=1) / scale
    )
    np.testing.assert_allclose(np.array(found["sign_delta"]).T, change.mean(1) / scale)
