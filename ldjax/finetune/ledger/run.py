"""Divide what a whole run did among the examples that it was trained on.

For each watched response: how many nats of its change each training example, and side
of a pair, is responsible for, over all updates, with momentum dated to the updates that
it came from. The run is taken again from its folder, bit for bit, and swept backward.

Writes `ledger/` in the run folder, and its page anew; ends with the balance of each
type of response. Claim (exit status 1 if it does not hold): the balance of every
response closes, up to rounding. Stopped at any moment, the same command goes on.

    ldjax ledger runs/dpo
    ldjax ledger runs/dpo --probes chosen rejected --by-token 4
"""

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldjax import command
from ldjax.command.options import check_numbers
from ldjax.files.locks import lock_folder
from ldjax.files.replacing import settle
from ldjax.files.whole import read_json_object, whole_file
from ldjax.finetune.ledger.balance import balance, check_balance
from ldjax.finetune.ledger.choose import choose
from ldjax.finetune.ledger.loop import rebuild_loop
from ldjax.finetune.ledger.replay import Replay, rebuild
from ldjax.finetune.ledger.settings import RANGES, Config, Nodes, Places
from ldjax.origins import Ledger, Responses, Training, account
from ldjax.report import write_page
from ldjax.runs.folder import Run, open_run
from ldjax.theory.claims import failures, told
from ldjax.watch.probes import ProbeSet
from ldjax.watch.record import TRACKED

__all__ = ["Config", "Places", "ledger", "main", "parse"]

_ASKED, _EXAMPLES = "asked.json", "examples.jsonl"


def ledger(
    run: str | Path,
    probes: Sequence[str] | None = None,
    *,
    nodes: Nodes = 3,
    by_token: int = 0,
    updates: int | None = None,
    memory: float | None = None,
    places: Places | None = None,
    overwrite: bool = False,
    training: Training | None = None,
    step_fn: Callable[[Any, Any], Any] | None = None,
    state: Any = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Ledger:
    r"""Divide what a whole run did among the examples that it was trained on.

    .. math:: \log\pi_{\theta_T} - \log\pi_{\theta_0} = \sum_{t, i} c_{t,i} +
              \text{weight decay} + \text{before} + \text{rounding} + \text{quadrature}

    for each watched response, in nats, with :math:`c_{t,i}` what example `i` of update
    `t` did to it until the end of the run, through the optimizer's memory too. The run
    is taken again, bit for bit, which its checkpoints prove, and swept backward.

    Derived in docs/theory/ledger.md.

    Args:
      run: Folder of a finetuning run, or of a `Recorder` that kept what this needs.
      probes: Words, each some of the watched responses: `"tracked"` (the default),
        `"train"`, `"test"`, the name of a prompt in `probes.jsonl` or a type of the
        tracked ones; behind a colon the type.
      nodes: Places along each update where the derivative is taken.
      by_token: Responses, the first ones, of which is also kept what each trained token
        did to each of their tokens.
      updates: Account for the first updates only; by default for all.
      memory: Most memory to use, in GB (1e9 bytes); by default what is free, nearly.
      places: Where things are that the run was made of, if they were moved.
      overwrite: Begin anew. By default a ledger that was stopped goes on, and one that
        is complete is read.
      training: Of a loop of one's own, how it trains.
      step_fn: Of a loop of one's own, the very compiled function that took its steps:
        `(state, batch) -> (state, ...)`.
      state: Of a loop of one's own, any state, such as that before the first update,
        with `params` and `opt_state`.
      tell: Is told, before the first update, what will be done.

    Returns:
      The ledger, as in the folder `ledger` of the run. The page of the run is written
      anew, and shows it.

    Raises:
      BlockingIOError: If another process writes the folder.
      FileNotFoundError: If there is no such run, or something that it was made of is
        not there any more.
      MemoryError: If one response alone does not fit.
      ReplayError: If the updates are not those of the run, to the bit.
      ValueError: If the run is not complete, its data or start are not what they were,
        no response is named so, the optimizer cannot be split, or the ledger that is
        there was asked for otherwise.

    Examples:
      >>> ledger("/nowhere")
      Traceback (most recent call last):
        ...
      FileNotFoundError: /nowhere is not a run folder: it has no config.json.
    """
    words = [*(probes or (TRACKED,))]
    asked = {"probes": words, "nodes": nodes, "by_token": by_token, "updates": updates}
    with command.set_up():
        opened = open_run(Path(run))
        # Until this returns, or is stopped and has said how to go on.
        opened = Run(opened.path, lock_folder(opened.path, at_end=settle))
        folder = opened.path / "ledger"
        if _is_complete(folder, asked) and not overwrite:
            return Ledger.read(folder)
        if training is None:
            replay = rebuild(opened, places or Places(), updates)
        else:
            replay = rebuild_loop(opened, training, step_fn, state, updates)
        chosen = choose(words, replay.probes, replay.tracked)
        _begin(folder, asked, replay, overwrite=overwrite)
    num_steps = replay.trajectory.num_steps
    tell(f"the ledger of {len(chosen)} responses over {num_steps} updates")
    made = account(
        replay.training,
        replay.trajectory,
        Responses.of(
            ProbeSet.of(chosen, max_length=replay.max_length, batch_size=None)
        ),
        nodes=nodes,
        by_token=by_token,
        memory_limit=None if memory is None else 1e9 * memory,
        folder=folder,
    )
    write_page([opened])
    return made


@command.experiment
def main(config: Config) -> int:
    """Run the program; the exit status."""
    with command.set_up():
        check_numbers(config, RANGES)
    made = ledger(
        config.run,
        config.probes,
        nodes=config.nodes,
        by_token=config.by_token,
        updates=config.updates,
        memory=config.memory,
        places=config.places,
        overwrite=config.overwrite,
        tell=functools.partial(print, flush=True),
    )
    checks = check_balance(made)
    print("\n".join([*balance(made), told(checks), ""]))
    print(f"the ledger: {config.run / 'ledger'}")
    print(f"the report, for a browser: {config.run / 'report.html'}")
    return 1 if failures(checks) else 0


def _is_complete(folder: Path, asked: dict[str, Any]) -> bool:
    """Whether a folder has such a ledger, as far as it was asked for."""
    is_there = (folder / "ledger.parquet").is_file() and (folder / _ASKED).is_file()
    return is_there and read_json_object(folder / _ASKED) == asked


def _begin(
    folder: Path, asked: dict[str, Any], replay: Replay, *, overwrite: bool
) -> None:
    """Write what is asked for, and what the examples say.

    Raises:
      ValueError: If there is a ledger that was asked for otherwise.
    """
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    if (folder / _ASKED).is_file():
        before = read_json_object(folder / _ASKED)
        changes = [
            f"{name} was {before.get(name)}, now {value}"
            for name, value in asked.items()
            if before.get(name) != value
        ]
        if changes:
            raise ValueError(
                f"{folder} was asked for otherwise: {'; '.join(changes)}. Ask for the "
                "same, or pass `overwrite=True` to begin anew."
            )
    folder.mkdir(exist_ok=True)
    trajectory = replay.trajectory
    steps = range(trajectory.num_steps)
    assert trajectory.names_of is not None
    names = {name for step in steps for name in trajectory.names_of(step)}
    lines = (
        json.dumps({"example": name, **said}, ensure_ascii=False) + "\n"
        for name, said in replay.examples.items()
        if name in names
    )
    with whole_file(folder / _EXAMPLES) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    with whole_file(folder / _ASKED) as partial:
        partial.write_text(json.dumps(asked, indent=2) + "\n")


parse = functools.partial(command.parse, Config, __doc__)
