"""The ledger of a run: taken again from its folder, closed, stopped, or refused."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import ldjax
from ldjax.data.batches import Example
from ldjax.data.tokenizers import train_word_level
from ldjax.equation.sequences import sides_of
from ldjax.finetune import Config, finetune
from ldjax.finetune.ledger import run as program
from ldjax.finetune.ledger.balance import balance, check_balance
from ldjax.finetune.ledger.choose import choose
from ldjax.finetune.ledger.settings import Places, settings_of
from ldjax.finetune.settings.config import kept
from ldjax.models import Pretrained, Transformer, llama_config, save
from ldjax.origins import Ledger
from ldjax.runs.checkpoints import Checkpoints
from ldjax.runs.folder import create_run, open_run
from ldjax.watch.probes import Probe
from ldjax.watch.record import prompt_of

WORDS = "is the number {} odd"
NUM_STEPS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model and pairs that it is trained on."""
    place = tmp_path_factory.mktemp("made")
    tokenizer = train_word_level([WORDS.format(i) + " yes no maybe" for i in range(9)])
    config = llama_config(
        vocab_size=tokenizer.vocab_size, width=8, num_layers=1, num_heads=2
    )
    model = Transformer(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    save(place / "model", Pretrained(model, params, config, tokenizer))
    rows = [
        {
            "prompt": WORDS.format(i),
            "chosen": ("yes", "no")[i % 2],
            "rejected": "maybe " + ("no", "yes")[i % 2],
        }
        for i in range(8)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "pairs.jsonl").write_text(lines)
    return place


def finetuned(made, out, loss, **options):
    """A tiny run of 12 updates that has been taken."""
    config = Config.of(
        loss=loss,
        out=out,
        model=str(made / "model"),
        data=str(made / "pairs.jsonl"),
        cache=made / "cache",
        batch_size=4,
        epochs=NUM_STEPS / 2,
        probe_prompts=3,
        tracked=2,
        token_maps=0,
        evaluations=1,
        one_step=False,
        checkpoint_every=5,
        **options,
    )
    return finetune(config).run


@pytest.fixture(scope="module")
def runs(made):
    """By SFT and by DPO, with everything that an optimizer may do."""
    return {
        "sft": finetuned(made, made / "sft", "sft"),
        "dpo": finetuned(
            *(made, made / "dpo", "dpo"),
            optimizer="adamw",
            learning_rate=1e-3,
            warmup_steps=3,
            clip=0.1,
        ),
    }


@pytest.fixture
def run(runs, tmp_path):
    """One of them, elsewhere, without the ledger that another test made of it."""
    other = shutil.ignore_patterns("ledger")
    shutil.copytree(runs["dpo"].path, tmp_path / "moved", ignore=other)
    return open_run(tmp_path / "moved")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_the_balance_of_a_run_closes(runs, loss):
    run = runs[loss]
    ledger = ldjax.ledger(run.path)
    assert all(claim.holds for claim in check_balance(ledger))
    tracked = run.metrics().filter(pl.col("probe").str.starts_with("tracked/"))
    assert len(ledger.about["probes"]) == len(tracked.select("probe", "type").unique())
    # What the run itself measured, update by update.
    measured = tracked.filter(quantity="measured").group_by("probe", "type")
    rows = measured.agg(pl.col("value").sum()).rows()
    whole = {(prompt_of(name), type_): value for name, type_, value in rows}
    for of in ledger.about["probes"]:
        there = whole[prompt_of(of["probe"]), of["type"]]
        assert of["measured"] == pytest.approx(there, abs=of["floor"])
    sums = ledger.by("probe", "type")["value"].to_list()
    np.testing.assert_allclose(
        sums, [of["measured"] for of in ledger.about["probes"]], rtol=0, atol=1e-12
    )
    sides = {"sft": {"update"}, "dpo": {"chosen", "rejected"}}[loss]
    assert set(ledger.table["side"].drop_nulls()) == sides
    assert set(ledger.table["step"]) == set(range(NUM_STEPS))
    lines = (run.path / "ledger" / "examples.jsonl").read_text().splitlines()
    said = {line["example"]: line for line in map(json.loads, lines)}
    assert said.keys() == set(ledger.table["example"].drop_nulls())
    assert all(set(line["sides"]) == sides for line in said.values())
    assert said["train/0003"]["prompt"] == WORDS.format(3)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_the_names_of_a_batch_are_those_of_its_rows(runs, loss):
    replay = program.rebuild(runs[loss], Places(), None)
    tokenizer = ldjax.models.load(runs[loss].path).tokenizer
    assert tokenizer is not None
    names_of = replay.trajectory.names_of
    assert names_of is not None
    for step in range(NUM_STEPS):
        batch = sides_of(replay.trajectory.batch_fn(step))
        names = names_of(step)
        for side, rows in batch.items():
            for name, targets, mask in zip(names, rows.targets, rows.mask, strict=True):
                said = replay.examples[name]["sides"][side]
                ids = np.asarray(targets)[np.asarray(mask)].tolist()
                assert tokenizer.decode(ids).strip().startswith(said)


@pytest.mark.slow
def test_a_ledger_that_is_stopped_anywhere_ends_with_the_same_bytes(run, monkeypatch):
    def stopped_after(count):
        """A ledger whose process ends at so many of its step's calls."""
        calls = iter(range(count))

        def stop(step_fn):
            def stopping(*args):
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return step_fn(*args)

            return stopping

        rebuild = program.rebuild

        def rebuilt(*args):
            replay = rebuild(*args)
            trajectory = replay.trajectory
            return replay._replace(
                trajectory=trajectory._replace(step_fn=stop(trajectory.step_fn))
            )

        with monkeypatch.context() as patch:
            patch.setattr(program, "rebuild", rebuilt)
            with pytest.raises(KeyboardInterrupt):
                ldjax.ledger(run.path, ["chosen", "train:rejected"])

    ldjax.ledger(run.path, ["chosen", "train:rejected"])
    whole = files_of(run.path / "ledger")
    shutil.rmtree(run.path / "ledger")
    stopped_after(10)  # going back
    assert not (run.path / "ledger" / "ledger.parquet").exists()
    ldjax.ledger(run.path, ["chosen", "train:rejected"])
    assert files_of(run.path / "ledger") == whole


@pytest.mark.slow
def test_a_complete_ledger_is_told_and_another_is_asked_for(runs, capsys):
    folder = runs["sft"].path
    ldjax.ledger(folder)
    before = files_of(folder / "ledger")
    with pytest.raises(SystemExit, match=r"nodes was 3, now 1\. .*--overwrite"):
        program.main(program.parse([str(folder), "--nodes", "1"]))
    shutil.move(folder / "checkpoints", folder / "away")  # nothing is computed
    try:
        assert program.main(program.parse([str(folder)])) == 0
    finally:
        shutil.move(folder / "away", folder / "checkpoints")
    told = capsys.readouterr().out
    assert "own pair" in told
    assert "holds: the balance closes" in told
    assert files_of(folder / "ledger") == before


def damaged(run):
    newest = run.path / "checkpoints" / str(NUM_STEPS)
    file = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def without_checkpoint(run):
    shutil.rmtree(run.path / "checkpoints" / str(NUM_STEPS))


def without_checkpoints(run):
    shutil.rmtree(run.path / "checkpoints")


def changed_config(run, **settings):
    content = run.config
    content["settings"] |= settings
    (run.path / "config.json").write_text(json.dumps(content))


def with_other_rows(run):
    path = run.path.parent / "other.jsonl"
    rows = Path(run.config["settings"]["data"]).read_text()
    path.write_text(rows.replace("maybe", "no"))
    changed_config(run, data=str(path))


def from_other_model(run):
    run_model = run.config["settings"]["base_model"]
    found = ldjax.models.load(run_model)
    there = run.path.parent / "other"
    save(there, found._replace(params=jax.tree.map(lambda p: 2 * p, found.params)))
    changed_config(run, base_model=str(there))


def missed(run):
    """A checkpoint that is whole, of another run."""
    checkpoints = Checkpoints(run.path / "checkpoints")
    there = checkpoints.read(NUM_STEPS)
    leaf = there.state["params"]["final_norm"]["scale"]
    there.state["params"]["final_norm"]["scale"] = leaf.at[0].multiply(1 + 1e-6)
    checkpoints.save(there)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words", "parts"),
    [
        (damaged, [], ["checkpoints/12 is damaged"]),
        (
            without_checkpoint,
            [],
            ["10 of its 12 updates", "`resume=True`", "--updates 10"],
        ),
        (without_checkpoints, [], ["0 of its 12 updates", "`resume=True`"]),
        (with_other_rows, [], ["other.jsonl has changed", "--data"]),
        (from_other_model, [], ["other parameters", "--model"]),
        (missed, [], ["step 12", "params/final_norm/scale"]),
        (None, ["--probes", "train/9"], ["'train/9'", "tracked", "train/000"]),
        (None, ["--updates", "40"], ["--updates must be at most 12"]),
        (None, ["--nodes", "0"], ["--nodes must be at least 1"]),
    ],
)
def test_what_cannot_be_accounted_for_is_one_clear_line(run, change, words, parts):
    if change is not None:
        change(run)
    config = program.parse([str(run.path), *words])
    with pytest.raises(SystemExit, match=r"^ledger: [^\n]*$") as error:
        program.main(config)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"recorder": {"every": 1}}, ["loop of your own", "training="]),
        ({"num_steps": 3, "lr": 0.1}, ["no run of `ldjax finetune`"]),
    ],
)
def test_another_folder_is_refused(tmp_path, settings, parts):
    create_run(tmp_path / "run", settings).release()
    with pytest.raises(ValueError, match="run") as error:
        ldjax.ledger(tmp_path / "run")
    assert all(part in str(error.value) for part in parts)


def test_a_folder_of_several_runs_names_them(tmp_path):
    create_run(tmp_path / "all", {"seed": 0}).release()
    for name in ("sft", "dpo"):
        (tmp_path / "all" / name).mkdir()
        (tmp_path / "all" / name / "probes.jsonl").write_text("")
    with pytest.raises(ValueError, match="name one: dpo, sft"):
        ldjax.ledger(tmp_path / "all")


def begun(folder, config, **more):
    """A run folder as `finetune` begins it, with made-up settings besides."""
    settings = kept(config.resolved()) | {"base_model": config.resolved().model.model}
    settings |= {"model": {}, "num_steps": 8, "fingerprints": {}} | more
    return create_run(folder, settings)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "dpo", "coefficients": {"beta": 0.2}, "clip": float("inf")},
        {"recipe": "paper", "lora_rank": 4, "lora_targets": ("qkv",), "max_rows": 7},
        {"target": ("chosen", "rejected"), "learning_rate": 1e-3, "smoke": True},
        {"nodes": 2, "history": "dated"},
    ],
)
def test_the_settings_of_a_run_are_found_again(tmp_path, options):
    settled = {"nodes": 0, "history": "whole"} | options
    config = Config.of(out=tmp_path / "run", cache=tmp_path / "cache", **settled)
    run = begun(tmp_path / "run", config)
    assert settings_of(run, Places()) == config.resolved()


def test_what_was_moved_is_found_beside_the_run_or_where_it_is_said_to_be(tmp_path):
    config = Config.of(loss="dpo", init=tmp_path / "all" / "sft", data="pairs.jsonl")
    (tmp_path / "all" / "sft").mkdir(parents=True)
    begun(tmp_path / "all" / "dpo", config).release()
    shutil.move(tmp_path / "all", tmp_path / "moved")
    run = open_run(tmp_path / "moved" / "dpo")
    with pytest.raises(FileNotFoundError, match=r"--data pairs\.jsonl.*where it is"):
        settings_of(run, Places())
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    found = settings_of(run, Places(data=str(rows)))
    assert found.init == tmp_path / "moved" / "sft"
    assert (found.texts.data, found.out) == (str(rows), run.path)


def test_a_run_of_another_machine_is_not_taken_again(tmp_path):
    run = begun(tmp_path / "run", Config.of(), program={"devices": 8, "probes": 2})
    with pytest.raises(ValueError, match="devices was 8 and is 1"):
        ldjax.ledger(run.path)


PROBES = [
    Probe(name, kind, Example((1,), (2,)))
    for name in ("train/0000", "train/0001", "test/0000")
    for kind in ("chosen", "rejected")
]


@pytest.mark.parametrize(
    ("words", "places"),
    [
        (["tracked"], [2, 3]),
        (["train"], [0, 1, 2, 3]),
        (["chosen"], [2]),
        (["test:rejected", "chosen"], [5, 2]),
        (["train/0000"], [0, 1]),
        (["train/0000:chosen", "train"], [0, 1, 2, 3]),
    ],
)
def test_words_name_responses(words, places):
    chosen = choose(words, PROBES, {"train/0001"})
    assert chosen == [PROBES[place] for place in places]


@pytest.mark.parametrize("word", ["train/7", "happy", "test:happy", ""])
def test_a_word_that_names_none_is_told(word):
    with pytest.raises(ValueError, match=re.escape(repr(word))):
        choose([word], PROBES, {"train/0001"})


def made_ledger(**rests):
    rows = [
        ("train/0", "chosen", 0, "gradient", "train/0", "chosen", 0.5),
        ("train/0", "chosen", 0, "gradient", "train/1", "rejected", -0.2),
        ("train/0", "chosen", 1, "gradient", "train/1", "chosen", 0.3),
        *(
            ("train/0", "chosen", 0, origin, None, None, rests.get(origin, 0.0))
            for origin in ("rounding", "quadrature")
        ),
    ]
    columns = ("probe", "type", "step", "origin", "example", "side", "value")
    probe = {"probe": "train/0", "type": "chosen", "floor": 1e-3}
    table = pl.DataFrame(rows, schema=columns, orient="row")
    # A thousandth of what is divided is lost of sums over so many parameters.
    about = {"probes": [probe], "num_parameters": round((1e-3 * 2**24) ** 2)}
    return Ledger(table, about, None, None)


def test_a_balance_is_told_by_pair_and_by_side():
    lines = balance(made_ledger(quadrature=1e-2))
    heads, pairs, _, _, sides, by_side = lines[2:]
    told = "type n own pair other pairs quadrature = measured"
    assert heads.split() == told.split()
    assert [float(word) for word in pairs.split()[2:]] == [0.5, 0.1, 0.01, 0.61]
    told = "type n own chosen others chosen others rejected"
    assert sides.split() == told.split()
    assert [float(word) for word in by_side.split()[2:]] == [0.5, 0.3, -0.2]


@pytest.mark.parametrize(
    ("rests", "holds"),
    [
        ({"quadrature": 9e-4, "rounding": -1.9e-3}, [True, True]),
        ({"quadrature": -2e-3}, [False, True]),
        ({"rounding": 2.1e-3}, [True, False]),
    ],
)
def test_a_balance_that_does_not_close_is_seen(rests, holds):
    claims = check_balance(made_ledger(**rests))
    assert [claim.holds for claim in claims] == holds
    assert ("more nodes" in claims[0].text) == (not holds[0])
