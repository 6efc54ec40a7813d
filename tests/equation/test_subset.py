"""Taking parameters apart and putting them together."""

import copy

import jax
import jax.numpy as jnp
import pytest

from ldjax.equation.subset import merge, split

TREE = {"a": 1.0, "b": {"c": 2.0, "d": 3.0}, "e": {"f": {"g": 4.0}}}


def leaf_masks(tree):
    """Every way to choose leaves of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    for number in range(2 ** len(leaves)):
        yield treedef.unflatten([bool(number >> i & 1) for i in range(len(leaves))])


def paths(tree):
    return dict(jax.tree_util.tree_leaves_with_path(tree))


MASKS = [mask for mask in leaf_masks(TREE) if any(jax.tree.leaves(mask))]


@pytest.mark.parametrize("mask", MASKS)
def test_every_leaf_is_on_its_side_and_merging_undoes_it(mask):
    chosen, rest = split(TREE, mask)
    is_chosen, leaves = paths(mask), paths(TREE)
    assert paths(chosen) == {p: leaves[p] for p in leaves if is_chosen[p]}
    assert paths(rest) == {p: leaves[p] for p in leaves if not is_chosen[p]}
    assert merge(chosen, rest) == merge(rest, chosen) == TREE


@pytest.mark.parametrize("mask", [m for m in MASKS if not all(jax.tree.leaves(m))])
def test_splitting_undoes_merging(mask):
    chosen, rest = split(TREE, mask)
    assert split(merge(rest, chosen), mask) == (chosen, rest)


def test_branches_without_a_leaf_are_left_out():
    chosen, rest = split(TREE, {"a": False, "b": {"c": True, "d": False}, "e": False})
    assert chosen == {"b": {"c": 2.0}}
    assert rest == {"a": 1.0, "b": {"d": 3.0}, "e": {"f": {"g": 4.0}}}
    assert split(TREE, True) == (TREE, {})


@pytest.mark.parametrize(
    ("prefix", "mask"),
    [
        (True, {"a": True, "b": {"c": True, "d": True}, "e": {"f": {"g": True}}}),
        (
            {"a": False, "b": True, "e": False},
            {"a": False, "b": {"c": True, "d": True}, "e": {"f": {"g": False}}},
        ),
        (
            {"a": True, "b": {"c": False, "d": True}, "e": {"f": False}},
            {"a": True, "b": {"c": False, "d": True}, "e": {"f": {"g": False}}},
        ),
    ],
)
def test_a_prefix_stands_for_all_below_it(prefix, mask):
    assert split(TREE, prefix) == split(TREE, mask)


def test_a_function_is_asked_with_the_parameters():
    is_large = lambda params: jax.tree.map(lambda leaf: leaf > 2, params)
    assert split(TREE, is_large)[0] == {"b": {"d": 3.0}, "e": {"f": {"g": 4.0}}}
    by_name = lambda params: {name: name == "b" for name in params}
    assert split(TREE, by_name)[0] == {"b": {"c": 2.0, "d": 3.0}}


def test_shapes_and_tracers_are_leaves_like_any_other():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    where = {"a": False, "b": True, "e": False}
    chosen, rest = split(shapes, where)
    assert chosen["b"]["c"] is shapes["b"]["c"]
    assert merge(chosen, rest) == shapes

    @jax.jit
    def there_and_back(params):
        chosen, rest = split(params, where)
        return merge(jax.tree.map(jnp.negative, chosen), rest)

    expected = {"a": 1.0, "b": {"c": -2.0, "d": -3.0}, "e": {"f": {"g": 4.0}}}
    assert there_and_back(jax.tree.map(jnp.asarray, TREE)) == expected


def test_neither_writes_into_what_it_is_given():
    tree = copy.deepcopy(TREE)
    chosen, rest = split(tree, {"a": False, "b": {"c": True, "d": False}, "e": True})
    before = copy.deepcopy((chosen, rest))
    merge(chosen, rest)["b"]["new"] = 5.0
    assert (chosen, rest) == before
    chosen["b"]["c"] = 6.0
    assert tree == TREE


def test_merged_keys_are_in_jaxs_order():
    merged = merge({"z": 1.0, "b": {"y": 2.0}}, {"a": 3.0, "b": {"x": 4.0}})
    assert list(merged) == ["a", "b", "z"]
    assert list(merged["b"]) == ["x", "y"]


# What is refused.


@pytest.mark.parametrize(
    "where",
    [
        {"a": True},
        {"a": True, "b": True, "e": True, "more": True},
        {"a": {"below": True}, "b": True, "e": True},
        {"a": True, "b": [True, False], "e": True},
        lambda params: {"b": True},
    ],
    ids=["too few", "too many", "below a leaf", "a list", "a function"],
)
def test_a_mask_of_another_structure_is_refused(where):
    with pytest.raises(ValueError, match="`where` must be bools in the structure of"):
        split(TREE, where)


@pytest.mark.parametrize(
    "where", [False, lambda params: jax.tree.map(lambda _: False, params)]
)
def test_a_mask_that_chooses_nothing_is_refused(where):
    with pytest.raises(ValueError, match="`where` chooses no parameter"):
        split(TREE, where)


@pytest.mark.parametrize(
    ("params", "name"),
    [([1.0, 2.0], "list"), (1.0, "float"), ((1.0,), "tuple"), ({"a": [1.0]}, "list")],
)
def test_parameters_that_are_no_dicts_are_refused(params, name):
    with pytest.raises(TypeError, match=f"nested dicts of arrays, got {name}"):
        split(params, True)


@pytest.mark.parametrize(
    ("chosen", "rest", "name"),
    [
        ({"a": 1.0}, {"a": 2.0}, "a"),
        ({"a": {"b": 1.0}}, {"a": {"b": 2.0}}, "b"),
        ({"a": {"b": 1.0}}, {"a": 2.0}, "a"),
        ({"a": 1.0}, {"a": {"b": 2.0}}, "a"),
    ],
)
def test_two_leaves_of_one_name_are_refused(chosen, rest, name):
    with pytest.raises(ValueError, match=f"Both have a parameter '{name}'"):
        merge(chosen, rest)
