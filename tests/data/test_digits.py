"""The bundled digits, the split, and images as sequences."""

import hypothesis
import jaxtyping
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import strategies as st

from ldjax.data import as_sequences, load_digits, split_indices


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_shapes_dtypes_and_range(digits):
    assert digits.train_images.shape == (1000, 28, 28)
    assert digits.test_images.shape == (797, 28, 28)
    for images, labels in (digits[:2], digits[2:]):
        assert (images.dtype, labels.dtype) == (np.float32, np.int32)
        assert (images.min(), images.max()) == (0, 1)
        assert set(labels.tolist()) == set(range(10))


def test_every_pixel_is_three_by_three_inside_a_frame_of_two(digits):
    images = digits.test_images
    inside = images[:, 2:26, 2:26]
    assert np.count_nonzero(inside) == np.count_nonzero(images)
    blocks = inside.reshape(-1, 8, 3, 8, 3)
    np.testing.assert_array_equal(blocks, blocks[:, :, 1:2, :, 1:2] + 0 * blocks)


def test_split_keeps_every_image_with_its_label(digits):
    values, classes = sklearn.datasets.load_digits(return_X_y=True)
    expected = sorted((*row, label) for row, label in zip(values, classes, strict=True))
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    small = images[:, 3:26:3, 3:26:3].reshape(-1, 64) * 16
    found = sorted((*row, label) for row, label in zip(small, labels, strict=True))
    np.testing.assert_array_equal(found, expected)


def test_same_seed_same_split_and_another_seed_another_one(digits):
    for left, right in zip(digits, load_digits(seed=0), strict=True):
        np.testing.assert_array_equal(left, right)
    assert (digits.train_labels != load_digits(seed=1).train_labels).any()


def test_more_training_images_keep_those_before(digits):
    fewer = load_digits(num_train=10)
    np.testing.assert_array_equal(fewer.train_images, digits.train_images[:10])
    assert len(fewer.test_labels) == 1787


@pytest.mark.parametrize("num_train", [-1, 0, 1797])
def test_refuses_a_split_with_an_empty_part(num_train):
    with pytest.raises(ValueError, match=f"between 1 and 1796, got {num_train}: "):
        load_digits(num_train=num_train)


@hypothesis.given(num=st.integers(1, 50), seed=st.integers(0, 2**32), data=st.data())
def test_split_is_a_partition(num, seed, data):
    num_train = data.draw(st.integers(1, num))
    train, rest = split_indices(num, num_train=num_train, seed=seed)
    assert len(train) == num_train
    assert sorted([*train.tolist(), *rest.tolist()]) == list(range(num))


def test_sequences_have_one_scored_position(digits):
    sequences = as_sequences(digits.test_images[:4], digits.test_labels[:4])
    np.testing.assert_array_equal(sequences.tokens, digits.test_images[:4])
    np.testing.assert_array_equal(sequences.targets, digits.test_labels[:4, None])
    assert sequences.tokens.dtype == np.float32
    assert sequences.mask.shape == (4, 1)
    assert sequences.mask.all()


def test_sequences_refuse_labels_of_another_length(digits, monkeypatch):
    # As in use, where shapes in signatures are documentation.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="got 4 images and 3 labels"):
        as_sequences(digits.test_images[:4], digits.test_labels[:3])
