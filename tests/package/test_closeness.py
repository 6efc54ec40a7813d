"""The comparison that every other test relies on passes and fails where it should."""

import numpy as np
import pytest
from witnesses.closeness import assert_close, rounding, worst_ratio

ONES = np.ones(4)


def test_rounding_is_32_units_times_the_root_of_the_terms():
    assert rounding(np.float64, 4) == 64 * 2.0**-52
    assert rounding(np.float32) == 32 * 2.0**-23


def test_accepts_a_difference_of_rounding():
    assert_close(ONES + 31 * 2.0**-52, ONES)
    assert_close({"a": ONES + 60 * 2.0**-52}, {"a": ONES}, terms=4)


def test_errors_are_relative_to_the_largest_entry():
    assert_close(np.array([1e6, 1e-9]), np.array([1e6, 0.0]))
    with pytest.raises(AssertionError):
        assert_close(np.array([1.0, 1e-9]), np.array([1.0, 0.0]))


def test_the_coarser_dtype_decides():
    assert_close(ONES.astype(np.float32) + np.float32(1e-6), ONES)
    with pytest.raises(AssertionError):
        assert_close(ONES + 1e-6, ONES)


@pytest.mark.parametrize(
    ("actual", "expected", "options"),
    [
        (ONES * (1 + 1e-13), ONES, {}),
        (ONES * (1 + 1e-9), ONES, {"rtol": 1e-10}),
        (-ONES, ONES, {}),
        (ONES + 1e-20, np.zeros(4), {}),
        (ONES * 1e-3, np.zeros(4), {"scale": 1.0}),
        (ONES * np.nan, ONES, {}),
        (ONES * np.nan, ONES * np.nan, {}),
        (ONES * np.inf, ONES * np.inf, {}),
        (ONES[:3], ONES, {}),
        (ONES[None], ONES, {}),
        ({"a": ONES}, {"b": ONES}, {}),
        ({"a": ONES, "b": ONES}, {"a": ONES, "b": ONES + 1}, {}),
        (np.array([1, 2]), np.array([1, 3]), {}),
    ],
)
def test_refuses(actual, expected, options):
    with pytest.raises(AssertionError):
        assert_close(actual, expected, **options)


def test_rtol_is_not_taken_for_an_absolute_tolerance():
    with pytest.raises(AssertionError):
        assert_close(np.full(3, 2e-9), np.full(3, 1e-9), rtol=1e-6)
    assert_close(np.full(3, 1e9 + 1), np.full(3, 1e9), rtol=1e-8)


def test_a_zero_is_zero_unless_a_scale_is_given():
    assert_close(np.zeros(3), np.zeros(3))
    assert_close(np.full(3, 1e-15), np.zeros(3), scale=1.0)


def test_the_failure_names_leaf_index_ratio_and_extremes():
    wrong = ONES.copy()
    wrong[2] = -3.0
    with pytest.raises(
        AssertionError, match=r"\['a'\].*\(2,\).*ratio.*4.*\[-3, 1\].*\[1, 1\]"
    ):
        assert_close({"a": wrong}, {"a": ONES})


def test_worst_ratio_is_the_worst_leaf():
    assert worst_ratio([ONES, ONES * 1.5], [ONES, ONES]) == 0.5
