"""What changed between two checkpoints: of every response, and where in the model.

Measures by how much the log-prob of each watched response and token differs, and
divides it exactly by layer and by kind of matrix: derivatives along the straight line
from the first to the second, whatever training led there. Says beside it what first
order says at either end, and so how far from linear the way is.

Writes a folder like that of a run: `difference.parquet` (probe, type, layer, kind,
value), `tokens.npz`, and a page. Claim (exit status 1 if it does not hold): the account
closes, up to `--tolerance`.

    ldjax diff runs/sft runs/dpo --out runs/sft-dpo
    ldjax diff Qwen/Qwen3-0.6B-Base ./tuned --probes pairs.jsonl
    ldjax diff ./base ./adapter --probes pairs.jsonl
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldjax import command, linen
from ldjax.command.options import check_numbers, flat
from ldjax.compare.along import Line
from ldjax.compare.difference import Difference, checks, divide
from ldjax.compare.folder import write_folder
from ldjax.compare.pair import Pair, Source, named, pair_of
from ldjax.compare.places import places_of
from ldjax.compare.settings import RANGES, Config, Watch
from ldjax.compare.texts import Watched, given_ids, own_texts, watched_texts
from ldjax.compare.words import balance, sentences
from ldjax.finetune.settings.records import Texts, Tokens
from ldjax.progress import progress
from ldjax.runs.folder import create_run
from ldjax.theory.claims import failures, told
from ldjax.watch.probes import Probe, ProbeSet, make_floor_fn

__all__ = ["Config", "diff", "main", "parse"]


def diff(
    before: Source,
    after: Source,
    probes: str | Path | Sequence[Probe] | None = None,
    *,
    out: str | Path | None = None,
    watch: Watch | None = None,
    tokens: Tokens | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Difference:
    r"""Divide what changed between two checkpoints among the parts of the model.

    .. math:: \log\pi(\theta') - \log\pi(\theta) = \sum_g \int_0^1
              \langle \nabla_g \log\pi(\theta + s\Delta),\, \Delta_g \rangle\, ds

    for each watched response, in nats, with `g` the layers and kinds of matrices. It
    says which of them carry the change, and not which examples put it there. Swapped,
    all signs flip.

    Args:
      before: The first model: a folder, an id on the hub, a run or one of its
        checkpoints, or a model from `ldjax.models.load`.
      after: The second one, of the same architecture.
      probes: What is watched: a file of responses, the folder of a run, or probes with
        token ids. By default what `after` watched, if it is a run, or the toy world.
      out: Folder to write; by default nothing is written. It needs texts: probes that
        are no token ids.
      watch: How it is divided, and how many prompts are watched.
      tokens: How texts are read as tokens.
      tokenizer: Folder of the tokenizer of both, instead of their own.
      seed: Of the toy world.
      overwrite: Replace what is in `out`.
      tell: Is told what is compared, before it is.

    Returns:
      The difference: `table` by layer and kind, `measured`, `quadrature` and others.

    Raises:
      FileExistsError: If there is something in `out`.
      FileNotFoundError: If there is no such model or file.
      MemoryError: If the two models do not fit.
      ValueError: If they are no checkpoints of one architecture, naming the first
        setting that differs; if their tokenizers differ; if a text cannot be read.

    Examples:
      >>> diff("/nowhere", "/nowhere")
      Traceback (most recent call last):
        ...
      FileNotFoundError: There is no folder /nowhere.
    """
    watch = watch or Watch()
    with command.set_up():
        check_numbers(watch, RANGES)
        with progress("reading the models"):
            pair = pair_of(before, after, tokenizer=tokenizer)
        if probes is None or isinstance(probes, str | Path):
            watched = _texts(pair, after, probes, watch, tokens or Tokens(), seed)
        else:
            watched = given_ids(probes, batch_size=watch.batch_size)
        run = None
        if out is not None:
            settings = _settings(pair, before, after, watched, watch, seed)
            run = create_run(Path(out), settings, overwrite=overwrite)
    about = f"{named(before)} -> {named(after)}: {watched}"
    tell("\n".join([about, *pair.notes]))
    found = divide_pair(pair, watched.probes, watch)
    if run is None:
        return found
    write_folder(
        run,
        found,
        checks(found, watch.tolerance),
        watched=watched,
        told={
            "headline": f"from {named(before)} to {named(after)}",
            "sentences": [*sentences(found), *pair.notes],
        },
    )
    run.release()
    return found


def divide_pair(pair: Pair, probes: ProbeSet, watch: Watch) -> Difference:
    """What changed between two models.

    Args:
      pair: The two.
      probes: What is watched.
      watch: How it is divided.
    """
    apply_fn = linen.apply_fn(pair.model)
    floors = make_floor_fn(apply_fn, probes)
    return divide(
        Line(apply_fn, pair.before, pair.after),
        probes,
        places_of(pair.before),
        lambda params: floors(params)["floor"],
        nodes=watch.nodes,
        tolerance=watch.tolerance,
        by_layer=watch.by_layer,
    )


@command.experiment
def main(config: Config) -> int:
    """Run the program; the exit status."""
    with command.set_up():
        check_numbers(config, RANGES)
    found = diff(
        config.before,
        config.after,
        config.watch.probes,
        out=config.out,
        watch=config.watch,
        tokens=config.tokens,
        tokenizer=config.tokenizer,
        seed=config.seed,
        overwrite=config.overwrite,
        tell=command.teller(config),
    )
    claims = checks(found, config.watch.tolerance)
    print("\n".join([*balance(found), "", told(claims), ""]))
    print(f"the numbers: {config.out}")
    print(f"the report, for a browser: {config.out / 'report.html'}")
    return 1 if failures(claims) else 0


def _texts(
    pair: Pair,
    after: Source,
    source: str | Path | None,
    watch: Watch,
    tokens: Tokens,
    seed: int,
) -> Watched:
    """What is watched, as texts."""
    if pair.tokenizer is None:
        raise ValueError(
            "Neither model has a tokenizer.json to read texts with: say `tokenizer` "
            "and the folder of one."
        )
    if source is None and isinstance(after, str | Path):
        source = own_texts(Path(after))
    return watched_texts(
        None if source is None else Path(source).expanduser(),
        model=pair.model,
        tokenizer=pair.tokenizer,
        texts=Texts(on_bad_row=watch.on_bad_row, blank=watch.blank),
        tokens=tokens,
        prompts=watch.prompts,
        batch_size=watch.batch_size,
        seed=seed,
    )


def _settings(
    pair: Pair,
    before: Source,
    after: Source,
    watched: Watched,
    watch: Watch,
    seed: int,
) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
      ValueError: If there are no texts, which a page is about.
    """
    if watched.encode is None:
        raise ValueError(
            "`out` is a page about texts: name a file or a run as `probes`, or take "
            "what is returned."
        )
    return {
        "before": named(before),
        "after": named(after),
        **flat(watch),
        "seed": seed,
        "probes": watched.source,
        "max_length": watched.encode.max_length,
        "max_prompt_length": watched.encode.max_prompt_length,
        "model": pair.model.config.settings(),
    }


parse = functools.partial(command.parse, Config, __doc__)
