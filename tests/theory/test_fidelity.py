"""How well a run was predicted, against the definitions and at their ends."""

import warnings

import numpy as np
import pytest

from ldjax.theory.fidelity import fidelity, r_squared_within_types

PROMPTS = ["a", "a", "b", "b"]
TYPES = ["chosen", "rejected", "chosen", "rejected"]


def make_series(seed=0, steps=6, probes=4):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(steps, probes))
    predicted = measured + 0.1 * rng.normal(size=(steps, probes))
    floor = np.full((steps, probes), 1e-6)
    return {"predicted": predicted, "measured": measured, "floor": floor}


def test_the_fidelity_of_a_type_is_its_definition():
    series = make_series()
    found = fidelity(series, PROMPTS, TYPES)
    assert set(found) == {"chosen", "rejected", "all", "margin"}
    m, p = series["measured"][:, ::2].cumsum(0), series["predicted"][:, ::2].cumsum(0)
    expected = 1 - ((m - p) ** 2).sum() / ((m - m.mean()) ** 2).sum()
    assert found["chosen"].r_squared == pytest.approx(expected)
    at_end = 1 - ((m[-1] - p[-1]) ** 2).sum() / ((m[-1] - m[-1].mean()) ** 2).sum()
    assert found["chosen"].r_squared_at_end == pytest.approx(at_end)
    rest = np.linalg.norm(m[-1] - p[-1]) / np.linalg.norm(m[-1])
    assert found["chosen"].remainder_ratio == pytest.approx(rest)
    margin = series["measured"][:, ::2] - series["measured"][:, 1::2]
    assert found["margin"].change == pytest.approx(margin.sum(0).mean())
    perfect = fidelity(series | {"predicted": series["measured"]}, PROMPTS, TYPES)
    assert perfect["all"].r_squared == 1
    assert perfect["all"].sign_agreement == 1
    opposite = fidelity(series | {"predicted": -series["measured"]}, PROMPTS, TYPES)
    assert opposite["all"].sign_agreement == 0


def test_changes_below_the_floor_have_no_sign():
    series = make_series()
    series["floor"][:] = 100.0
    opposite = series | {"predicted": -series["measured"]}
    assert fidelity(opposite, PROMPTS, TYPES)["all"].sign_agreement is None


def test_shares_of_nothing_are_none():
    nothing = {k: np.zeros((3, 2)) for k in ("predicted", "measured", "floor")}
    shares = ("r_squared", "remainder_ratio", "step_remainder_ratio", "floor_ratio")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fidelity(nothing, ["a", "a"], ["chosen", "rejected"])
    for fit in found.values():
        assert {getattr(fit, name) for name in shares} == {None}
        assert fit.sign_agreement is None
        assert fit.change == 0


def test_one_update_of_one_response_has_no_share_of_a_spread():
    one = {"predicted": [[0.5]], "measured": [[0.4]], "floor": [[1e-6]]}
    series = {name: np.array(value) for name, value in one.items()}
    fit = fidelity(series, ["a"], ["chosen"])["all"]
    assert fit.r_squared is None
    assert fit.remainder_ratio == pytest.approx(0.25)


def test_a_margin_is_of_the_prompts_that_have_both_sides():
    series = {
        name: np.arange(4.0)[None] * scale
        for name, scale in (("predicted", 1.1), ("measured", 1.0), ("floor", 0.0))
    }
    types = ["chosen", "rejected", "chosen", "rejected"]
    found = fidelity(series, ["a", "b", "b", "c"], types)
    assert found["margin"].change == 2.0 - 1.0
    alone = fidelity(series, ["a", "c", "d", "e"], ["chosen"] + 3 * ["rejected"])
    assert "margin" not in alone


def test_types_that_differ_explain_nothing_within_them():
    """Pooled, a prediction of nothing but each type's mean looks nearly perfect."""
    prompts, types = [*"abcd", *"abcd"], ["chosen"] * 4 + ["rejected"] * 4
    rng = np.random.default_rng(0)
    level = np.repeat([40.0, -60.0], 4)
    measured = (level + rng.normal(size=(1, 8))).repeat(2, axis=0)
    measured[1] = 0  # all in the first of two updates
    predicted = np.where(measured == 0, 0, level)
    series = {"measured": measured, "predicted": predicted, "floor": 0 * measured}
    pooled = fidelity(series, prompts, types)["all"].r_squared
    within = r_squared_within_types(series, types)
    assert pooled is not None
    assert pooled > 0.999
    assert within is not None
    assert within < 0.1
    exact = series | {"predicted": measured}
    assert r_squared_within_types(exact, types) == 1
