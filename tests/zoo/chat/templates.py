"""Chat templates in the dialects of today's families, and conversations for them.

They are written for these tests, after what the families' own templates do. Each marks
the assistant's turns; without its marks it is what a model comes with.
"""

import json
import re
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ldjax.data.conversation import Conversation
from ldjax.data.tokenizers import load_tokenizer

MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
FOLDER = Path(__file__).parent
#: By name, and whether the dialect knows tools. "thinking" is ChatML with thoughts that
#: are left out of earlier turns, as Qwen3's; "dated" tells a date and puts tools into
#: the first message of the user, as Llama 3's; in "folded" the assistant is the model
#: and the system speaks in the first turn of the user, as Gemma 3's; "zephyr" has
#: markers of ordinary text and END behind every turn.
DIALECTS = {"thinking": True, "dated": True, "folded": False, "zephyr": False}


#: How Qwen's and Llama 3's tokenizers take texts apart: a run of ends of lines is one.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<s>"),
)
WORDS = (
    *("So", " it", " is", ".", " the", "Why", "?", "\n", "\n\n", " ", "  ", "\t"),
    *("é", "e\u0301", "漢字", "🧪", "👩‍👩‍👧", "\u200b", "مرحبا", "{{ bos_token }}"),
    *("{% if x %}", "<think>", "</think>", "<|im_end|>", "</s>", "\\n", '"', "'"),
    *("<|eot_id|>", "<end_of_turn>\n", "<|user|>", "&lt;", "\r\n", "0"),
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a place, <b>now</b> & 'here'.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "enum": ["Zürich", "東京"]}},
        },
    },
}


def marked(dialect):
    """A template that marks the assistant's turns."""
    return (FOLDER / f"{dialect}.jinja").read_text("utf-8")


def without_marks(template):
    """A template as a model comes with it."""
    return MARKS.sub(lambda tag: _kept(tag[0]), template)


def _kept(tag):
    """A tag that does nothing, with the same control of white space."""
    if "end" in tag:
        return tag.replace("endgeneration", "endif")
    return tag.replace("generation", "if true")


def chat_tokenizer(folder, *, end="</s>", start="<s>", pieces=PIECES):
    """Bytes, and the special tokens of all dialects; written by hand, as the hub's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=[end, *SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(["Why? So it is. user\n\nmodel\n tool the"] * 3, trainer)
    inner.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    named |= {"eos_token": end, "bos_token": start}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return load_tokenizer(folder)


def draw_text(rng, most=6):
    return "".join(rng.choice(WORDS, rng.integers(0, most + 1)))


def draw_conversation(rng, *, has_tools, most_turns=3):
    """A dialogue that every dialect allows: a system's part, turns, calls of tools."""
    messages = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": draw_text(rng)})
    has_tools = has_tools and rng.random() < 0.5
    for _ in range(rng.integers(1, most_turns + 1)):
        messages.append({"role": "user", "content": draw_text(rng)})
        if has_tools and rng.random() < 0.6:
            messages += _call(rng)
        message = {"role": "assistant", "content": draw_text(rng)}
        if rng.random() < 0.3:
            message["reasoning_content"] = draw_text(rng)
        messages.append(message)
    tools = (TOOL,) if has_tools else ()
    kwargs = {"enable_thinking": bool(rng.random() < 0.5)} if rng.random() < 0.3 else {}
    return Conversation(tuple(messages), tools, kwargs)


def _call(rng):
    arguments = {"place": draw_text(rng), "n": int(rng.integers(9)), "x": None}
    function = {"name": "weather", "arguments": arguments}
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": function}],
    }
    if rng.random() < 0.5:
        call["content"] = draw_text(rng)
    return call, {"role": "tool", "name": "weather", "content": draw_text(rng)}


def drawn(seed, count, *, has_tools):
    """So many conversations; every other one has one message of the user only."""
    return [
        draw_conversation(
            np.random.default_rng((seed, i)),
            has_tools=has_tools,
            most_turns=1 + 2 * (i % 2),
        )
        for i in range(count)
    ]
