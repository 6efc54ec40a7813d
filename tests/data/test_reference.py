"""Reference log-probs: right, kept, and never those of something else."""

import hashlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import references
from zoo.cases import apply_toy, sentences, toy_params

import ldjax
from ldjax.data.reference import add_reference, fingerprint


def make_pairs():
    return {"chosen": sentences(6, 5, 4), "rejected": sentences(7, 5, 5)}


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_the_reference_of_a_row_is_its_log_prob(batch_size):
    params = toy_params()
    pairs = make_pairs()
    found = add_reference(apply_toy, params, pairs, batch_size=batch_size)
    for side, batch in pairs.items():
        logits = np.asarray(apply_toy(params, batch))
        expected = references.log_prob_sums(logits, *map(np.asarray, batch[1:3]))
        np.testing.assert_allclose(found[side].reference, expected, rtol=1e-12)


def _forge(path, numbers):
    """Other numbers, under their own checksum."""
    np.save(path, numbers)
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())


def test_what_is_kept_is_read_again(tmp_path):
    arguments = (apply_toy, toy_params(), make_pairs())
    first = add_reference(*arguments, batch_size=2, cache=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    for path in files:  # what is found there is taken, so it was not computed again
        _forge(path, np.load(path) - 1)
    again = add_reference(*arguments, batch_size=2, cache=tmp_path)
    for side in first:
        np.testing.assert_array_equal(again[side].reference, first[side].reference - 1)


def _flip_a_bit_of_a_number(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1  # before the checksum of 32 bytes
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes()[:9]),
        lambda path: path.write_bytes(b"something else"),
        _flip_a_bit_of_a_number,
        lambda path: np.save(path, np.load(path) - 1),  # as versions before kept them
    ],
)
def test_a_damaged_file_is_computed_anew_and_said(tmp_path, damage, caplog):
    arguments = (apply_toy, toy_params(), make_pairs()["chosen"])
    first = add_reference(*arguments, batch_size=2, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    damage(path)
    again = add_reference(*arguments, batch_size=2, cache=tmp_path)
    np.testing.assert_array_equal(again.reference, first.reference)
    assert path.read_bytes() == before
    (said,) = caplog.messages
    assert said.startswith(f"{path} is damaged (")
    assert said.endswith("computed anew.")
    assert "\n" not in said


def test_no_room_to_keep_them_is_no_reason_to_stop(tmp_path, caplog):
    arguments = (apply_toy, toy_params(), make_pairs()["chosen"])
    (tmp_path / "file").write_text("no folder")
    found = add_reference(*arguments, batch_size=2, cache=tmp_path / "file" / "cache")
    expected = add_reference(*arguments, batch_size=2)
    np.testing.assert_array_equal(found.reference, expected.reference)
    assert re.match(r".*reference-.*npy cannot be written: Not a dir", *caplog.messages)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _scaled(params, sequences):
    return 2 * apply_toy(params, sequences)


@pytest.mark.parametrize("changed", ["params", "tokens", "mask", "model", "batch"])
def test_another_computation_is_another_key(tmp_path, changed):
    params, rows, apply_fn, batch_size = (
        toy_params(),
        make_pairs()["chosen"],
        apply_toy,
        2,
    )
    add_reference(apply_fn, params, rows, batch_size=batch_size, cache=tmp_path)
    if changed == "params":
        name = next(iter(params))
        params = params | {name: jnp.nextafter(params[name], jnp.inf)}
    elif changed == "tokens":
        rows = rows._replace(tokens=(rows.tokens + 1) % 3)
    elif changed == "mask":
        rows = rows._replace(mask=jnp.zeros_like(rows.mask))
    elif changed == "model":
        apply_fn = _scaled
    else:
        batch_size = 3
    found = add_reference(apply_fn, params, rows, batch_size=batch_size, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    fresh = add_reference(apply_fn, params, rows, batch_size=batch_size)
    np.testing.assert_array_equal(found.reference, fresh.reference)


def test_dpo_begins_at_log_two_where_the_policy_is_its_reference():
    params = toy_params()
    pairs = add_reference(apply_toy, params, make_pairs(), batch_size=5)
    logits = {side: apply_toy(params, batch) for side, batch in pairs.items()}
    loss = ldjax.losses.dpo(0.1)(logits, pairs)
    assert float(loss) == pytest.approx(np.log(2.0), rel=1e-14)


def test_a_fingerprint_tells_bits_names_and_types_apart():
    x = np.zeros(2)
    names = {
        fingerprint({"a": x}),
        fingerprint({"b": x}),
        fingerprint({"a": -x}),
        fingerprint({"a": x.astype(np.float32)}),
        fingerprint({"a": x[None]}),
        fingerprint({"a": x}, "text"),
    }
    assert len(names) == 6
