"""The demonstration on a real model as users run it; its smoke downloads nothing."""

import json
from typing import Any

import pytest
from shell.scripts import run_script

from ldjax.data.everyday import everyday_pairs
from ldjax.data.preferences import read_preferences
from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.responses import fill_types
from ldjax.finetune import pipeline
from ldjax.models import load
from ldjax.runs.folder import open_run
from ldjax.studies.real import study
from ldjax.studies.real.tiny import write_tiny


@pytest.mark.slow
def test_smoke_leaves_a_whole_run_whose_identities_hold(tmp_path):
    out = tmp_path / "run"
    result = run_script(
        "real.py", "--smoke", "--out", out, "--cache", tmp_path / "cache"
    )
    assert result.returncode == 0, result.stderr
    assert "SFT on the chosen answers" in result.stdout
    assert "DPO of the base model" not in result.stdout
    assert (out / "report.html").is_file()
    for stage in ("sft", "dpo_after_sft"):
        summary = open_run(out / stage).summary
        assert all(claim["holds"] for claim in summary["identities"])
    assert not (out / "dpo_from_base").exists()
    kinds = {
        json.loads(line)["type"]
        for line in (out / "sft" / "probes.jsonl").read_text().splitlines()
    }
    assert kinds == set(RESPONSE_TYPES)


def test_the_tiny_model_is_read_and_writes_its_own_texts(tmp_path):
    found: Any = load(write_tiny(tmp_path / "deep" / "tiny.gguf", seed=0))
    row: Any = read_preferences(everyday_pairs()[0]).rows[0]
    assert found.tokenizer.decode(found.tokenizer.encode(row.prompt)) == row.prompt
    again = load(write_tiny(tmp_path / "again.gguf", seed=1))
    assert again.config == found.config


def test_everyday_pairs_have_every_type_that_is_no_sample():
    train, test = (read_preferences(file).rows for file in everyday_pairs())
    rows: list[Any] = fill_types(train, seed=0, unseen=test)
    wanted = [name for name in RESPONSE_TYPES if name != "chosen_initial"]
    for row in rows:
        assert list(row.responses) == wanted
        assert row.prompt.startswith("\n\nHuman: ")
        assert row.prompt.endswith("\n\nAssistant:")
        assert all(text.startswith(" ") for text in row.responses.values())
        assert len(set(row.responses.values())) == len(wanted)
    assert len({row.prompt for row in (*train, *test)}) == len(train) + len(test) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sft_epochs": 0.0}, "--sft-epochs must be positive"),
        ({"model": "nowhere.gguf"}, "There is no file nowhere.gguf"),
        ({"model": "no such model"}, "--model must be one of"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, options, message):
    config = study.Config(out=tmp_path / "run", cache=tmp_path / "cache", **options)
    with pytest.raises(SystemExit) as caught:
        study.main(config)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("dpo_after_sft",), "--stages: dpo_after_sft needs sft"),
        ((), "--stages must be of sft, dpo_after_sft, dpo_from_base"),
    ],
)
def test_stages_that_make_no_pipeline_are_refused(tmp_path, stages, message):
    config = pipeline.Config.of(out=tmp_path / "run", stages=stages)
    with pytest.raises(SystemExit, match=message):
        pipeline.main(config)
    assert not (tmp_path / "run").exists()
