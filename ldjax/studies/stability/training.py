"""SFT and DPO, with kernels and proxies measured on the way."""

from typing import Any

from ldjax import losses
from ldjax.data.reference import add_reference
from ldjax.finetune.prepare import Prepared
from ldjax.finetune.recipes import make_optimizer
from ldjax.finetune.rows import cropped
from ldjax.finetune.settings.config import Config as StageConfig
from ldjax.linen import apply_fn, logits_fn
from ldjax.runs.checkpoints import Table
from ldjax.runs.loop import Observer, make_batch_fn, make_train_step, train
from ldjax.studies.scored import make_update_examples
from ldjax.studies.stability.measure import make_evaluate, make_measure
from ldjax.studies.stability.settings import Config

__all__ = ["SIDES", "moments", "run_stage"]

#: What a step learns, by stage.
SIDES = {"sft": ("chosen",), "dpo": ("chosen", "rejected")}


def run_stage(
    config: Config, stage: StageConfig, setup: Prepared, start: Any
) -> tuple[Any, Table]:
    """Train, and measure on the way; the final parameters and what was measured."""
    model, rows = setup.base.model, setup.rows
    is_dpo = stage.objective.loss == "dpo"
    if is_dpo:
        rows = add_reference(
            apply_fn(model), start, rows, batch_size=stage.recipe.batch_size
        )
    loss_fn = stage.objective.loss_fn
    optimizer = make_optimizer(stage.recipe)
    measure = make_measure(
        model,
        loss_fn if is_dpo else of_chosen,
        make_update_examples(
            setup.watched.tracked.probes,
            SIDES[stage.objective.loss],
            num_tokens=config.update_tokens,
        ),
        optimizer=optimizer if config.preconditioned else None,
        reference=start if is_dpo else None,
        step_norm=config.step_norm,
    )
    evaluate = make_evaluate(apply_fn(model), setup.watched.observed)
    steps = moments(setup.num_steps, config.times)

    def observe(state: Any) -> dict[str, Any]:
        found = measure(state, steps.index(int(state.step)))
        print(f"update {int(state.step)}: measured", flush=True)
        return found

    init, step_fn = make_train_step(
        lambda params, batch: logits_fn(model, batch)(params), loss_fn, optimizer
    )
    batch_fn = make_batch_fn(rows, batch_size=stage.recipe.batch_size, seed=stage.seed)
    is_due = set(steps).__contains__
    *_, last = train(
        init(start),
        num_steps=setup.num_steps,
        step_fn=step_fn,
        batch_fn=cropped(batch_fn),
        save_every=setup.num_steps,
        observers={
            "kernel": Observer(observe, is_due),
            "evaluated": Observer(lambda state: evaluate(state.params), is_due),
        },
    )
    return last.state.params, last.table


def moments(num_steps: int, times: int) -> list[int]:
    """When to measure: both ends, with distances that grow."""
    fractions = [i / (times - 1) for i in range(times)]
    return sorted({round(num_steps * fraction**2) for fraction in fractions})


def of_chosen(logits: dict[str, Any], batch: dict[str, Any]) -> Any:
    """The loss of SFT, of the one side of an update example."""
    return losses.sft(logits["chosen"], batch["chosen"])
