"""IDX files: round trips, every kind of damage, the real files, the download."""

import functools
import gzip
import hashlib
import os
import re
from pathlib import Path

import hypothesis
import numpy as np
import pooch
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ldjax.data import load_mnist, read_idx

# Without the time of day, which would get into the names of tests.
_packed = functools.partial(gzip.compress, mtime=0)

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def _idx(array, type_code=8):
    header = bytes([0, 0, type_code, array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + sizes + array.astype(np.uint8).tobytes()


def _arrays(num_train=5, num_test=3):
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (num_train, 28, 28)),
        rng.integers(0, 10, num_train),
        rng.integers(0, 256, (num_test, 28, 28)),
        rng.integers(0, 10, num_test),
    ]


@pytest.fixture
def folder(tmp_path):
    for name, array in zip(NAMES, _arrays(), strict=True):
        (tmp_path / name).write_bytes(_idx(array))
    return tmp_path


# Reading what is well


@hypothesis.given(
    hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=5)), st.booleans()
)
def test_round_trip(tmp_path_factory, array, is_gzip):
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if is_gzip else "a")
    content = _idx(array)
    path.write_bytes(_packed(content) if is_gzip else content)
    found = read_idx(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


def test_loads_pixels_between_zero_and_one(folder):
    images = load_mnist(folder)
    expected = _arrays()
    np.testing.assert_allclose(images.train_images, expected[0] / 255, rtol=1e-7)
    np.testing.assert_array_equal(images.train_labels, expected[1])
    np.testing.assert_allclose(images.test_images, expected[2] / 255, rtol=1e-7)
    np.testing.assert_array_equal(images.test_labels, expected[3])
    assert [part.dtype for part in images] == [np.float32, np.int32] * 2


@pytest.mark.parametrize("is_dotted", [False, True])
@pytest.mark.parametrize("is_gzip", [False, True])
def test_all_file_names_give_the_same(folder, tmp_path, is_dotted, is_gzip):
    other = tmp_path / "other"
    other.mkdir()
    for name in NAMES:
        content = (folder / name).read_bytes()
        name = name.replace("-idx", ".idx") if is_dotted else name
        name = f"{name}.gz" if is_gzip else name
        (other / name).write_bytes(_packed(content) if is_gzip else content)
    for left, right in zip(load_mnist(folder), load_mnist(str(other)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_folder_of_a_files_name_is_passed_over(folder):
    for name in NAMES:  # as some archives unpack
        (folder / name).rename(folder / "content")
        (folder / name).mkdir()
        (folder / "content").rename(folder / name.replace("-idx", ".idx"))
    assert len(load_mnist(folder).train_labels) == 5


def test_chooses_training_images_by_seed(folder):
    everything = load_mnist(folder)
    some = load_mnist(folder, num_train=3, seed=1)
    again = load_mnist(folder, num_train=3, seed=1)
    np.testing.assert_array_equal(some.train_images, again.train_images)
    np.testing.assert_array_equal(some.test_images, everything.test_images)
    for image, label in zip(some.train_images, some.train_labels, strict=True):
        where = [(image == other).all() for other in everything.train_images]
        assert everything.train_labels[where.index(True)] == label
    with pytest.raises(ValueError, match="between 1 and 5, got 6"):
        load_mnist(folder, num_train=6)


# Damage to one file


GOOD = _idx(np.arange(24).reshape(2, 3, 4))  # 16 bytes of header, 24 of data
GOOD_GZ = _packed(GOOD)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "a is empty: 0 bytes. Get the file again"),
        ("a.gz", b"", "a.gz is empty: 0 bytes. Get the file again"),
        ("a", GOOD[:-1], "a is cut short: its header says 2 x 3 x 4 = 24 bytes of "
         "data, 23 follow"),
        ("a", GOOD + b"\0", "a is too long: its header says 2 x 3 x 4 = 24 bytes of "
         "data, 25 follow"),
        ("a", GOOD[:15], "a is cut short: 15 bytes, expected a header of 16"),
        ("a", GOOD[:3], r"a is not an IDX file: it starts with b'\x00\x00\x08'"),
        ("a", b"<html>404</html>", "a is not an IDX file: it starts with b'<htm'"),
        ("a", b"\0\0\x08\0\0", "a is not an IDX file: it starts with"),
        ("a", b"\0\0\x08\xff" + bytes(2000), "expected two zero bytes, the type 8 and "
         "1 to 32 axes"),
        ("a", _idx(np.arange(2), type_code=13), "a holds IDX type 13, expected 8"),
        ("a", _idx(np.zeros((0, 28, 28))), "a holds no data: its header says 0 x 28 x"),
        ("a", _idx(np.zeros(1))[:4] + b"\xff" * 4, "= 4294967295 bytes of data, 0 "
         "follow"),
        ("a.gz", GOOD, r"a.gz is named .gz and is not gzip: it starts with b'\x00\x00',"
         r" expected b'\x1f\x8b'. If it is unpacked already, take .gz off its name"),
        ("a", GOOD_GZ, "a is gzipped. Add .gz to its name, or unpack it"),
        ("a.gz", GOOD_GZ[:1], "a.gz is named .gz and is not gzip: it starts with"),
        ("a.gz", GOOD_GZ[:7], "a.gz is damaged: its 7 bytes do not unpack ("),
        ("a.gz", GOOD_GZ[:-1], f"its {len(GOOD_GZ) - 1} bytes do not unpack ("),
        ("a.gz", GOOD_GZ + b"more", "bytes do not unpack (Not a gzipped file"),
        ("a.gz", GOOD_GZ[:-8] + bytes(8), "bytes do not unpack (CRC check failed"),
        ("a.gz", GOOD_GZ[:10] + b"\xff" * 9, "bytes do not unpack (Error -3"),
        ("a.gz", _packed(b""), "a.gz is not an IDX file: it starts with b''"),
        ("a.gz", _packed(GOOD[:-1]), "a.gz is cut short: its header says"),
    ],
)  # fmt: skip
def test_damage_gives_one_error_that_names_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_idx(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def _read_or_message(path):
    try:
        return read_idx(path)
    except ValueError as error:
        return str(error)


@hypothesis.given(st.sampled_from([GOOD, GOOD_GZ]), st.data())
def test_no_damage_gives_another_kind_of_error(tmp_path_factory, content, data):
    """Any one byte changed, and cut anywhere: an array or a `ValueError`."""
    where = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255))
    stop = data.draw(st.integers(0, len(content)))
    broken = content[:where] + bytes([value]) + content[where + 1 :]
    name = data.draw(st.sampled_from(["a", "a.gz"]))
    path = tmp_path_factory.mktemp("broken") / name
    path.write_bytes(broken[:stop])
    found = _read_or_message(path)
    assert isinstance(found, np.ndarray) or str(path) in found


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_idx(tmp_path / "absent")


# Four files that do not fit


def _set(folder, index, array):
    (folder / NAMES[index]).write_bytes(_idx(array))


def test_swapped_labels_and_images(folder):
    images, labels = (folder / name for name in NAMES[:2])
    contents = images.read_bytes(), labels.read_bytes()
    images.write_bytes(contents[1])
    message = f"{images} should hold images: its magic number is 2049, expected 2051"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_mnist(folder)
    images.write_bytes(contents[0])
    labels.write_bytes(contents[0])
    message = f"{labels} should hold labels: its magic number is 2051, expected 2049"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_mnist(folder)


def test_counts_that_differ(folder):
    _set(folder, 3, np.zeros(4))
    with pytest.raises(ValueError, match=r"holds 3 images and .* holds 4 labels") as e:
        load_mnist(folder)
    assert str(folder / NAMES[2]) in str(e.value)
    assert str(folder / NAMES[3]) in str(e.value)


def test_images_of_another_size(folder):
    _set(folder, 0, np.zeros((5, 32, 31)))
    message = f"{folder / NAMES[0]} holds images of 32 x 31 pixels, expected 28 x 28"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_mnist(folder)


def test_a_label_above_nine(folder):
    _set(folder, 1, np.array([0, 9, 10, 3, 255]))
    message = f"{folder / NAMES[1]} holds label 10 at index 2, expected 0 to 9"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_mnist(folder)


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_names_all_its_names(folder, missing):
    (folder / missing).unlink()
    dotted = missing.replace("-idx", ".idx")
    names = f"none of {missing}, {dotted}, {missing}.gz, {dotted}.gz. Pass the folder"
    with pytest.raises(FileNotFoundError, match=re.escape(names)) as caught:
        load_mnist(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent is not a folder.*`mnist_dir`"):
        load_mnist(tmp_path / "absent")


# The download


def test_download_asks_for_the_four_checked_files(folder, monkeypatch):
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url.rsplit("/", 1)[1], known_hash, fname))
        assert url.startswith("https://")
        assert Path(path).name == "mnist"
        return str(folder / fname.removesuffix(".gz"))

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    images = load_mnist()
    assert len(images.train_labels) == 5
    assert [name for name, _, _ in asked] == [f"{name}.gz" for name in NAMES]
    assert all(name == fname for name, _, fname in asked)
    assert all(re.fullmatch("md5:[0-9a-f]{32}", md5) for _, md5, _ in asked)


@pytest.mark.parametrize(
    "failure", [ConnectionError("no route"), ValueError("md5 does not match")]
)
def test_a_failed_download_says_what_to_pass_instead(failure, monkeypatch):
    def retrieve(*_, **__):
        raise failure

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(OSError, match=r"MNIST files: `mnist_dir`") as caught:
        load_mnist()
    assert f"{type(failure).__name__}: {failure}" in str(caught.value)
    assert "train-images-idx3-ubyte.gz" in str(caught.value)


# The real files


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        message = "no folder shared/data/mnist next to the repository: real MNIST"
        if os.environ.get("CI"):
            pytest.fail(f"{message} was not tested, and CI has to")
        pytest.skip(f"{message} not tested")
    return load_mnist(REAL)


def test_real_counts(real):
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert real.train_images.shape == (60_000, 28, 28)
    assert real.test_images.shape == (10_000, 28, 28)
    assert np.bincount(real.train_labels).tolist() == train
    assert np.bincount(real.test_labels).tolist() == test
    assert real.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert real.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_real_pixel_statistics(real):
    pixels = real.train_images
    assert (pixels.min(), pixels.max()) == (0, 1)
    np.testing.assert_allclose(pixels.mean(dtype=np.float64), 0.13066, atol=5e-6)
    np.testing.assert_allclose(pixels.std(dtype=np.float64), 0.30811, atol=5e-6)


def test_real_files_come_back_byte_for_byte(real):
    published = {  # md5 sums of the unpacked files
        NAMES[0]: "6bbc9ace898e44ae57da46a324031adb",
        NAMES[1]: "a25bea736e30d166cdddb491f175f624",
        NAMES[2]: "2646ac647ad5339dbf082846283269ea",
        NAMES[3]: "27ae3e4e09519cfbb04c329615203637",
    }
    for name, part in zip(NAMES, real, strict=True):
        array = np.rint(part * 255) if part.ndim == 3 else part
        assert hashlib.md5(_idx(array)).hexdigest() == published[name]
