"""Checkpoints that TRL made: compared, and their next update taken as it took it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from witnesses import trainers
from witnesses.parity import library

import ldjax
from ldjax.compare import next as program
from ldjax.compare import run as comparison
from ldjax.compare.difference import checks
from ldjax.compare.settings import Config, NextConfig, Training, Watch
from ldjax.compare.trainer import read_moments
from ldjax.compare.update import take
from ldjax.equation.subset import leaf_paths
from ldjax.finetune.settings.records import Tokens
from ldjax.models import gpt2_config, load
from ldjax.models.hub.tensors import leaf_names
from ldjax.runs.folder import open_run


@pytest.fixture(autouse=True, scope="module")
def _trl():
    library("trl")


#: As TRL reads texts.
RAW = Tokens(document_start=False, leading_space="raw")


@pytest.fixture(scope="module")
def dpo(tmp_path_factory):
    place = tmp_path_factory.mktemp("dpo")
    trainers.write_start(place, gpt2_config)
    trainers.train(place, "dpo", dtype="float64")
    return place


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    place = tmp_path_factory.mktemp("lora")
    trainers.write_start(place)
    trainers.train(place, "sft", lora=True)
    return place


def asked(place, step, loss, **training):
    return NextConfig(
        str(place / f"trained/checkpoint-{step}"),
        place / "rows.jsonl",
        out=place / f"next-{loss}-{step}",
        training=Training(loss=loss, clip=trainers.CLIP, **training),
        tokens=RAW,
        overwrite=True,
    )


@pytest.mark.slow
def test_the_next_update_is_the_one_that_trl_took(dpo):
    """In float64, parameter by parameter; matrices are square, three of them one."""
    config = asked(dpo, 2, "dpo", reference=str(dpo / "start"))
    before, after = (
        load(dpo / f"trained/checkpoint-{step}", param_dtype="float64")
        for step in (2, 3)
    )
    moments = read_moments(dpo / "trained/checkpoint-2", before.config, before.params)
    assert moments.num_steps == 2
    assert moments.learning_rate == pytest.approx(trainers.RATE / 2)
    texts = program.texts_of(config, before)
    rows = program.rows_of(config, before, texts)
    update = take(
        before.model,
        before.params,
        moments,
        jax.tree.map(jnp.asarray, rows),
        texts.probes,
        loss_fn=program.loss_of(config.training),
        clip=trainers.CLIP,
        learning_rate=moments.learning_rate,
        nodes=2,
    )
    for path, start, found, wanted in zip(
        leaf_paths(before.params),
        *map(jax.tree.leaves, (before.params, update.params, after.params)),
        strict=True,
    ):
        # To no logit a bias of keys makes a difference.
        if path[-2:] != ("key", "bias"):
            assert np.abs(wanted - start).max() > 1e-2 * trainers.RATE, path
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * trainers.RATE)


@pytest.mark.slow
def test_next_is_a_command_with_an_account(dpo, capsys):
    assert program.main(asked(dpo, 2, "dpo", reference=str(dpo / "start"))) == 0
    said = capsys.readouterr().out
    assert "holds: the account closes" in said
    assert "update 3 of" in said
    run = open_run(dpo / "next-dpo-2")
    rows = run.metrics().filter(pl.col("probe").str.starts_with("tracked/"))
    of = {
        name: values["value"].to_numpy()
        for (name,), values in rows.group_by("quantity", maintain_order=True)
    }
    parts = {name: values for name, values in of.items() if name.startswith("part:")}
    assert parts.keys() >= {
        *("part:chosen", "part:rejected", "part:history", "part:weight_decay"),
    }
    measured, floor = of["measured"], of["floor"]
    assert (abs(sum(parts.values()) - measured) <= 0.01 * abs(measured) + floor).all()
    table = pl.read_parquet(run.path / "difference.parquet")
    sums = table.group_by("probe", "type", maintain_order=True).agg(
        pl.col("value").sum()
    )
    left = abs(sums["value"].to_numpy() - measured)
    assert (left <= 0.01 * abs(measured) + floor).all()
    # Either use of the tied embedding is told apart.
    assert gpt2_config(vocab_size=9).tied_head
    for kind in ("embedding", "head"):
        assert abs(table.filter(kind=kind)["value"].to_numpy()).min() > 0


@pytest.mark.slow
def test_adapters_of_peft(lora):
    """Their next update in float32, and what they changed since the base model."""
    found, update = program.next_update(asked(lora, 2, "sft"))
    before, after = (load(lora / f"trained/checkpoint-{step}") for step in (2, 3))
    names = [name for name in leaf_names(before.params) if "lora" in name]
    assert len(names) == 2 * 3 * 2
    leaves = [leaf_names(of.params) for of in (before, after)]
    new = leaf_names(update.params)
    for name in names:
        start, wanted = (np.asarray(of[name]) for of in leaves)
        moved = np.linalg.norm(wanted - start)
        assert moved > 1e-2 * trainers.RATE
        assert np.linalg.norm(new[name] - wanted) < 1e-3 * moved
    assert found.measured.any()
    whole = ldjax.diff(
        lora / "start",
        lora / "trained/checkpoint-4",
        lora / "rows.jsonl",
        tokens=RAW,
        out=lora / "diff",
    )
    kinds = {
        place.kind
        for place, of in zip(whole.places.places, whole.shares.T, strict=True)
        if of.any()
    }
    assert kinds == {"query adapter", "out adapter", "up adapter"}
    assert all(claim.holds for claim in checks(whole, 0.01))


@pytest.mark.slow
def test_two_folders_are_compared_end_to_end(dpo, capsys):
    config = Config(
        str(dpo / "start"),
        str(dpo / "trained/checkpoint-4"),
        out=dpo / "diff",
        watch=Watch(probes=dpo / "rows.jsonl", by_layer=1),
        tokens=RAW,
    )
    assert comparison.main(config) == 0
    said = capsys.readouterr().out
    assert "holds: the account closes" in said
    assert "by kind" in said
    run = open_run(dpo / "diff")
    table = pl.read_parquet(run.path / "difference.parquet")
    metrics = run.metrics()
    sums = table.group_by("probe", "type", maintain_order=True).agg(
        pl.col("value").sum()
    )
    of = lambda name: metrics.filter(pl.col("quantity") == name)["value"].to_numpy()
    measured, floor = of("measured"), of("floor")
    left = np.linalg.norm(sums["value"].to_numpy() - measured)
    assert left <= max(0.01 * np.linalg.norm(measured), np.linalg.norm(floor))
    ends = of("log_prob").reshape(2, -1)
    np.testing.assert_allclose(ends[1] - ends[0], measured, atol=1e-9)


@pytest.fixture
def copy(dpo, tmp_path):
    """A checkpoint to damage: changes what `optimizer.pt` holds."""
    folder = shutil.copytree(dpo / "trained/checkpoint-2", tmp_path / "checkpoint-2")
    import torch

    def change(how):
        content = torch.load(folder / "optimizer.pt", weights_only=True)
        how(content)
        torch.save(content, folder / "optimizer.pt")

    return folder, change


def read(folder):
    found = load(folder, shapes_only=True)
    return read_moments(folder, found.config, found.params)


def swap_groups(content):
    content["param_groups"].reverse()


def swap_shapes(content):
    """The embedding of tokens with that of positions."""
    state = content["state"]
    state[0], state[1] = state[1], state[0]


def lose_entry(content):
    del content["state"][3]


def add_entry(content):
    content["state"][99] = content["state"][0]


def freeze(content):
    content["param_groups"][0]["params"].pop()


def other_step(content):
    content["state"][1]["step"] += 1


def all_other_steps(content):
    for of in content["state"].values():
        of["step"] += 1


def eight_bits(content):
    for of in content["state"].values():
        of["state1"] = of.pop("exp_avg")


def amsgrad(content):
    for group in content["param_groups"]:
        group["amsgrad"] = True


def plain_adam(content):
    for group in content["param_groups"]:
        group["decoupled_weight_decay"] = False


def decay_everywhere(content):
    content["param_groups"][1]["weight_decay"] = 0.1


def other_rate(content):
    content["param_groups"][1]["lr"] = 0.5


TRAPS = [
    (swap_groups, "has groups of 18 and 10 parameters; a Trainer of this model has 10"),
    (swap_shapes, "entry 0 should be of transformer.wte.weight"),
    (lose_entry, "has no entry 3, for transformer.h.0.attn.c_proj.weight"),
    (add_entry, "has an entry 99 that is of no parameter"),
    (freeze, "Were some frozen"),
    (other_step, "counts 2, 3 updates, trainer_state.json 2"),
    (all_other_steps, "counts 3 updates, trainer_state.json 2"),
    (eight_bits, "is of 8-bit Adam"),
    (amsgrad, "`amsgrad` is on"),
    (plain_adam, "is of Adam with L2"),
    (decay_everywhere, "the second group has weight decay"),
    (other_rate, "have several learning rates, 0.0015, 0.5"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"), TRAPS, ids=lambda x: getattr(x, "__name__", "")
)
def test_an_optimizer_that_is_not_of_this_model_is_refused(copy, how, said):
    folder, change = copy
    change(how)
    with pytest.raises(ValueError, match=said):
        read(folder)


@pytest.mark.slow
def test_an_optimizer_in_pieces_or_none_is_refused(copy):
    folder, _ = copy
    (folder / "zero_to_fp32.py").touch()
    with pytest.raises(ValueError, match="in pieces, as DeepSpeed writes it"):
        read(folder)
    (folder / "zero_to_fp32.py").unlink()
    (folder / "optimizer.pt").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read(folder)
    (folder / "optimizer.pt").unlink()
    with pytest.raises(FileNotFoundError, match="saved without its optimizer"):
        read(folder)
    (folder / "trainer_state.json").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint of a Hugging Face"):
        read(folder)


@pytest.mark.slow
def test_what_no_file_says_has_to_be_said(dpo):
    with pytest.raises(ValueError, match="say `reference`"):
        program.next_update(asked(dpo, 2, "dpo"))
    last = asked(dpo, trainers.STEPS, "dpo", reference=str(dpo / "start"))
    with pytest.raises(ValueError, match="schedule of this checkpoint is over"):
        program.next_update(last)
