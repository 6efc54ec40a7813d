"""Folders of models that are damaged or made up: one line at once, and no memory."""

import json
import resource
import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from zoo.decoders import LATER_STYLES, STYLES, pretrained

from ldjax.data.tokenizers import load_tokenizer, train_bpe, train_word_level
from ldjax.models import load, save, save_adapters
from ldjax.models.decoder.low_rank import LowRank

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Longest time to find out, in seconds, and memory, in bytes: a model of a thousand
#: numbers is read in a tenth of it.
MOST_SECONDS, MOST_BYTES = 10, 5 * 10**8


def message_of(folder, **how):
    """The one line that refuses a folder, or None where it can be loaded."""
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(folder, **how)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 2000
        assert str(folder) in message
    else:
        message = None
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert 1024 * grown < MOST_BYTES
    assert time.monotonic() - start < MOST_SECONDS
    return message


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each style, never to be changed."""
    folders = {}
    for style in (*STYLES, *LATER_STYLES):
        folders[style] = tmp_path_factory.mktemp("saved") / style
        save(folders[style], pretrained(style, tokenizer=train_word_level(["the cat"])))
    return folders


@pytest.fixture
def folder_of(saved, tmp_path):
    """Copies the folder of a style."""
    return lambda style: shutil.copytree(saved[style], tmp_path / "model")


def with_raw(folder, key, raw, name="config.json"):
    """Sets a key of a JSON file to JSON text, which may be none."""
    content = json.loads((folder / name).read_text())
    content.pop(key, None)
    head = json.dumps(content)[:-1]
    comma = ", " if content else ""
    (folder / name).write_text(f"{head}{comma}{json.dumps(key)}: {raw}}}")


DEEP = "[" * 100_000 + "]" * 100_000
WIDTHS = {"gpt2": "n_embd", "neox": "hidden_size", "llama": "hidden_size"}
LAYERS = {"gpt2": "n_layer", "neox": "num_hidden_layers", "llama": "num_hidden_layers"}


@pytest.mark.parametrize("shapes_only", [False, True])
@pytest.mark.parametrize(
    ("style", "key", "raw", "parts"),
    [
        ("gpt2", "n_layer", "1000000000", ["`n_layer`"]),
        ("gpt2", "n_layer", "10000", ["`n_layer`", "10000"]),
        ("gpt2", "n_layer", "1000", ["`n_layer` is 1000", "tensors of 2", "h.1."]),
        ("llama", "num_hidden_layers", "1000000000", ["`num_hidden_layers`"]),
        ("llama", "num_hidden_layers", "900", ["`num_hidden_layers` is 900"]),
        ("neox", "num_hidden_layers", "500", ["tensors of 2", "gpt_neox.layers.1."]),
        ("gpt2", "n_embd", "400000000", ["`n_embd` is 400000000", "wte.weight is ["]),
        ("gpt2", "vocab_size", "2000000000", ["`vocab_size` is", "wte.weight is [23,"]),
        ("gpt2", "n_positions", "2000000000", ["`n_positions` is", "wpe.weight is ["]),
        ("gpt2", "n_inner", "2000000000", ["`n_inner` is", "h.0.mlp.c_fc.weight is ["]),
        ("neox", "intermediate_size", "1000000000", ["dense_h_to_4h.weight is [24,"]),
        ("llama", "intermediate_size", "1000000000", ["mlp.up_proj.weight is [24,"]),
        ("llama", "hidden_size", "1000000000", ["`hidden_size`", "embed_tokens"]),
        ("llama", "head_dim", "1000000000", ["times `head_dim`", "q_proj.weight is ["]),
        ("llama", "num_attention_heads", "2000000", ["q_proj.weight is ["]),
        ("qwen2", "num_key_value_heads", "1", ["k_proj.weight is ["]),
        ("gpt2", "n_embd", "1" + "0" * 30, ["`n_embd` must be at most"]),
        ("gpt2", "n_embd", "1" + "0" * 5000, ["is not whole JSON"]),
        ("gpt2", "n_embd", "1e400", ["`n_embd` must be finite"]),
        ("gpt2", "n_embd", "NaN", ["`n_embd` must be finite"]),
        ("gpt2", "n_layer", "-Infinity", ["`n_layer` must be finite"]),
        ("gpt2", "n_layer", "-1", ["`n_layer` must be a whole number from 1 on"]),
        ("gpt2", "n_layer", "0", ["`n_layer` must be a whole number from 1 on"]),
        ("gpt2", "n_layer", '"2"', ["`n_layer` must be a number"]),
        ("gpt2", "n_layer", "true", ["`n_layer` must be a number"]),
        ("gpt2", "n_layer", "[2]", ["`n_layer` must be a number"]),
        ("gpt2", "n_layer", '{"a": 2}', ["`n_layer` must be a number"]),
        ("gpt2", "n_layer", DEEP, ["config.json is nested too deeply"]),
        ("gpt2", "n_layer", f"[{'9, ' * 9999}9]", ["`n_layer` must be a number"]),
        ("gpt2", "layer_norm_epsilon", "-1", ["`layer_norm_epsilon` must be positive"]),
        ("gpt2", "layer_norm_epsilon", "NaN", ["`layer_norm_epsilon` must be finite"]),
        ("llama", "rms_norm_eps", "0", ["`rms_norm_eps` must be positive"]),
        ("llama", "rope_theta", "1e999", ["`rope_theta` must be finite"]),
        ("llama", "rope_scaling", DEEP, ["nested too deeply"]),
        ("llama", "rope_scaling", "7", ["the rotary settings are 7"]),
        (
            "llama",
            "rope_scaling",
            '{"rope_type": "linear", "factor": -2}',
            ["`factor`"],
        ),
        ("llama", "rope_scaling", '{"rope_type": ["linear"]}', ["rotary scaling is"]),
        ("neox", "rotary_pct", "1e308", ["`rotary_fraction` of `head_dim`"]),
        ("neox", "rotary_pct", "NaN", ["`rotary_pct` must be finite"]),
        ("qwen2", "layer_types", DEEP, ["nested too deeply"]),
        ("gpt2", "model_type", '["gpt2"]', ["`model_type` is ['gpt2']"]),
        ("gpt2", "model_type", '{"gpt2": 1}', ["`model_type` is {'gpt2': 1}"]),
        ("phi3", "intermediate_size", "1000000000", ["mlp.down_proj.weight is ["]),
        ("phi3", "head_dim", "1000000000", ["o_proj.weight is ["]),
        ("phi3", "rope_scaling", '{"type": "longrope"}', ["'longrope'", "Phi-3"]),
        ("gemma2", "num_hidden_layers", "900", ["`layer_types` must be"]),
        ("gemma2", "query_pre_attn_scalar", "1e400", ["must be finite"]),
        ("gemma2", "attn_logit_softcapping", "0", ["must be positive"]),
        ("gemma3", "sliding_window", "-1", ["`sliding_window` must be"]),
        ("gemma3", "rope_parameters", "7", ["`rope_parameters` is 7"]),
        ("gemma3", "rope_parameters", '{"full_attention": 7}', ["settings are 7"]),
        ("gemma3", "layer_types", DEEP, ["nested too deeply"]),
        ("gemma3", "layer_types", f"[{'9, ' * 9999}9]", ["`layer_types` must be"]),
        ("olmo3", "rope_scaling", DEEP, ["nested too deeply"]),
        ("smollm3", "no_rope_layers", '{"a": 1}', ["`no_rope_layers` must be"]),
        ("smollm3", "no_rope_layers", f"[{'9, ' * 9999}9]", ["`no_rope_layers`"]),
    ],
)
def test_a_config_out_of_proportion_is_one_line(
    folder_of, style, key, raw, parts, shapes_only
):
    folder = folder_of(style)
    with_raw(folder, key, raw)
    message = message_of(folder, shapes_only=shapes_only)
    assert message is not None
    assert "config.json" in message
    for part in parts:
        assert part in message


RAW = (
    *("null", "true", "false", '""', '"x"', "[]", "[1]", "{}", '{"a": [0]}'),
    *("0", "-1", "0.5", "3", "10000", "1000000000", "1e400", "-1e400", "NaN"),
    *("1" + "0" * 25, "1e-320", '"\\ud800"', DEEP),
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("style", [*STYLES, *LATER_STYLES])
def test_any_value_of_any_setting_is_read_or_one_line(folder_of, style):
    folder = folder_of(style)
    file = folder / "config.json"
    whole = file.read_text()
    for key in (*json.loads(whole), "rope_parameters", "head_dim", "layer_types"):
        for raw in RAW:
            file.write_text(whole)
            with_raw(folder, key, raw)
            message_of(folder)


def header_of(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(file, change):
    """Changes the header of a file of tensors; `change` may return other bytes."""
    header, rest = header_of(file)
    changed = change(header)
    text = json.dumps(header).encode() if changed is None else changed
    file.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def overlapping(header):
    header["transformer.ln_f.bias"]["data_offsets"] = header["transformer.ln_f.weight"][
        "data_offsets"
    ]


NAME = "transformer.wte.weight"
MODELS = (
    '{"num_steps": 1, "model": null}',
    '{"num_steps": 1, "model": {"width": 3}}',
    '{"num_steps": "x", "model": {}}',
)
HEADERS = {
    "overlapping": overlapping,
    "beyond the end": lambda h: h[NAME].update(data_offsets=[0, 10**15]),
    "backwards": lambda h: h[NAME].update(data_offsets=[100, 0]),
    "negative": lambda h: h[NAME].update(data_offsets=[-8, 0]),
    "another size": lambda h: h[NAME].update(shape=[2, 2]),
    "a huge shape": lambda h: h[NAME].update(shape=[2**62, 2**62]),
    "a negative shape": lambda h: h[NAME].update(shape=[-1]),
    "no shape": lambda h: h[NAME].__delitem__("shape"),
    "an unknown type": lambda h: h[NAME].update(dtype="Q4"),
    "no JSON": lambda _: b"{" * 40,
    "no UTF-8": lambda _: b"\xff" * 40,
    "an array": lambda _: b"[]",
    "nested": lambda _: DEEP.encode(),
    "nothing": lambda _: b"{}",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_damaged_header_is_one_line(folder_of, kind):
    folder = folder_of("gpt2")
    with_header(folder / FILE, HEADERS[kind])
    assert message_of(folder) is not None
    # A plan misses no tensors.
    assert message_of(folder, shapes_only=True) is not None or kind == "nothing"


@pytest.mark.parametrize("raw", ["3", "null", "[]", "{}", '{"model": 3}', *MODELS])
def test_damaged_settings_of_a_run_are_one_line(folder_of, raw):
    folder = folder_of("gpt2")
    with_raw(folder, "settings", raw)
    assert message_of(folder) is not None
    assert message_of(folder, shapes_only=True) is not None


@pytest.mark.parametrize("length", [0, 1, 2**30, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_one_line(folder_of, length):
    file = folder_of("gpt2") / FILE
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    assert "not a whole safetensors file" in (message_of(file.parent) or "")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000, -1])
def test_a_file_cut_anywhere_is_one_line(folder_of, size):
    file = folder_of("llama") / FILE
    file.write_bytes(file.read_bytes()[:size])
    assert "not a whole safetensors file" in (message_of(file.parent) or "")


@pytest.mark.parametrize(
    "name",
    [
        *("../other.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", ""),
        *("..\\other.safetensors", "C:other.safetensors", "a\0b"),
    ],
)
def test_an_index_names_no_file_outside_its_folder(folder_of, name):
    folder = folder_of("gpt2")
    shutil.copy(folder / FILE, folder.parent / "other.safetensors")
    where = dict.fromkeys(load_file(folder / FILE), name)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    assert "outside its folder" in (message_of(folder) or "")


INDEXES = {
    "numbers for files": '{"weight_map": {"a": 3}}',
    "null": '{"weight_map": null}',
    "nested": f'{{"weight_map": {DEEP}}}',
    "empty": '{"weight_map": {}}',
    "a shard that is not there": '{"weight_map": {"a": "b.safetensors"}}',
}


@pytest.mark.parametrize("text", INDEXES.values(), ids=INDEXES)
def test_a_damaged_index_is_one_line(folder_of, text):
    folder = folder_of("gpt2")
    (folder / FILE).unlink()
    (folder / INDEX).write_text(text)
    assert message_of(folder) is not None


def test_a_tensor_in_two_shards_is_named(folder_of):
    folder = folder_of("gpt2")
    tensors = load_file(folder / FILE)
    save_file(tensors, folder / "a.safetensors")
    save_file({NAME: np.zeros((23, 32), np.float32)}, folder / "b.safetensors")
    where = dict.fromkeys(tensors, "a.safetensors") | {NAME: "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    message = message_of(folder) or ""
    assert f"{NAME} twice, in a.safetensors and in b.safetensors" in message


ADAPTERS = {
    "r": ("0", "-1", "1e400", "2.5", '"x"', "null", "1000000000", "[]"),
    "lora_alpha": ("0", "-1", "NaN", '"x"', "null", "[]", "1e400"),
    "target_modules": ("3", "[3]", '{"a": 1}', "[]", "null", '"x"', "[[]]", "[null]"),
    "layers_to_transform": ('"ab"', "[0.5]", '["a"]', "[-1]", "[9]", "1e400", "{}"),
    "base_model_name_or_path": ("3", "null", '""', "[]"),
    "init_lora_weights": ("3", "{}", "[]", '"pissa"'),
    "rank_pattern": ("3", '{"(": 1}', '{".*": 0}', '"x"'),
    "use_dora": ("true", "3", "[1]"),
}


@pytest.mark.parametrize(
    ("key", "raw"), [(key, raw) for key, all_ in ADAPTERS.items() for raw in all_]
)
def test_damaged_settings_of_adapters_are_one_line(adapters, tmp_path, key, raw):
    folder = shutil.copytree(adapters, tmp_path / "adapters")
    with_raw(folder, key, raw, name="adapter_config.json")
    assert message_of(folder) is not None


@pytest.fixture(scope="module")
def adapters(saved, tmp_path_factory):
    """A folder of adapters of the Llama."""
    import jax

    from ldjax.models import add_adapters

    folder = tmp_path_factory.mktemp("adapters") / "new"
    with_them = add_adapters(
        load(saved["llama"]),
        LowRank(rank=2, alpha=4.0, targets=("query",)),
        key=jax.random.key(0),
    )
    save_adapters(folder, with_them, base=saved["llama"])
    return folder


# Tokenizers


def word_level(**changes):
    model = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "a": 1}}
    added = [
        {
            **{"id": 0, "content": "<|endoftext|>", "special": True},
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "model": model | {"unk_token": "<|unknown|>"} | changes,
    }


TOKENIZERS = {
    "empty": "",
    "an array": "[]",
    "nothing": "{}",
    "no model": '{"version": "1.0"}',
    "a model of no type": json.dumps({"version": "1.0", "model": {"vocab": {}}}),
    "nested": DEEP,
    "a number": "3",
    "a BPE without merges": json.dumps(
        {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}}}
    ),
    "a BPE whose merges are of no token": json.dumps(
        {
            "version": "1.0",
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]},
        }
    ),
    "no vocabulary": json.dumps(word_level(vocab={}) | {"added_tokens": []}),
    "a vocabulary of texts": json.dumps(word_level(vocab={"a": "b"})),
    "negative ids": json.dumps(word_level(vocab={"<|endoftext|>": -1})),
    "ids beyond the model": json.dumps(word_level(vocab={"<|endoftext|>": 10**9})),
    "no end token": json.dumps(word_level(vocab={"a": 1}) | {"added_tokens": []}),
    "a character map of nothing": json.dumps(
        word_level()
        | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    ),
    "a pattern that is none": json.dumps(
        word_level()
        | {
            "pre_tokenizer": {
                **{"type": "Split", "pattern": {"Regex": "("}},
                **{"behavior": "Isolated", "invert": False},
            }
        }
    ),
    "half of one": json.dumps(word_level())[:60],
}


@pytest.mark.parametrize("text", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_damaged_tokenizer_is_one_line(folder_of, text):
    folder = folder_of("gpt2")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text(text)
    for shapes_only in (False, True):
        message = message_of(folder, shapes_only=shapes_only)
        assert message is not None
        assert "tokenizer.json" in message


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b"\x00" * 50, b"\x80abc"])
def test_a_tokenizer_of_bytes_is_one_line(folder_of, data):
    folder = folder_of("gpt2")
    (folder / "tokenizer.json").write_bytes(data)
    assert "tokenizer.json" in (message_of(folder) or "")


def test_a_word_without_an_unknown_token_is_said_when_it_is_met(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(word_level()))
    tokenizer = load_tokenizer(file)
    assert tokenizer.encode("a") == [1]
    with pytest.raises(ValueError, match=r"cannot read the text 'b': .*unknown"):
        tokenizer.encode_batch(["a", "b"])


def test_a_tokenizer_that_would_leave_characters_out_is_refused(tmp_path):
    bpe = {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1}, "merges": []}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(word_level() | {"model": bpe}))
    tokenizer = load_tokenizer(file)
    assert tokenizer.encode("a a") == [1, 1]
    with pytest.raises(ValueError, match="would leave 'é' out of the text 'aéa'"):
        tokenizer.encode_batch(["a", "aéa"])


def test_a_tokenizer_that_drops_merges_at_random_does_so_no_more(tmp_path):
    train_bpe(["the cat sat on the mat"] * 3, vocab_size=280).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["dropout"] = 0.9
    file.write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    drawn = {tuple(tokenizer.encode("the cat sat")) for _ in range(20)}
    assert drawn == {
        tuple(
            train_bpe(["the cat sat on the mat"] * 3, vocab_size=280).encode(
                "the cat sat"
            )
        )
    }


BESIDE = ('{"eos_token": 3}', '{"eos_token": ["a"]}', '{"eos_token": {"x": 1}}', DEEP)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", BESIDE, ids=range(len(BESIDE)))
def test_special_tokens_of_no_text_are_left_out_or_one_line(tmp_path, name, text):
    train_bpe(["a"], vocab_size=260).save(tmp_path)
    (tmp_path / name).write_text(text)
    if text != DEEP:
        assert load_tokenizer(tmp_path).end_id == 0
        return
    with pytest.raises(ValueError, match=rf"{name} is nested too deeply\.$"):
        load_tokenizer(tmp_path)
