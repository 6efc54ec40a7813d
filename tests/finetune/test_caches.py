"""What is kept between runs may be damaged, like everything else."""

import pytest

from ldjax.finetune import start
from ldjax.finetune.settings.records import Texts
from ldjax.runs.checkpoints import Checkpoints
from ldjax.runs.folder import create_run
from ldjax.runs.sinks import make_sink


@pytest.mark.parametrize("damaged", ["config.json", "checkpoints", None])
def test_a_damaged_base_model_is_pretrained_again(
    tmp_path, monkeypatch, capsys, caplog, damaged
):
    """From its checkpoint where that is whole, else from the start."""
    made = []

    def pretrained(settings):
        made.append(settings.out)
        assert (settings.out / "config.json").is_file() == (damaged is None)

    def load(folder):
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        raise ValueError(f"{folder} is damaged.")

    monkeypatch.setattr(start, "load", load)
    monkeypatch.setattr(start.pretraining, "pretrain", pretrained)

    def cached_base():
        return start.cached_base("toy", Texts(), seed=0, cache=tmp_path, smoke=True)

    with monkeypatch.context() as patch:
        patch.setattr(start.pretraining, "pretrain", lambda settings: None)
        folder = cached_base()
    create_run(folder, {}).release()
    if damaged == "config.json":
        (folder / damaged).write_bytes(b"{")
    elif damaged == "checkpoints":
        (folder / "checkpoints" / "7" / "state").mkdir(parents=True)
    assert cached_base() == folder
    assert made == [folder]
    assert "is damaged. It is pretrained" in caplog.text
    assert not capsys.readouterr().out
    assert Checkpoints(folder / "checkpoints").newest_step() is None


def test_damaged_files_of_a_sink_are_named(tmp_path):
    pytest.importorskip("tensorboardX")
    run = create_run(tmp_path / "run", {})
    sink = make_sink("tensorboard", run)
    sink.close()
    (file,) = (run.path / "tensorboard").iterdir()
    file.write_bytes(b"\x05" + bytes(11) + b"\xff" * 40)
    with pytest.raises(ValueError, match=r"`log=tensorboard`: .* is damaged \([^\n]*$"):
        make_sink("tensorboard", run)
