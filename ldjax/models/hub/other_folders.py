"""What a folder holds that is no model of safetensors, and what to do then."""

from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["without_config", "without_weights"]

# Weights in pickles, which may run code when they are read.
_PICKLES = ("pytorch_model*.bin", "adapter_model*.bin", "*.pth", "*.pt", "*.ckpt")
_OTHER_LIBRARIES = ("*.h5", "*.msgpack", "saved_model.pb")
_EXPORTED = (
    *("*.onnx", "onnx/*.onnx", "openvino_model.xml", "*.tflite", "*.mlmodel"),
    *("*.mlpackage", "*.engine"),
)
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab.*")
_DATA = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.csv", "*.arrow")


def without_config(folder: Path) -> str:
    """Why a folder without `config.json` is no model, in words.

    Args:
      folder: A folder, which need not exist.

    Examples:
      >>> without_config(Path("/nowhere"))
      '/nowhere has no config.json: it is no folder of a model.'
    """
    found = next(filter(None, (tell(folder) for tell in _TELLS)), "")
    return f"{folder} has no config.json: {found or 'it is no folder of a model'}."


def without_weights(folder: Path, *, name: str, index: str) -> str:
    """Why a folder without safetensors cannot be read, in words.

    Args:
      folder: A folder.
      name: The file of tensors that is wanted.
      index: The index of shards that there may be instead.

    Examples:
      >>> without_weights(Path("/nowhere"), name="a.safetensors", index="a.json")
      '/nowhere has no weights: neither a.safetensors nor a.json.'
    """
    is_adapter = name.startswith("adapter")
    if pickles := _files(folder, *_PICKLES):
        convert = (
            "`PeftModel.from_pretrained(BASE, A).save_pretrained(B)`, where PEFT"
            if is_adapter
            else "`AutoModelForCausalLM.from_pretrained(A).save_pretrained(B)`, where "
            "transformers"
        )
        return (
            f"{folder} has its weights as {pickles}; ldjax reads safetensors only, as "
            f"they run no code. Convert them by {convert} is installed."
        )
    if others := _files(folder, *_OTHER_LIBRARIES):
        return (
            f"{folder} has its weights as {others}, of TensorFlow or Flax; ldjax reads "
            "safetensors. transformers before version 5 converts them: "
            "`AutoModelForCausalLM.from_pretrained(A, from_tf=True)` (or `from_flax`), "
            "then `.save_pretrained(B)`."
        )
    if exported := _exported(folder):
        return f"{folder} has no weights in safetensors: {exported}."
    names = f"no {name}" if is_adapter else f"neither {name} nor {index}"
    if "snapshots" in folder.parts:  # what the hub has besides is not fetched
        names += "; if the repository has pytorch_model.bin instead, convert it"
    return f"{folder} has no weights: {names}."


def _cached(folder: Path) -> str:
    """A repository in the cache of the hub, whose files are further inside."""
    snapshots = sorted((folder / "snapshots").glob("*/config.json"))
    if not snapshots:
        return ""
    return f"it is the hub's cache of a repository; give {snapshots[-1].parent}"


def _checkpoints(folder: Path) -> str:
    """The output of a Trainer that kept checkpoints and no last model."""
    steps = {
        int(number): path
        for path in folder.glob("checkpoint-*")
        if (number := path.name.rpartition("-")[2]).isdecimal() and _is_model(path)
    }
    if not steps:
        return ""
    return f"it holds checkpoints of a training; give one, such as {steps[max(steps)]}"


def _inner(folder: Path) -> str:
    models = [path for path in _children(folder) if path.is_dir() and _is_model(path)]
    if not models:
        return ""
    if len(models) > 3:
        return f"it holds {len(models)} folders of models; give one of them"
    return f"it holds a folder that has one; give {' or '.join(map(str, models))}"


def _sentences(folder: Path) -> str:
    if not (folder / "modules.json").is_file():
        return ""
    return (
        "it is a model of sentence-transformers, which gives a text one vector; ldjax "
        "reads language models"
    )


def _diffusion(folder: Path) -> str:
    if not (folder / "model_index.json").is_file():
        return ""
    return (
        "it is a pipeline of diffusers, which makes images; ldjax reads language models"
    )


def _original(folder: Path) -> str:
    if not (folder / "params.json").is_file():
        return ""
    return (
        "params.json is of its maker's own layout; take the one for transformers, as "
        "the hub has it"
    )


def _exported(folder: Path) -> str:
    if not (files := _files(folder, *_EXPORTED)):
        return ""
    return (
        f"{files} is a program made from a model, which can be run but not trained; "
        "take the model itself"
    )


def _weights(folder: Path) -> str:
    files = _files(folder, "*.safetensors", *_PICKLES, *_OTHER_LIBRARIES)
    if not files:
        return ""
    return f"{files} alone do not tell the architecture; fetch the whole folder"


def _tokenizer(folder: Path) -> str:
    if not (files := _files(folder, *_TOKENIZERS)):
        return ""
    return f"it has a tokenizer ({files}) but no model; give the folder of the model"


def _data(folder: Path) -> str:
    if not (files := _files(folder, *_DATA)):
        return ""
    return f"it holds data ({files}), which are no model"


def _empty(folder: Path) -> str:
    return "it is empty" if folder.is_dir() and not any(folder.iterdir()) else ""


# In this order: what comes first tells more.
_TELLS: tuple[Callable[[Path], str], ...] = (
    *(_cached, _checkpoints, _sentences, _diffusion, _original, _exported, _weights),
    *(_tokenizer, _inner, _data, _empty),
)


def _children(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir()) if folder.is_dir() else ())


def _is_model(folder: Path) -> bool:
    return any(
        (folder / f"{name}.json").is_file() for name in ("config", "adapter_config")
    )


def _files(folder: Path, *patterns: str, most: int = 3) -> str:
    """Names of files that are there, a few."""
    found = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
