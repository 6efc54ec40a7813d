"""Run folders made by hand, as `finetune.py` writes them."""

import json

import numpy as np
import polars as pl

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.data.tokenizers import train_bpe
from ldjax.runs.folder import METRIC_COLUMNS, create_run

HOSTILE = {
    "script": "</script><script>document.title = 'broken'</script><!-- <b>",
    "attribute": "\"' onload='document.title=1' `${1}` </textarea></title>&lt;&amp;",
    "image": "<img src=x onerror=\"document.title='broken'\">",
    "right to left": "مرحبا \u202eabc\u202c עולם",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 é e\u0301 \u2028\u2029 \u0000\u0007 \ud7ff",
    "long": "na " * 6_667,
    "template": "@@DATA@@ @@SCRIPT@@ {scripts} </style>",
    "blank": " \n\t ",
}


def make_run(
    path,
    texts,
    *,
    types=RESPONSE_TYPES,
    prompts=None,
    steps=(0, 1, 2),
    maps=True,
    integrated=False,
    settings=None,
    seed=0,
):
    """A run on some texts: one prompt for each, or as many as asked for.

    The first prompt is tracked, with its tokens, token movements and a token map.
    """
    rng = np.random.default_rng(seed)
    names = list(texts)
    prompts = len(names) if prompts is None else prompts
    tokenizer = train_bpe(["a plain text"], vocab_size=270)
    model = {"loss": "dpo", "model": {"vocab_size": 300}}
    run = create_run(path, model | (settings or {}))
    tokenizer.save(run.path)
    lines = [
        (f"{set_name}/{i:04d}", type_, texts[names[i % len(names)]])
        for set_name, places in (("train", range(prompts)), ("tracked", range(1)))
        for i in places
        for type_ in types
    ]
    with (run.path / "probes.jsonl").open("w", encoding="utf-8") as file:
        for probe, type_, text in lines:
            line = {"probe": probe, "type": type_, "prompt": text, "text": text}
            line["num_tokens"] = 1 + len(text)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    run.write_metrics(_metrics(lines, steps, integrated, rng))
    run.write_summary({"fidelity": {}, "claims": [], "identities": []})
    tracked = [text for *_, text in lines[-len(types) :]]
    _write_tokens(run, tokenizer, tracked, steps, rng)
    if maps:
        _write_maps(run, tokenizer, rng)
    return run


def _metrics(lines, steps, integrated, rng):
    train, tracked = (
        [line for line in lines if line[0].startswith(name)]
        for name in ("train", "tracked")
    )
    observed = ("log_prob", "argmax_log_prob", "measured_step", "predicted_step")
    frames = [
        _frame(train, steps, name, rng.normal(size=(len(steps), len(train))))
        for name in observed
    ]
    parts = rng.normal(size=(2, len(steps), len(tracked)))
    of = {"part:chosen": parts[0], "part:rejected": parts[1]}
    of["floor"] = np.full(parts.shape[1:], 1e-6)
    # The parts are those of the integral where there is one, else of first order.
    of["predicted"] = parts.sum(0)
    if integrated:
        of["integrated"] = parts.sum(0)
        of["predicted"] = parts.sum(0) + rng.normal(size=parts.shape[1:])
    of["measured"] = parts.sum(0) + 0.1 * rng.normal(size=parts.shape[1:])
    frames += [_frame(tracked, steps, name, values) for name, values in of.items()]
    return pl.concat(frames).select(METRIC_COLUMNS)


def _frame(lines, steps, quantity, values):
    return pl.DataFrame(
        {
            "step": np.repeat(steps, len(lines)),
            "examples": 4 * np.repeat(steps, len(lines)),
            "probe": [probe for probe, *_ in lines] * len(steps),
            "type": [type_ for _, type_, _ in lines] * len(steps),
            "quantity": [quantity] * values.size,
            "value": values.ravel(),
        }
    )


def _write_tokens(run, tokenizer, texts, steps, rng):
    ids = [[*tokenizer.encode(text), tokenizer.end_id] for text in texts]
    width = 2 + max(map(len, ids))
    targets, mask = np.zeros((len(ids), width), int), np.zeros((len(ids), width), bool)
    for row, of in enumerate(ids):
        targets[row, 2 : 2 + len(of)] = of
        mask[row, 2 : 2 + len(of)] = True
    shape = targets.shape
    moved = rng.integers(0, tokenizer.vocab_size, (*shape, 10))
    np.savez_compressed(
        run.path / "tokens.npz",
        step=np.array(steps),
        probes_0=np.arange(len(ids)),
        targets_0=targets,
        mask_0=mask,
        log_prob_0=np.where(mask, -rng.random((len(steps), *shape)), 0),
        predicted_0=np.where(mask, rng.normal(size=shape), 0),
        measured_0=np.where(mask, rng.normal(size=shape), 0),
        moved_ids_0=moved,
        moved_before_0=-rng.random(moved.shape),
        moved_after_0=-rng.random(moved.shape),
    )


def _write_maps(run, tokenizer, rng):
    with np.load(run.path / "tokens.npz") as file:
        shape = file["targets_0"].shape
    sides, update = ("chosen", "rejected"), (2, 3)
    arrays = {}
    for side in sides:
        arrays |= {
            f"targets_{side}": rng.integers(0, tokenizer.vocab_size, update),
            f"mask_{side}": np.array([[True] * 3, [True, True, False]]),
            f"map_0_{side}": rng.normal(size=(*shape, *update)).astype(np.float32),
        }
    (run.path / "token_maps").mkdir()
    np.savez_compressed(run.path / "token_maps" / "000000.npz", **arrays)
