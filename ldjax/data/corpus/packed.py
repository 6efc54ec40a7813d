"""Plain text as a model sees it: split in two, tokenized and packed into rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ldjax.data.corpus.bigram import bigram_loss, choose_k, fit_bigram
from ldjax.data.text import pack_documents, read_documents, split_documents
from ldjax.data.tokenizers import (
    Tokenizer,
    load_tokenizer,
    train_bpe,
    train_word_level,
)
from ldjax.data.world.world import make_world
from ldjax.equation.sequences import Sequences
from ldjax.files.digests import digest

__all__ = ["Corpus", "load_corpus", "make_corpus", "make_tokenizer"]


class Corpus(NamedTuple):
    """Packed documents of both halves, with what made and what judges them.

    Attributes:
      tokenizer: Trained on the training half, or given.
      train: Rows to train on.
      held_out: Rows of the held-out documents.
      sizes: Documents and tokens of both halves, and how many documents spell special
        tokens, which are text there.
      bigram: `k` and held-out loss (nats per token) of the bigram model.
      fingerprints: SHA-256 of text and tokenizer.
    """

    tokenizer: Tokenizer
    train: Sequences
    held_out: Sequences
    sizes: dict[str, int]
    bigram: dict[str, float]
    fingerprints: dict[str, str]


def load_corpus(
    paths: Sequence[Path],
    *,
    field: str,
    world: str,
    num_documents: int,
    tokenizer: str,
    vocab_size: int,
    context: int,
    held_out_share: float,
    seed: int,
) -> Corpus:
    """The documents of some files; without any, those of a toy world.

    Args:
      paths: Files as of `read_documents`.
      field: Of JSON lines, where the text is.
      world: Preset of the toy world, which has a tokenizer of its own.
      num_documents: How many it makes.
      tokenizer: Of files: see `make_tokenizer`.
      vocab_size: Of a BPE tokenizer that is trained.
      context: Length of a row, in tokens.
      held_out_share: Share of the documents that is held out.
      seed: Of the toy world and of the split.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it cannot be read, or there are too few documents.
    """
    if paths:
        documents, read_by = read_documents(paths, field=field), tokenizer
    else:
        made = make_world(world, seed=seed)
        documents = made.corpus(num_documents)
        read_by = train_word_level([" ".join(["", *made.words, "\n"])])
    return make_corpus(
        documents,
        tokenizer=read_by,
        vocab_size=vocab_size,
        context=context,
        held_out_share=held_out_share,
        seed=seed,
    )


def make_corpus(
    documents: Sequence[str],
    *,
    tokenizer: str | Tokenizer,
    vocab_size: int,
    context: int,
    held_out_share: float,
    seed: int,
) -> Corpus:
    """Split, tokenize and pack the documents, and fit the bigram model.

    Args:
      documents: The text.
      tokenizer: One, or which: see `make_tokenizer`.
      vocab_size: Of a BPE tokenizer that is trained.
      context: Length of a row, in tokens.
      held_out_share: Share of the documents that is held out.
      seed: Of the split.
    """

    def split(texts: Sequence[str]) -> tuple[list[str], list[str]]:
        return split_documents(texts, held_out_share=held_out_share, seed=seed)

    halves = split(documents)
    if isinstance(tokenizer, str):
        tokenizer = make_tokenizer(tokenizer, halves[0], vocab_size)

    def pack(texts: list[str]) -> Sequences:
        return pack_documents(
            tokenizer.encode_batch(texts),
            length=context,
            end_id=tokenizer.end_id,
            padding_id=tokenizer.padding_id,
        )

    train_rows, held_out_rows = map(pack, halves)
    k = choose_k(*map(pack, split(halves[0])), vocab_size=tokenizer.vocab_size)
    bigram = fit_bigram(train_rows, vocab_size=tokenizer.vocab_size)
    return Corpus(
        tokenizer,
        train_rows,
        held_out_rows,
        sizes={
            "train_documents": len(halves[0]),
            "train_tokens": int(train_rows.mask.sum()),
            "held_out_documents": len(halves[1]),
            "held_out_tokens": int(held_out_rows.mask.sum()),
            "special_as_text": sum(bool(tokenizer.special_in(d)) for d in documents),
        },
        bigram={"k": k, "loss": bigram_loss(bigram, held_out_rows, k=k)},
        fingerprints={
            "text": digest([json.dumps(documents)]),
            "tokenizer": digest([tokenizer.to_json()]),
        },
    )


def make_tokenizer(which: str, texts: list[str], vocab_size: int) -> Tokenizer:
    """The tokenizer that is asked for: "bpe", "words", or where one is."""
    if which == "bpe":
        return train_bpe(texts, vocab_size=vocab_size)
    if which == "words":
        return train_word_level(texts)
    return load_tokenizer(Path(which))
