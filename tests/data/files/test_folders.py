"""Which files of a folder are read."""

import json

import polars as pl
import pytest
from witnesses.parity import library

from ldjax.data.files.folders import HELD_OUT, find_files
from ldjax.data.files.reading import open_data

PARTS = [f"data/train-0000{n}-of-00002.parquet" for n in (0, 1)]


def folder_of(tmp_path, *names):
    """Files of one row each, which says where it is."""
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": name, "completion": "b"}
        if name.endswith(".parquet"):
            pl.DataFrame([row]).write_parquet(path)
        elif name.endswith(".arrow"):
            pl.DataFrame([row]).write_ipc_stream(path)
        else:
            path.write_text(json.dumps(row))
    return tmp_path


def saved(folder, *files):
    """As `datasets` saves a `Dataset`."""
    folder_of(folder, *files)
    about = {"_data_files": [{"filename": name} for name in files]}
    (folder / "state.json").write_text(json.dumps(about))
    (folder / "dataset_info.json").write_text("{}")


FOLDERS = {
    "parts of the hub": (
        [*PARTS, "data/test-00000-of-00001.parquet", "README.md", ".gitattributes"],
        PARTS,
        "split train of train, test, 2 files",
    ),
    "a file for each split": (
        ["test.jsonl", "train.jsonl"],
        ["train.jsonl"],
        "split train of train, test",
    ),
    "a folder for each split": (
        ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
        ["train/0000.parquet", "train/0001.parquet"],
        "split train of train, test, 2 files",
    ),
    "numbered files": (["part-1.csv", "part-2.csv"], None, "2 files"),
    "one file": (["pairs.json"], ["pairs.json"], ""),
    "one of another name": (
        ["all-00000-of-00001-0a1b2c.parquet"],
        ["all-00000-of-00001-0a1b2c.parquet"],
        "",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_files_of_the_training_split_are_taken_in_order(tmp_path, kind):
    names, wanted, said = FOLDERS[kind]
    found = find_files(folder_of(tmp_path, *names))
    taken = [str(file.relative_to(tmp_path)) for file in found.files]
    assert taken == (wanted or names)
    assert found.said == said


def test_a_dataset_that_was_saved_is_read(tmp_path):
    saved(tmp_path / "one", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    found = open_data(tmp_path / "one")
    assert [row.content["prompt"][:10] for row in found.records] == [
        "data-00000",
        "data-00001",
    ]
    for split in ("train", "test"):
        saved(tmp_path / "both" / split, "data-00000-of-00001.arrow")
    (tmp_path / "both" / "dataset_dict.json").write_text(
        '{"splits": ["train", "test"]}'
    )
    found = open_data(tmp_path / "both")
    assert found.which == "split train of train, test"
    assert "both/train/" in next(iter(found.records)).source
    assert "(split train of train, test): 1 rows, prompt-completion" in str(found)
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data-00001"):
        find_files(tmp_path / "one")
    (tmp_path / "both" / "train" / "state.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"it lacks state\.json"):
        find_files(tmp_path / "both")


def test_a_split_is_what_is_asked_for(tmp_path):
    folder = folder_of(tmp_path, "train.jsonl", "validation.jsonl", "test.jsonl")
    assert find_files(folder, split="validation").files[0].name == "validation.jsonl"
    assert find_files(folder, prefer=HELD_OUT).files[0].name == "test.jsonl"
    with pytest.raises(ValueError, match="train, test, validation, and no split 'dev'"):
        find_files(folder, split="dev")
    with pytest.raises(ValueError, match="is one file, which has no split 'train'"):
        find_files(folder / "train.jsonl", split="train")


BAD_FOLDERS = {
    "several splits": (
        ["train_sft-00000-of-00001.parquet", "train_prefs-00000-of-00001.parquet"],
        ValueError,
        "has the splits train_prefs, train_sft, and none called train.*`split`",
    ),
    "several datasets": (
        ["harmless/train.jsonl", "harmless/test.jsonl", "helpful/train.jsonl"],
        ValueError,
        "holds several datasets: harmless, helpful. Give the folder of one",
    ),
    "several formats": (
        ["train.jsonl", "train.csv"],
        ValueError,
        r"holds train in several formats: \.csv, \.jsonl",
    ),
    "a part lacks": (
        ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
        FileNotFoundError,
        "lacks part 1 of the 3 of train",
    ),
    "nothing": (["README.md"], FileNotFoundError, r"no file of rows: none.*\.parquet"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_folder_that_says_not_what_to_read_is_refused(tmp_path, kind):
    names, error, message = BAD_FOLDERS[kind]
    with pytest.raises(error, match=message):
        find_files(folder_of(tmp_path, *names))


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere"):
        find_files(tmp_path / "nowhere")


@pytest.mark.exhaustive
def test_what_datasets_saves_is_read(tmp_path):
    datasets = library("datasets")
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": said}, {"messages": [said[0], *said]}]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "both")
    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "train.parquet")
    table.to_json(tmp_path / "a.jsonl")
    for name in ("one", "both", "files", "a.jsonl"):
        found = open_data(tmp_path / name)
        assert [row.content for row in found.records] == rows
