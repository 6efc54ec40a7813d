"""Tiny models finetuned by TRL, with every checkpoint kept."""

import importlib
import json
import os
import warnings
from typing import Any

from witnesses import parity
from zoo.decoders import random_params

from ldjax.data.tokenizers import train_word_level
from ldjax.models import Pretrained, Transformer, llama_config, save

WORDS = "is the number {} odd"
ROWS = [
    {
        "prompt": WORDS.format(i),
        "chosen": (" yes", " no")[i % 2],
        "rejected": " maybe" + (" no", " yes")[i % 2],
    }
    for i in range(4)
]
#: Of an update; none is small against float32's rounding of parameters.
RATE, CLIP, DECAY, STEPS = 3e-3, 0.7, 0.1, 4


def write_start(place, make_config=llama_config):
    """A drawn model with square matrices, as a folder, and the rows as a file."""
    words = [WORDS.format(i) + " yes no maybe" for i in range(4)]
    tokenizer = train_word_level(words)
    config = make_config(
        vocab_size=tokenizer.vocab_size,
        width=8,
        num_layers=2,
        num_heads=2,
        mlp_width=8,
    )
    model = Transformer(config)
    save(place / "start", Pretrained(model, random_params(model), config, tokenizer))
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (place / "rows.jsonl").write_text(lines)
    return place / "start"


def train(place, loss, *, dtype="float32", lora=False):
    """Checkpoints 1 to 4 of a training on all rows at every update.

    The rate falls linearly; the gradient is clipped; decay is on. In float64 it is so
    throughout.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are TRL's
        return _train(place, loss, dtype=dtype, lora=lora)


def _train(place, loss, *, dtype, lora):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trl: Any = importlib.import_module("trl")  # its names are exported lazily

    datasets.disable_progress_bars()
    torch.manual_seed(0)
    start = place / "start"
    model = AutoModelForCausalLM.from_pretrained(start, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(start)
    options = {
        "output_dir": str(place / "trained"),
        "per_device_train_batch_size": len(ROWS),
        "max_steps": STEPS,
        "save_steps": 1,
        "save_strategy": "steps",
        "learning_rate": RATE,
        "max_grad_norm": CLIP,
        "weight_decay": DECAY,
        "lr_scheduler_type": "linear",
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    if loss == "dpo":
        rows = ROWS
        make, config = trl.DPOTrainer, trl.DPOConfig(**options)
    else:
        rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]
        make, config = trl.SFTTrainer, trl.SFTConfig(**options)
    more = {}
    if lora:
        import peft

        more["peft_config"] = peft.LoraConfig(
            r=2, lora_alpha=4, target_modules=["q_proj", "o_proj", "up_proj"]
        )
    trainer = make(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **more,
    )
    step = trainer.training_step

    def exact(*args):
        with parity.precision(dtype):
            return step(*args)

    trainer.training_step = exact
    trainer.train()
    return place / "trained"
