"""How a run is accounted for: nodes along its updates, dates of its history."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldjax.command.options import changed
from ldjax.finetune.budget import account_options
from ldjax.finetune.prepare import Prepared
from ldjax.finetune.settings.config import Config
from ldjax.finetune.track.nodes import FIRST_UPDATES, choose
from ldjax.models.pretrained import is_run
from ldjax.progress import progress
from ldjax.runs.folder import open_run

__all__ = ["as_begun", "as_kept", "resumed", "settled"]

# Updates with a token map, where nobody says how many.
_TOKEN_MAPS = 2


def as_begun(path: Path) -> dict[str, Any]:
    """How a run was accounted for, by its `config.json`; one made before has neither.

    Args:
      path: Its folder.

    Returns:
      `nodes`, `history` and `token_maps`, options that leave nothing to be chosen;
      nothing where there is no run.
    """
    if not is_run(path):
        return {}
    options = open_run(path).config["settings"]
    return {
        "nodes": options.get("nodes") or 0,
        "history": options.get("history") or "whole",
        "token_maps": options.get("token_maps", _TOKEN_MAPS),
    }


def as_kept(settings: Config) -> dict[str, Any]:
    """The same as `config.json` has it: null where a run made before has nothing.

    Args:
      settings: From `settled`.
    """
    is_dated = settings.watch.history == "dated"
    return {
        "nodes": settings.watch.nodes or None,
        "history": "dated" if is_dated else None,
    }


def resumed(settings: Config) -> Config:
    """Settings of a run that goes on as it was begun.

    Raises:
      ValueError: If another account is asked for: its checkpoints lack what that
        needs.
    """
    begun = as_begun(settings.out) if settings.resume else {}
    asked = {name: getattr(settings.watch, name) for name in begun}
    if changes := [
        f"`{name}={begun[name]}`, not `{name}={value}`"
        for name, value in asked.items()
        if value not in (None, "auto", begun[name])
    ]:
        raise ValueError(
            f"cannot resume {settings.out}: it was begun with {', '.join(changes)}. "
            "Go on without, or choose another folder"
        )
    return changed(settings, **begun)


def settled(
    settings: Config, prepared: Prepared, batch_fn: Callable[[int], Any]
) -> tuple[Config, str]:
    """Settings that leave nothing to be chosen, and a line about the account.

    Args:
      settings: Resolved ones.
      prepared: What the run needs.
      batch_fn: The batch of each update.
    """
    nodes, why = settings.watch.nodes, ""
    if nodes is None:
        num_updates = min(FIRST_UPDATES, prepared.num_steps)
        with progress("choosing the nodes along the updates"):
            choice = choose(
                prepared.watched.tracked,
                params=prepared.base.params,
                batches=[batch_fn(step) for step in range(num_updates)],
                tolerance=settings.watch.tolerance,
                probe_batch_size=prepared.plan.probes,
                # By the small updates of a warm-up nothing is decided.
                **account_options(
                    prepared.base,
                    settings.objective,
                    settings.recipe._replace(warmup_steps=0),
                ),
            )
        nodes = choice.nodes
        why = (
            f" (one more changes {choice.difference:.1e} of what one of the first "
            f"{num_updates} does; `tolerance={settings.watch.tolerance:g}`)"
        )
    history = "dated" if prepared.is_dated else "whole"
    at = f"{nodes} node{'s' * (nodes > 1)} along" if nodes else "the start of"
    line = f"account: derivatives at {at} each update{why}, history {history}"
    maps = settings.watch.token_maps
    if maps is None:
        maps = 0 if prepared.plan.parts else _TOKEN_MAPS
    return changed(settings, nodes=nodes, history=history, token_maps=maps), line
