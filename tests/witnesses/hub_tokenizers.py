"""Tokenizers as transformers reads them from a GGUF file, and texts to try them on."""

import gzip
import json
from pathlib import Path

from tokenizers import normalizers, pre_tokenizers
from witnesses.parity import library

from ldjax.data.everyday import everyday_pairs

HH = Path(__file__).parents[3] / "shared" / "data" / "hh"

#: What a reader of texts may stumble over.
HOSTILE = (
    "",
    " ",
    "   ",
    "\n\n",
    "\t \r\n x",
    "a  1, b   22 and 333\n\n1. one\n\n2. two 3½ x² Ⅷ ٣٤",
    "I'm you'LL they'Ve it's '' ''s",
    "e\u0301 é ﬁ ﬃ ① ｆｕｌｌ Å\u030a \u1e9b\u0323",
    "naïve Ünïcödé ß ẞ İı",
    "中文字符和標點。、！ 日本語テキスト 한국어 조선",
    "العربية עברית हिन्दी বাংলা ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u20e3 \ufe0f",
    "\u200b\u200d\u2060\ufeff zero\u00a0width\u2003spaces\u3000",
    "\x00\x01\x7f\x80\x9f",
    "\ue000 \U0010ffff \ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<s></s><unk><bos>",
    "x" * 300,
    " " * 70 + "y",
    "1234567890" * 5,
    "zzqq zzqqs <|tool|> <think>a b</think>",
    "_under__score_ camelCase SNAKE_CASE a.b.c::d->e",
    "https://example.org/?q=1&x=%20#frag",
    "▁▁ a▁b Ġ Ċ ĠĠ",
)


def texts(count):
    """Of everyday pairs, and of the real data where they are; hostile ones first."""
    found = list(HOSTILE)
    for file in (*everyday_pairs(), *sorted(HH.glob("*.jsonl.gz"))):
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            found += [text for line in lines for text in json.loads(line).values()]
    return [text for text in found if isinstance(text, str)][:count]


def theirs(file):
    """What transformers makes of it."""
    with_tokenizer = library("transformers").AutoTokenizer
    return with_tokenizer.from_pretrained(file.parent, gguf_file=file.name)


def as_published(backend, name):
    """transformers' reading, with what the published tokenizers do besides.

    It takes GPT-2's words for SmolLM's, without the split of digits; merges only for
    Llama 3's, and no composition of accents for Qwen2's.
    """
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    if name in ("llama-bpe", "llama-v3", "llama3"):
        backend.model.ignore_merges = True
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()


def compare(ours, reading, found):
    """Both ways to read special tokens; the texts whose ids differ."""
    backend = reading.backend_tokenizer
    differing = []
    for text in found:
        backend.encode_special_tokens = False
        wanted = backend.encode(text, add_special_tokens=False).ids
        backend.encode_special_tokens = True
        as_text = backend.encode(text, add_special_tokens=False).ids
        if ours.encode(text, read_special=True) != wanted or (
            ours.encode(text) != as_text
        ):
            differing.append(text)
    return differing
