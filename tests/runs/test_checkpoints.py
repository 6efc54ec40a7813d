"""Checkpoints that were damaged, and machines that have no room for one."""

import shutil
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import ldjax.files.whole
from ldjax.files.whole import WriteError
from ldjax.runs.checkpoints import Checkpoints, Progress


def progress_at(step):
    table = {"train": {"step": np.arange(step), "loss": np.full(step, 0.5)}}
    state = {"params": jnp.arange(500.0) + step, "count": (jnp.asarray(step),)}
    return Progress(step, state, table)


LIKE = {"params": jnp.zeros(500), "count": (jnp.zeros((), int),)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    for step in (1, 2):
        Checkpoints(folder).save(progress_at(step))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(whole, tmp_path / "checkpoints")


def _flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "one bit": _flipped,
    "gone": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_a_damaged_one_is_read(folder, caplog, damage):
    """The largest file: the numbers. An empty or flipped one would read as others."""
    path = max(_files(folder / "2" / "state"), key=lambda path: path.stat().st_size)
    _damage(path, DAMAGE[damage])
    found = _restored(folder)
    assert found.step == 1
    np.testing.assert_array_equal(found.state["params"], np.arange(500.0) + 1)
    (said,) = caplog.messages
    assert f"The checkpoint {folder / '2'} is damaged: " in said
    assert str(path.relative_to(folder / "2")) in said
    assert "\n" not in said
    Checkpoints(folder).save(progress_at(2))  # in its place
    assert _restored(folder).step == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("damage", DAMAGE)
def test_no_damaged_file_is_read_as_something_else(whole, tmp_path, damage):
    names = {path.relative_to(whole) for path in _files(whole / "2")}
    for name in names - {Path("2", "sums.json")}:
        folder = shutil.copytree(whole, tmp_path / "copy", dirs_exist_ok=True)
        _damage(folder / name, DAMAGE[damage])
        assert _restored(folder).step == 1, name
        shutil.rmtree(folder)


def test_damage_of_all_is_one_line(folder):
    for step in (1, 2):
        (folder / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 is damaged: [^\n]*No other is left: d"):
        Checkpoints(folder).restore()


def test_one_without_sums_is_read_as_before(folder):
    (folder / "2" / "sums.json").unlink()
    assert _restored(folder).step == 2


def test_another_model_is_not_damage(folder):
    with pytest.raises(ValueError, match=r"step 2 .* is of another model"):
        Checkpoints(folder).restore({"params": jnp.zeros(3)})


def test_no_room_for_one_leaves_the_others(folder, monkeypatch):
    def full(*args, **options):
        (folder / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
        raise ValueError("Failed writing: pages [os_error_code='28'] and pages")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(WriteError, match=r"3 cannot be written: No space left"):
            Checkpoints(folder).save(progress_at(3))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    Checkpoints(folder).save(progress_at(3))
    assert _restored(folder).step == 3


def test_the_sum_is_the_crc_of_each_file(folder):
    sums = ldjax.files.whole.read_json_object(folder / "2" / "sums.json")
    for name, (size, crc) in sums.items():
        data = (folder / "2" / name).read_bytes()
        assert (len(data), zlib.crc32(data)) == (size, crc)
    assert len(sums) > 5


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def _restored(folder):
    found = Checkpoints(folder).restore(LIKE)
    assert found is not None
    return found


def _damage(path, change):
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


def test_a_number_that_is_still_to_be_measured_may_be_missing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    table = {"train": {"step": np.arange(1), "loss": np.ones(1)}}
    checkpoints.save(Progress(1, {"params": np.ones(2)}, table))
    restored = checkpoints.restore({"params": np.zeros(2), "noise": np.float32("nan")})
    assert restored is not None
    assert np.isnan(restored.state["noise"])
    with pytest.raises(ValueError, match="noise is nothing there"):
        checkpoints.restore({"params": np.zeros(2), "noise": np.float32(0)})
