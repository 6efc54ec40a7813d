"""The optimizer of a Hugging Face `Trainer` checkpoint, parameter by parameter.

`optimizer.pt` has moments without names: their places are those of the parameters in
the order of PyTorch's `named_parameters`, those with weight decay first. The order is
taken from the model that `transformers` builds, without weights, and every shape is
checked against it. Nothing that is pickled is run, so `training_args.bin` is not read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from ldjax.equation.subset import split
from ldjax.files.whole import read_json_object
from ldjax.models.decoder.config import TransformerConfig
from ldjax.models.decoder.low_rank import is_adapter
from ldjax.models.hub.peft import AdapterFolder, adapter_rules, is_adapter_folder
from ldjax.models.hub.tensors import Rule, leaf_names, nested, rules

__all__ = ["Moments", "has_moments", "read_moments"]

_OPTIMIZER, _SCHEDULER, _STATE = "optimizer.pt", "scheduler.pt", "trainer_state.json"

#: What is there instead where the optimizer is in pieces, and who writes it.
_SHARDED = {
    "zero_to_fp32.py": "DeepSpeed",
    "global_step*": "DeepSpeed",
    "pytorch_model_fsdp*": "FSDP",
    "optimizer_0": "FSDP",
    "optimizer.bin": "FSDP",
    "rank*-of-*-optimizer.pt": "a run on several machines",
}
#: By what it keeps of each parameter, an optimizer that is not AdamW.
_OTHERS = {
    "max_exp_avg_sq": "AMSGrad",
    "exp_avg_sq_row": "Adafactor",
    "momentum_buffer": "SGD with momentum, or RMSprop",
    "square_avg": "RMSprop",
    "sum": "Adagrad",
    "state1": "8-bit Adam (bitsandbytes)",
    "exp_avg_diff": "Adan",
}
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


class Moments(NamedTuple):
    """AdamW as a checkpoint left it, and what its next update is made with.

    Attributes:
      num_steps: Updates that were done.
      learning_rate: That of the next update.
      betas: Of the two moments.
      epsilon: What is added to the root of the second one.
      weight_decay: Of the parameters that decay.
      decays: Whether each trained parameter does, nested dicts.
      first: First moments of the trained parameters, nested dicts.
      second: Second moments likewise.

    Examples:
      >>> Moments(3, 1e-5, (0.9, 0.999), 1e-8, 0.0, {}, {}, {}).num_steps
      3
    """

    num_steps: int
    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    decays: Any
    first: Any
    second: Any


def has_moments(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a `Trainer`.

    Examples:
      >>> has_moments(Path("/nowhere"))
      False
    """
    return (folder / _STATE).is_file()


def read_moments(folder: Path, config: TransformerConfig, params: Any) -> Moments:
    """The optimizer of a checkpoint, for the parameters of its model.

    Args:
      folder: A folder `checkpoint-N` of `Trainer` or TRL.
      config: The architecture of the model in it.
      params: Its parameters, or their shapes.

    Raises:
      FileNotFoundError: If it is no such folder, or the optimizer is not in it.
      ValueError: If PyTorch or transformers, which read it, are not installed; if the
        optimizer is not AdamW, is in pieces, or is not of these parameters, naming the
        first that shows it.

    Examples:
      >>> from ldjax.models import gpt2_config
      >>> read_moments(Path("/nowhere"), gpt2_config(vocab_size=9), {})
      Traceback (most recent call last):
        ...
      FileNotFoundError: /nowhere has no trainer_state.json: it is no checkpoint of a
      Hugging Face Trainer.
    """
    _refuse_unusable(folder)
    file = folder / _OPTIMIZER
    content = _loaded(file)
    groups, state = _checked(file, content)
    trained = params if config.adapters is None else split(params, is_adapter)[0]
    ordered = _by_group(folder, config)
    placed = _placed(file, groups, state, ordered, leaf_names(trained))
    num_steps = _num_steps(folder, state)
    rate = _learning_rate(folder, groups)
    first, second, decays = {}, {}, {}
    for place, (rule, decay) in placed.items():
        for name, found in (("exp_avg", first), ("exp_avg_sq", second)):
            parts = rule.unpack(_array(state[place][name]))
            found |= dict(zip(rule.leaves, parts, strict=True))
        decays |= dict.fromkeys(rule.leaves, decay)
    like = leaf_names(trained)
    tree = lambda found: nested({name: jnp.asarray(found[name]) for name in like})
    return Moments(
        num_steps,
        rate,
        tuple(map(float, groups[0]["betas"])),  # type: ignore[arg-type]
        float(groups[0]["eps"]),
        float(groups[0]["weight_decay"]),
        nested({name: decays[name] for name in like}),
        tree(first),
        tree(second),
    )


def _refuse_unusable(folder: Path) -> None:
    """A folder that is no checkpoint, or one whose optimizer is elsewhere."""
    if not has_moments(folder):
        raise FileNotFoundError(
            f"{folder} has no {_STATE}: it is no checkpoint of a Hugging Face Trainer."
        )
    for pattern, writer in _SHARDED.items():
        if found := sorted(folder.glob(pattern)):
            raise ValueError(
                f"{found[0]} is of an optimizer in pieces, as {writer} writes it: "
                "which is of which parameter cannot be told. Save the checkpoint whole."
            )
    if not (folder / _OPTIMIZER).is_file():
        raise FileNotFoundError(
            f"{folder} has no {_OPTIMIZER}: it was saved without its optimizer "
            "(`save_only_model`)."
        )


def _loaded(file: Path) -> Any:
    """The content of a file of PyTorch's, tensors and plain values alone."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{file} is read by PyTorch, which is not installed: pip install torch "
            "transformers."
        ) from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of its unpickler, of zip, of the system
        words = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{file} cannot be read as tensors and plain values: {words}"
        ) from error


def _checked(file: Path, content: Any) -> tuple[list[Any], Mapping[int, Any]]:
    """Groups and state of AdamW.

    Raises:
      ValueError: If it is another optimizer.
    """
    is_one = isinstance(content, dict) and {"param_groups", "state"} <= content.keys()
    if not is_one:
        raise ValueError(f"{file} is not the state of an optimizer of PyTorch.")
    groups, state = content["param_groups"], content["state"]
    if not state:
        raise ValueError(f"{file} has no moments: no update was done, or by plain SGD.")
    for place, of in state.items():
        other = next((_OTHERS[name] for name in of if name in _OTHERS), "")
        if other or not of.keys() >= _MOMENTS:
            what = other or f"an optimizer that keeps {', '.join(map(str, of))}"
            raise ValueError(
                f"{file} is of {what}, by entry {place}; ldjax accounts for the next "
                "update of AdamW."
            )
    for group in groups:
        if not {"betas", "eps", "lr", "weight_decay", "params"} <= group.keys():
            raise ValueError(f"{file}: a group of parameters is not AdamW's.")
        for name in ("amsgrad", "maximize"):
            if group.get(name):
                raise ValueError(f"{file}: `{name}` is on; ldjax computes without.")
        if not group.get("decoupled_weight_decay", True) and group["weight_decay"]:
            raise ValueError(
                f"{file} is of Adam with L2 regularisation, not of AdamW: the weight "
                "decay is part of its moments."
            )
    if len({(tuple(map(float, g["betas"])), float(g["eps"])) for g in groups}) > 1:
        raise ValueError(f"{file}: `betas` or `eps` differ between its groups.")
    return groups, state


def _by_group(folder: Path, config: TransformerConfig) -> list[list[Rule]]:
    """The trained tensors in the optimizer's order: with weight decay, and without."""
    base = Path(AdapterFolder(folder).base) if is_adapter_folder(folder) else folder
    order, decays = _order(base)
    known = {rule.name: rule for rule in rules(config)}
    unknown = [name for name in order if name not in known]
    if unknown or len(known) != len(order):
        raise ValueError(
            f"{base}: the model that transformers builds has other parameters than "
            f"ldjax reads, {next(iter(unknown), 'some are missing')}."
        )
    if config.adapters is not None:
        return [_adapters(config, order), []]
    return [
        [known[name] for name in order if (name in decays) == wanted]
        for wanted in (True, False)
    ]


def _adapters(config: TransformerConfig, order: Sequence[str]) -> list[Rule]:
    """Adapters in the order of the matrices that they stand beside, `A` before `B`."""

    def key(rule: Rule) -> tuple[int, str]:
        matrix, _, factor = rule.name.rpartition(".lora_")
        return order.index(f"{matrix.removeprefix('base_model.model.')}.weight"), factor

    return sorted(adapter_rules(config), key=key)


def _order(base: Path) -> tuple[list[str], set[str]]:
    """Names of a model's parameters in PyTorch's order, and those that decay."""
    try:
        import torch
        import transformers
    except ImportError:
        raise ValueError(
            "The order of the optimizer's parameters is that of the model in "
            "transformers, which is not installed: pip install transformers."
        ) from None
    config = transformers.AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    # A method that asks nothing of the trainer that it belongs to.
    decays = transformers.Trainer.get_decay_parameter_names(cast(Any, None), model)
    return [name for name, _ in model.named_parameters()], set(decays)


def _placed(
    file: Path,
    groups: Sequence[Any],
    state: Mapping[int, Any],
    ordered: Sequence[Sequence[Rule]],
    shapes: Mapping[str, Any],
) -> dict[int, tuple[Rule, bool]]:
    """The tensor of each entry, and whether it decays; every shape is compared."""
    counts = [len(group["params"]) for group in groups]
    wanted = [len(of) for of in ordered]
    if counts != wanted:
        raise ValueError(
            f"{file} has groups of {' and '.join(map(str, counts))} parameters; a "
            f"Trainer of this model has {wanted[0]} with weight decay and {wanted[1]} "
            "without. Were some frozen, or grouped otherwise? Then which is which "
            "cannot be told."
        )
    if groups[-1]["weight_decay"]:
        raise ValueError(
            f"{file}: the second group has weight decay, which a Trainer's has not."
        )
    placed: dict[int, tuple[Rule, bool]] = {}
    for group, of, decay in zip(groups, ordered, (True, False), strict=True):
        for place, rule in zip(group["params"], of, strict=True):
            if place not in state:
                raise ValueError(f"{file} has no entry {place}, for {rule.name}.")
            shape = rule.shape(*(tuple(shapes[leaf].shape) for leaf in rule.leaves))
            for name in ("exp_avg", "exp_avg_sq"):
                if (found := tuple(state[place][name].shape)) != tuple(shape):
                    raise ValueError(
                        f"{file}: entry {place} should be of {rule.name}, {list(shape)}"
                        f", but its {name} is {list(found)}: the order of the "
                        "parameters is not that of a Trainer."
                    )
            placed[int(place)] = rule, decay
    if extra := sorted(state.keys() - placed.keys()):
        raise ValueError(f"{file} has an entry {extra[0]} that is of no parameter.")
    return placed


def _num_steps(folder: Path, state: Mapping[int, Any]) -> int:
    """Updates that were done; all files have to agree."""
    steps = {int(of["step"]) for of in state.values()}
    said = read_json_object(folder / _STATE).get("global_step")
    if steps != {said}:
        raise ValueError(
            f"{folder}: {_OPTIMIZER} counts {', '.join(map(str, sorted(steps)))} "
            f"updates, {_STATE} {said}. They are not of one checkpoint (or float16 "
            "skipped some, which ldjax does not)."
        )
    return steps.pop()


def _learning_rate(folder: Path, groups: Sequence[Any]) -> float:
    """That of the next update: the schedule was advanced before the checkpoint."""
    rates = {float(group["lr"]) for group in groups}
    if (folder / _SCHEDULER).is_file():
        last = _loaded(folder / _SCHEDULER).get("_last_lr", ())
        rates |= set(map(float, last))
    if len(rates) != 1:
        raise ValueError(
            f"{folder}: {_OPTIMIZER} and {_SCHEDULER} have several learning rates, "
            f"{', '.join(f'{rate:g}' for rate in sorted(rates))}."
        )
    return rates.pop()


def _array(tensor: Any) -> np.ndarray:
    """A tensor in the precision that it is stored in, or float32 for bfloat16."""
    wide = tensor.float() if tensor.element_size() < 4 else tensor
    return wide.numpy()
