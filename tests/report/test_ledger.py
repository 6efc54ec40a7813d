"""What a page keeps of a ledger: sums of all of it, and the largest shares."""

import numpy as np
import polars as pl
import pytest
from zoo.ledgers import write_ledger, write_token_ledger

from ldjax.data.tokenizers import train_bpe
from ldjax.report.damage import Damage
from ldjax.report.ledger import content, ledger_content
from ldjax.report.packing import unpacked
from ldjax.runs.folder import create_run

PAIRS = {
    f"train/{i:04d}": {
        "prompt": f"why {i}?",
        "sides": {"chosen": f"so {i} it is", "rejected": f"no {i}"},
    }
    for i in range(40)
}
SINGLES = {
    name: {"prompt": of["prompt"], "sides": {"update": of["sides"]["chosen"]}}
    for name, of in PAIRS.items()
}
MEASURED = {
    ("train/0003", "chosen"): -27.0,
    ("train/0003", "rejected"): -41.5,
    ("train/0008", "chosen"): 12.25,
    ("test/0001", "chosen"): 0.5,
}
STEPS = 30


def make(path, examples=PAIRS, **options):
    run = create_run(path, {"model": {"vocab_size": 300}})
    options = {"num_steps": STEPS, "batch_size": 12, **options}
    return run, write_ledger(run, MEASURED, examples, **options)


def packed_ledger(run):
    damage = Damage()
    packed = ledger_content(run, damage)
    assert damage.notes == []
    assert packed is not None
    return packed


def shares_of(found, group, examples):
    """The names of a group's shares, and what their sides gave."""
    start, end = unpacked(found["starts"])[group : group + 2]
    numbers = unpacked(found["examples"])[start:end]
    return [examples[i]["name"] for i in numbers], unpacked(found["sides"])[start:end]


def ranked(rows, count):
    """The examples that gave most and least, and how much, by brute force."""
    sums = rows.filter(origin="gradient").group_by("example").agg(pl.col("value").sum())
    order = sorted(sums.rows(), key=lambda of: -of[1])
    lifted = [of for of in order if of[1] > 0][:count]
    lowered = [of for of in order if of[1] < 0][-count:]
    return lifted + lowered


@pytest.mark.parametrize("examples", [PAIRS, SINGLES], ids=["pairs", "singles"])
def test_the_balance_is_the_measured_change(tmp_path, examples):
    run, table = make(tmp_path / "run", examples)
    packed = packed_ledger(run)
    for (probe, type_), of, sums in zip(
        MEASURED, packed["responses"], packed["balance"], strict=True
    ):
        assert sum(sums) == pytest.approx(of["measured"], rel=1e-12)
        rows = table.filter(probe=probe, type=type_)
        for (whose, side), value in zip(packed["parts"], sums, strict=True):
            is_own = (pl.col("example") == probe) == (whose == "own")
            part = (
                rows.filter(origin=whose)
                if side is None
                else rows.filter(is_own, origin="gradient", side=side)
            )
            assert value == pytest.approx(part["value"].sum(), rel=1e-12, abs=1e-15)
    sides = packed["sides"]
    assert packed["parts"][: len(sides)] == [("own", side) for side in sides]
    assert packed["whose"][:4] == ["own", "others", "weight_decay", "before"]


def test_those_that_moved_it_most_come_in_their_order(tmp_path):
    run, table = make(tmp_path / "run")
    packed = packed_ledger(run)
    for response, (probe, type_) in enumerate(MEASURED):
        rows = table.filter(probe=probe, type=type_)
        names, sides = shares_of(packed["of_run"], response, packed["examples"])
        expected = ranked(rows, content.TOP)
        assert names == [name for name, _ in expected]
        np.testing.assert_allclose(
            sides.sum(1), [value for _, value in expected], rtol=1e-5
        )
        for name, of in zip(names, sides, strict=True):
            for side, value in zip(packed["sides"], of, strict=True):
                exact = rows.filter(example=name, side=side)["value"].sum()
                assert value == pytest.approx(exact, rel=1e-6)
        sums = rows.filter(origin="gradient").group_by("example").agg(pl.sum("value"))
        for name, sign in (("lifted", 1), ("lowered", -1)):
            of = sums.filter(pl.col("value") * sign > 0)["value"]
            assert packed[name]["counts"][response] == len(of)
            assert packed[name]["sums"][response] == pytest.approx(of.sum())


@pytest.mark.parametrize("width", [1, 4])
def test_windows_have_their_own(tmp_path, monkeypatch, width):
    run, table = make(tmp_path / "run")
    whole = packed_ledger(run)
    numbers = 2 + 2 * content.TOP_OF_WINDOW * (1 + len(whole["sides"]))
    most = -(-STEPS // width) * numbers * len(MEASURED)
    monkeypatch.setattr(content, "MOST_NUMBERS", most)
    packed = packed_ledger(run)
    assert packed["width"] == width
    count = -(-STEPS // width)
    dated = unpacked(packed["dated"]).reshape(len(MEASURED), count, 2)
    for response, (probe, type_) in enumerate(MEASURED):
        rows = table.filter(probe=probe, type=type_)
        for window in range(count):
            group = response * count + window
            of = rows.filter(pl.col("step") // width == window)
            names, sides = shares_of(packed["of_windows"], group, packed["examples"])
            expected = ranked(of, content.TOP_OF_WINDOW)
            assert names == [name for name, _ in expected]
            np.testing.assert_allclose(
                sides.sum(1), [value for _, value in expected], rtol=1e-4, atol=1e-6
            )
            examples = of["example"].drop_nulls().n_unique()
            assert unpacked(packed["of_windows"]["counts"])[group] == examples
            own = float(of.filter(example=probe)["value"].sum())
            whole = float(of.filter(origin="gradient")["value"].sum())
            np.testing.assert_allclose(
                dated[response, window], [own, whole - own], rtol=1e-5, atol=1e-6
            )


def test_it_is_told_when_a_share_was_earned(tmp_path):
    run, table = make(tmp_path / "run")
    packed = packed_ledger(run)
    times = packed["of_run"]["when"]
    starts, windows, values = (
        unpacked(times[name]) for name in ("starts", "windows", "values")
    )
    names, _ = shares_of(packed["of_run"], 0, packed["examples"])
    (probe, type_), *_ = MEASURED
    for share, name in enumerate(names):
        rows = table.filter(probe=probe, type=type_, example=name)
        sums = rows.group_by("step").agg(pl.col("value").sum()).sort("step")
        place = slice(starts[share], starts[share + 1])
        assert windows[place].tolist() == sums["step"].to_list()
        np.testing.assert_allclose(values[place], sums["value"], rtol=1e-5)


def test_texts_are_those_of_the_examples_as_far_as_there_is_room(tmp_path, monkeypatch):
    run, _ = make(tmp_path / "run")
    for of in (packed := packed_ledger(run))["examples"]:
        assert of == {"name": of["name"]} | PAIRS[of["name"]]
    largest = np.abs(unpacked(packed["of_run"]["sides"]).sum(1)).argmax()
    assert unpacked(packed["of_run"]["examples"])[largest] == 0
    monkeypatch.setattr(content, "MOST_CHARACTERS", 30)
    cut = packed_ledger(run)["examples"]
    assert [len(of) for of in cut] == [3, 3, *[1] * (len(cut) - 2)]
    (run.path / "ledger" / "examples.jsonl").unlink()
    assert all(list(of) == ["name"] for of in packed_ledger(run)["examples"])


def test_an_example_of_several_targets_is_its_prompts_own(tmp_path):
    examples = {f"{name}:chosen": of for name, of in SINGLES.items()}
    run, table = make(tmp_path / "run", examples)
    packed = packed_ledger(run)
    assert packed["parts"][0] == ("own", "update")
    own = table.filter(probe="train/0003", type="chosen", example="train/0003:chosen")
    assert packed["balance"][0][0] == pytest.approx(own["value"].sum())


def test_layers_add_up_to_the_change(tmp_path):
    run, _ = make(tmp_path / "run")
    layers = packed_ledger(run)["layers"]
    assert layers["names"] == ["embed", "block_0", "head"]
    sums = np.sum(layers["sums"], axis=1)
    np.testing.assert_allclose(sums, list(MEASURED.values()), rtol=1e-9)


def test_trained_tokens_of_a_token(tmp_path):
    tokenizer = train_bpe(["so it is"], vocab_size=270)
    run, _ = make(tmp_path / "run")
    tokenizer.save(run.path)
    targets = [[5, 6, 7], [8, 9]]
    arrays = write_token_ledger(run, PAIRS, targets, tokenizer)
    tokens = packed_ledger(run)["tokens"]
    texts = {name: of["sides"] for name, of in PAIRS.items()}
    for of in tokens["examples"]:
        shown = {side: "".join(words) for side, words in of["sides"].items()}
        end = tokenizer.decode([tokenizer.end_id])
        assert shown == {side: text + end for side, text in texts[of["name"]].items()}
    names, mask = arrays["rows"].tolist(), arrays["mask"]
    for number in range(len(targets)):
        map_ = arrays[f"map_{number}"].astype(np.float64)
        found = {k: unpacked(of) for k, of in tokens["responses"][number].items()}
        sums = map_.sum((2, 3))
        for place, totals in enumerate(sums):
            order = np.argsort(-totals)
            kept = [*order[:3], *order[::-1][:3]]
            shown = [tokens["examples"][i]["name"] for i in found["rows"][place]]
            assert shown == [names[i] for i in kept]
            np.testing.assert_allclose(found["totals"][place], totals[kept], rtol=1e-6)
            lifted, lowered = totals[totals > 0].sum(), totals[totals < 0].sum()
            np.testing.assert_allclose(
                found["sums"][place], [lifted, lowered], rtol=1e-6
            )
            for i, row in enumerate(kept):
                scored = map_[place, row][mask[row]]
                largest = np.argsort(-np.abs(scored), kind="stable")
                named = found["tokens"].shape[1] // len(kept)
                at = found["tokens"][place].reshape(-1, named)[i]
                shares = found["shares"][place].reshape(-1, named)[i]
                count = min(named, len(scored))
                assert at[:count].tolist() == largest[:count].tolist()
                unit = found["unit"][place]
                np.testing.assert_allclose(
                    shares[:count] * unit, scored[largest[:count]], atol=0.51 * unit
                )
                assert not shares[count:].any()
                rest = totals[row] - scored[largest[:count]].sum()
                assert found["rests"][place][i] == pytest.approx(rest, abs=1e-7)
                assert (at[count:] == mask[0].size).all()


def test_without_a_ledger_there_is_none(tmp_path):
    run = create_run(tmp_path / "run", {})
    assert ledger_content(run, damage := Damage()) is None
    assert damage.notes == []


@pytest.mark.parametrize("name", ["ledger.parquet", "ledger.json", "layers.parquet"])
def test_a_damaged_file_is_told(tmp_path, name):
    run, _ = make(tmp_path / "run")
    (run.path / "ledger" / name).write_bytes(b"no table")
    found = ledger_content(run, damage := Damage())
    (note,) = damage.notes
    assert "is damaged" in note
    assert (found is None) == (name != "layers.parquet")
