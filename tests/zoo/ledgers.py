"""Ledgers of runs made by hand: as `ldjax ledger RUN` writes them, of drawn numbers."""

import json

import numpy as np
import polars as pl

SCHEMA = {
    "probe": pl.String,
    "type": pl.String,
    "step": pl.Int32,
    "origin": pl.String,
    "example": pl.String,
    "side": pl.String,
    "value": pl.Float64,
}
PER_UPDATE = ("weight_decay", "before", "rounding", "quadrature")


def write_ledger(
    run, measured, examples, *, num_steps, batch_size, origins=PER_UPDATE, seed=0
):
    """A ledger whose rows add up to what was measured.

    Args:
      run: The run that gets it.
      measured: The change of each `(probe, type)`, in nats.
      examples: What was trained on, by name: `prompt` and `sides`.
      num_steps: Updates.
      batch_size: Examples of an update.
      origins: Those that are no examples.
      seed: Of the numbers.
    """
    folder = run.path / "ledger"
    folder.mkdir()
    rng = np.random.default_rng(seed)
    trained = _batches(rng, list(examples), num_steps, batch_size)
    frames = [
        _rows(rng, probe, type_, change, trained, examples, origins)
        for (probe, type_), change in measured.items()
    ]
    table = pl.concat(frames)
    table.write_parquet(folder / "ledger.parquet")
    about = [
        {
            "probe": probe,
            "type": type_,
            "measured": change,
            "floor": 1e-4,
            "quadrature": table.filter(probe=probe, type=type_, origin="quadrature")[
                "value"
            ].sum(),
        }
        for (probe, type_), change in measured.items()
    ]
    content = {"nodes": 3, "num_steps": num_steps, "probes": about}
    content |= {"num_parameters": 100}
    (folder / "ledger.json").write_text(json.dumps(content))
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as file:
        for name, texts in examples.items():
            file.write(json.dumps({"example": name} | texts) + "\n")
    _write_layers(folder, table, rng)
    return table


def write_token_ledger(run, examples, targets, tokenizer, *, seed=0):
    """The part of a ledger that is by token.

    Args:
      run: The run, which has a ledger.
      examples: Those of the ledger.
      targets: The tokens of each watched response.
      tokenizer: That made them.
      seed: Of the numbers.
    """
    rng = np.random.default_rng(seed)
    sides = list(next(iter(examples.values()))["sides"])
    ids = [
        [
            [*tokenizer.encode(of["sides"].get(side, "")), tokenizer.end_id]
            for side in sides
        ]
        for of in examples.values()
    ]
    width = 1 + max(len(side) for row in ids for side in row)
    arrays = {
        "rows": np.array(list(examples)),
        "sides": np.array(sides),
        "targets": np.zeros((len(ids), len(sides), width), int),
        "mask": np.zeros((len(ids), len(sides), width), bool),
    }
    for r, row in enumerate(ids):
        for s, side in enumerate(row):
            arrays["targets"][r, s, 1 : 1 + len(side)] = side
            arrays["mask"][r, s, 1 : 1 + len(side)] = True
    for number, response in enumerate(targets):
        shape = (len(response), *arrays["mask"].shape)
        size = np.exp(1.5 * rng.normal(size=shape)) * 1e-3
        row_scale = np.exp(rng.normal(size=(*shape[:2], 1, 1)))
        map_ = np.sign(rng.normal(size=shape)) * size * row_scale * arrays["mask"]
        arrays[f"map_{number}"] = map_.astype(np.float32)
        arrays[f"targets_{number}"] = np.array(response)
        arrays[f"mask_{number}"] = np.ones(len(response), bool)
    np.savez_compressed(run.path / "ledger" / "tokens.npz", **arrays)
    return arrays


def _batches(rng, names, num_steps, batch_size):
    """The examples of each update, in shuffled epochs, `[step, row]`."""
    epochs = 1 + num_steps * batch_size // len(names)
    order = np.concatenate([rng.permutation(len(names)) for _ in range(epochs)])
    batches = order[: num_steps * batch_size].reshape(num_steps, batch_size)
    return [[names[place] for place in batch] for batch in batches]


def _rows(rng, probe, type_, change, trained, examples, origins):
    rows = []
    for step, batch in enumerate(trained):
        fading = np.exp(-3 * step / len(trained))
        for example in batch:
            is_own = example.split(":")[0] == probe
            for place, side in enumerate(examples[example]["sides"]):
                value = rng.normal((-1) ** place, 0.7) * fading
                value *= (1 if change > 0 else -1) * (6 if is_own else 1)
                rows.append(
                    (step, "gradient", example, side, 0.05 * abs(change) * value)
                )
        for origin in origins:
            if origin == "before" and step > 5:
                continue
            scale = {"weight_decay": -3e-3, "before": 2e-2}.get(origin, 1e-5)
            rows.append((step, origin, None, None, scale * change * abs(rng.normal())))
    values = np.array([row[-1] for row in rows])
    is_gradient = np.array([row[1] == "gradient" for row in rows])
    values[is_gradient] += (change - values.sum()) / is_gradient.sum()
    rows = [
        (probe, type_, *row[:-1], value)
        for row, value in zip(rows, values.tolist(), strict=True)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _write_layers(folder, table, rng):
    """The shares of three layers, which add up to the same sums."""
    sums = table.group_by("probe", "type", "side", "origin", maintain_order=True).agg(
        pl.col("value").sum()
    )
    parts = rng.dirichlet(np.ones(3), len(sums)).T
    frames = [
        sums.with_columns(layer=pl.lit(name), value=pl.col("value") * part)
        for name, part in zip(("embed", "block_0", "head"), parts, strict=True)
    ]
    table = pl.concat(frames).select(
        "probe", "type", "layer", "side", "origin", "value"
    )
    table.write_parquet(folder / "layers.parquet")
