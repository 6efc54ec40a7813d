"""Conversations in a finetuning run: their template, what is scored, what is shown."""

import json

import jax
import jax.numpy as jnp
import pytest
from zoo.chat.templates import chat_tokenizer, marked, without_marks
from zoo.decoders import make_decoder

from ldjax.compare.texts import watched_texts
from ldjax.data.conversation import Conversation, answer
from ldjax.data.drawn import DrawnText
from ldjax.data.preferences import PreferenceRow
from ldjax.data.templates.shown import ShownExample
from ldjax.finetune import prepare
from ldjax.finetune.probes import add_initial
from ldjax.finetune.rows import shown_first, training_rows
from ldjax.finetune.run import finetune
from ldjax.finetune.settings.config import Config
from ldjax.finetune.settings.records import Objective, Texts, Tokens
from ldjax.finetune.start import Base
from ldjax.finetune.texts import Data, Encoder, find_lengths, load_texts
from ldjax.models import Pretrained, Transformer, llama_config, load, save
from ldjax.report.page import write_page

ASKED = {"role": "user", "content": "Why?"}
SO = {"role": "assistant", "content": "So."}
TEXT = PreferenceRow("Why?", {"chosen": " So.", "rejected": " No."}, "a:2")


def row(number=1, *, asks="Why?", follows=()):
    prompt = Conversation((ASKED | {"content": asks},))
    chosen = Conversation((SO, *follows))
    return PreferenceRow(
        prompt, {"chosen": chosen, "rejected": answer("No.")}, f"a:{number}"
    )


@pytest.fixture
def base(tmp_path):
    (tmp_path / "chat").mkdir()
    tokenizer = chat_tokenizer(tmp_path / "chat", end="<|im_end|>")
    tokenizer = tokenizer.with_chat_template(marked("thinking"))
    model, params = make_decoder("llama", vocab_size=tokenizer.vocab_size, num_layers=1)
    return Base(model, model, params, tokenizer)


def shown(base, row, **tokens):
    encode = Encoder.of(Tokens(**tokens), base)
    return "".join(text for text, _ in shown_first([row], encode, ["chosen"])[0].pieces)


def test_the_template_is_the_models_a_files_or_none(base):
    thinking = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
    assert shown(base, row()).startswith(thinking)
    assert shown(base, row(), chat_template="none") == (
        "<s>Human: Why?\nAssistant: So.<|im_end|>"
    )
    assert shown(base, row(), chat_template="none", document_start=False) == (
        "Human: Why?\nAssistant: So.<|im_end|>"
    )
    # Texts are read as before, whatever the template.
    assert shown(base, TEXT) == shown(base, TEXT, chat_template="none")


def test_a_template_of_a_file_is_that_of_samples_too_and_is_kept(base, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(marked("zephyr"))
    encode = Encoder.of(Tokens(chat_template=str(path)), base)
    assert encode.tokenizer.chat_template == marked("zephyr")
    prompt = "<|user|>\nWhy?<|im_end|>\n<|assistant|>\n"
    for tokenizer in (None, base.tokenizer):
        made = encode(row(), tokenizer=tokenizer).examples["chosen"]
        assert encode.tokenizer.decode(made.prompt_ids) == prompt
    (filled,) = add_initial(
        *([row()], base, encode), max_new_tokens=4, batch_size=1, seed=0
    )
    drawn = filled.responses["chosen_initial"]
    assert isinstance(drawn, DrawnText)
    made = encode(filled).examples["chosen_initial"]
    assert list(made.response_ids) == list(drawn.ids)
    assert encode.tokenizer.decode(made.prompt_ids) == prompt
    with pytest.raises(FileNotFoundError, match="there is no chat template /nowhere"):
        Encoder.of(Tokens(chat_template="/nowhere"), base)


def test_the_date_is_said_and_no_clock_is_read(base):
    tokenizer = base.tokenizer.with_chat_template("{{ strftime_now('%d %B') }}|")
    dated = base._replace(tokenizer=tokenizer)
    asked = Conversation((ASKED,))
    for date, said in (("2024-07-26", "26 July|"), ("2025-01-02", "02 January|")):
        encode = Encoder.of(Tokens(chat_date=date), dated)
        template = encode.chat_template
        assert template is not None
        assert template.asked(asked) == said


def test_wrong_options_are_refused_before_anything_is_read():
    for options, said in (
        (
            {"chat_template": "/no.jinja"},
            "--chat-template must be auto, none or a file",
        ),
        ({"chat_date": "today"}, "--chat-date must be a date such as 2024-07-26"),
    ):
        with pytest.raises(ValueError, match=said):
            Config.of(**options).resolved().check()


def test_only_the_assistants_turns_are_trained_on(base):
    encode = Encoder.of(Tokens(), base)
    rows, _ = training_rows(
        [row(follows=(ASKED, SO))], encode, target=["chosen"], max_length=16
    )
    targets = rows.targets[rows.mask].tolist()
    said = encode.tokenizer.decode(targets)
    assert said == "So.<|im_end|><think>\n\n</think>\n\nSo.<|im_end|>"
    _, counts = training_rows(
        [row()],
        Encoder.of(Tokens(chat_template="none"), base),
        target=None,
        max_length=16,
    )
    (note,) = (name for name in counts if not name.startswith("num_"))
    assert note.startswith("the model has no chat template")


#: Rows that a chat template refuses, and why.
REFUSED = {
    "thinking": (
        {"prompt": [ASKED], "completion": [SO | {"reasoning": "Hm"}, ASKED, SO]},
        "'chosen': the chat template writes message 2 of 4, of the assistant, other",
    ),
    "folded": (
        {"prompt": [ASKED, ASKED], "completion": [SO]},
        "line 13 of the chat template: Conversation roles must alternate",
    ),
}


def of_file(base, folder, dialect, **how):
    """Four rows, the second of which is refused; a run's own reading of them."""
    turns = [(ASKED | {"content": f"Why {n}?"}, f"So {n}.") for n in range(4)]
    rows = [{"prompt": [asked], "completion": said} for asked, said in turns]
    rows[1], problem = REFUSED[dialect]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = without_marks(marked(dialect))
    base = base._replace(tokenizer=base.tokenizer.with_chat_template(template))
    encode = Encoder.of(Tokens(), base)
    texts = Texts(data=str(path), **how)
    return path, problem, base, texts, encode


@pytest.mark.parametrize("dialect", REFUSED)
def test_a_row_that_the_template_refuses_is_named_or_left_out(base, tmp_path, dialect):
    path, problem, _, texts, encode = of_file(base, tmp_path, dialect)
    found = load_texts(texts, Objective("sft"), seed=0).read_by(encode)
    with pytest.raises(ValueError, match=f"^{path}:2: {problem}.*$") as caught:
        find_lengths(found, encode)
    assert "\n" not in str(caught.value)
    for max_rows, used in ((None, [1, 3, 4]), (2, [1, 3])):
        how = {"on_bad_row": "skip", "max_rows": max_rows}
        _, _, _, texts, _ = of_file(base, tmp_path, dialect, **how)
        found = load_texts(texts, Objective("sft"), seed=0).read_by(encode)
        assert [row.source for row in found.train] == [f"{path}:{n}" for n in used]
        assert find_lengths(found, encode).given > 2
        assert found.summary["train"]["num_skipped"] == 1
        assert found.summary["train"]["skipped"] == [str(caught.value)]
        said = "note: 1 bad rows are left out, the first"
        assert found.told[1:] == (f"{said} {caught.value}",)
        # What it says is no answer of the rows that are used.
        others = {str(row.responses["irr_train"]) for row in found.train}
        assert others <= {str(row.responses["chosen"]) for row in found.train}


def test_a_file_of_such_rows_alone_is_refused_with_the_first(base, tmp_path):
    path, problem, _, texts, encode = of_file(
        base, tmp_path, "folded", on_bad_row="skip"
    )
    path.write_text((json.dumps(REFUSED["folded"][0]) + "\n") * 2)
    found = load_texts(texts, Objective("sft"), seed=0)
    first = rf"has no good row\. The first problem: {path}:1: {problem}"
    with pytest.raises(ValueError, match=first):
        found.read_by(encode)


def test_such_rows_are_left_out_of_what_a_comparison_watches(base, tmp_path):
    path, _, base, texts, _ = of_file(base, tmp_path, "thinking", on_bad_row="skip")
    watched = watched_texts(
        path,
        **{"model": base.model, "tokenizer": base.tokenizer},
        **{"texts": texts, "tokens": Tokens(), "prompts": 9, "batch_size": 4},
        seed=0,
    )
    places = {json.loads(line)["source"] for line in watched.lines}
    assert places == {f"{path}:{n}" for n in (1, 3, 4)}


@pytest.mark.slow
def test_a_run_on_conversations(tmp_path, monkeypatch):
    """With the model's own template, which has no marks: from messages to the page."""
    (tmp_path / "chat").mkdir()
    tokenizer = chat_tokenizer(tmp_path / "chat", end="<|im_end|>")
    tokenizer = tokenizer.with_chat_template(without_marks(marked("zephyr")))
    config = llama_config(
        vocab_size=tokenizer.vocab_size, width=16, num_layers=1, num_heads=2
    )
    model = Transformer(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    save(tmp_path / "tiny", Pretrained(model, params, config, tokenizer))
    rows = [row(i, asks=f"Why {i}?", follows=(ASKED, SO)) for i in range(8)]
    data = Data(rows, [], {})
    monkeypatch.setattr(prepare, "load_texts", lambda *_, **__: data)
    config = Config.of(
        **{"model": str(tmp_path / "tiny"), "cache": tmp_path, "out": tmp_path / "run"},
        **{"smoke": True, "data": "messages", "one_step": False},
        **{"nodes": 1, "token_maps": 0},
    )
    told = []
    done = finetune(config, tell=told.append)
    assert done.holds
    kept = load(done.run.path).tokenizer
    assert kept is not None
    assert kept.chat_template == tokenizer.chat_template
    (first,) = (each for each in told if isinstance(each, ShownExample))
    text = "<|user|>\nWhy 0?<|im_end|>\n<|assistant|>\n"
    assert first.pieces[:2] == ((text, False), ("So.<|im_end|>", True))
    (shown_,) = done.run.summary["first_example"]
    assert shown_["pieces"][0] == [text, False]
    assert "as the model reads it" in write_page([done.run]).read_text()
