"""Hostile input by kind: what a user may do wrong, or have done to them."""

import json
import os
import signal

from hostile.world import PAIR, Case, a_parquet, packed, pairs, write_rows

TINY = ("--smoke", "--init", "base")
MODEL = ("--smoke", "--model", "model", "--data", "pairs.jsonl", "--max-length", "32")
#: Scripts that are quick to refuse, with what keeps them so.
WRITERS = {
    "finetune.py": ("--smoke", "--model", "model", "--data", "pairs.jsonl"),
    "pretrain.py": ("--smoke", "--text", "text.txt"),
    "squeezing.py": ("--smoke",),
    "mnist.py": ("--smoke",),
    "kernel.py": ("--smoke",),
}


def _change(name, act):
    """A change of the folder with a name."""

    def change(folder):
        return act(folder)

    change.__name__ = name
    return change


def _bytes(path, data):
    name = f"{path} {data[:20]!a}"
    return _change(name, lambda folder: (folder / path).write_bytes(data))


def _cut(path, keep):
    def act(folder):
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: int(keep * len(data))])

    return _change(f"{path} cut to {keep}", act)


def _lost() -> list[Case]:
    """A run that is there, and a command that would end it."""
    wrong = {
        "finetune.py": ("--learning-rate", "-1"),
        "pretrain.py": ("--learning-rate", "-1"),
        "squeezing.py": ("--points", "1"),
        "mnist.py": ("--epochs", "0"),
        "kernel.py": ("--top", "0"),
        "displacement.py": ("--observations", "0"),
        "kernel_stability.py": ("--times", "1"),
        "mitigation.py": ("--judged", "0"),
        "phenomena.py": ("--samples", "0"),
    }
    out = ("--out", "old", "--overwrite")
    cases = [
        Case("lost", script, (*args, *out), args[0], is_fast=True)
        for script, args in wrong.items()
    ]
    for script, args in WRITERS.items():
        resume = "--resume.* or " if script in ("finetune.py", "pretrain.py") else ""
        cases.append(
            Case(
                "lost",
                script,
                (*args, "--out", "old"),
                f"old already holds a run; nothing.*{resume}--overwrite to replace",
                is_fast=script in ("squeezing.py", "pretrain.py"),
            )
        )
    for script in ("squeezing.py", "pretrain.py", "mnist.py"):
        args = (*WRITERS[script], "--out", "model", "--overwrite")
        cases.append(
            Case("lost", script, args, "not a run", is_fast=script == "squeezing.py")
        )
    data = _change(
        "data in the run",
        lambda folder: write_rows(folder / "old" / "pairs.jsonl", pairs()),
    )
    here = ("--smoke", "--model", "model", "--data", "old/pairs.jsonl")
    return [
        *cases,
        Case("lost", "finetune.py", (*here, *out), "holds what --data names", data),
        Case("lost", "finetune.py", (*TINY, "--out", "base", "--overwrite"), "--init"),
        Case(
            "lost",
            "finetune.py",
            (*TINY, "--out", "run", "--overwrite", "--clip", "nan"),
            "--clip",
        ),
        Case("lost", "finetune.py", (*TINY, "--out", "run", "--resume", "--seed", "3")),
        Case(
            "lost",
            "pretrain.py",
            ("--out", "old", "--resume", "--overwrite"),
            "contradict",
            is_fast=True,
        ),
    ]


def _paths() -> list[Case]:
    """Places that are no place for a run."""
    (non_utf,) = (os.fsdecode(b"\xff\xfe"),)
    places = {
        "text.txt": "text.txt is a file, no folder",
        "text.txt/": "text.txt is a file, no folder",
        "text.txt/below/it": "text.txt is a file, no folder",
        "a" * 300: "File name too long",
        f"{'a' * 200}/{'b' * 300}": "File name too long",
        non_utf: "is not UTF-8",
        f"new/{non_utf}": "is not UTF-8",
        "/": "not a run",
        ".": "not a run",
        "..": "not a run",
        "./model/": "not a run",
        "model/../model": "not a run",
        "/proc/ldjax": "/proc/ldjax",
        "/dev/null": "/dev/null is a file",
        "dangling": "is a link to nowhere: nothing",
        "circle": "",
    }

    def links(folder):
        (folder / "dangling").symlink_to("nowhere")
        (folder / "circle").symlink_to("circle")

    change = _change("links", links)
    cases = []
    for place, says in places.items():
        for script in ("squeezing.py", "pretrain.py"):
            args = (*WRITERS[script], "--out", place, "--overwrite")
            fast = script == "squeezing.py"
            cases.append(Case("paths", script, args, says, change, is_fast=fast))

    def before(folder):
        for name in (".new.partial", ".page.html.partial"):
            (folder / name / "made-before").mkdir(parents=True)
        (folder / "link").symlink_to("old")

    made = _change("partial folders", before)
    smoke = ("--smoke",)
    return [
        *cases,
        Case("paths", "squeezing.py", (*smoke, "--out", "new"), "", made, "runs"),
        Case("paths", "squeezing.py", (*smoke, "--out", "new/"), "", None, "runs"),
        Case("paths", "squeezing.py", (*smoke, "--out=~/mine"), "", None, "runs"),
        Case("paths", "squeezing.py", (*smoke, "--out", "link"), "holds a run", made),
        Case(
            "paths",
            "ldjax.report",
            ("old", "--out", "page.html"),
            "partial is a folder",
            made,
            is_fast=True,
        ),
        *(
            Case("paths", "ldjax.report", args, says, is_fast=True)
            for args, says in {
                (): "name at least one run",
                ("nowhere",): "nowhere is not a run folder",
                ("text.txt",): "not a run folder",
                ("model",): "model/config.json|no metrics.parquet",
                ("~/nowhere",): "not a run folder",
                ("old", "--out", "model"): "model is a folder",
                ("old", "--out", "text.txt/page.html"): "text.txt",
                ("old", "--out", "/proc/page.html"): "page.html",
                ("old", "--out", "a" * 300): "File name too long",
            }.items()
        ),
        *(
            Case("paths", "finetune.py", ("--smoke", *args), says)
            for args, says in {
                ("--init", "text.txt"): "no folder text.txt",
                ("--init", "nowhere"): "no folder nowhere",
                ("--init", "."): "",
                ("--model", "~/nowhere"): "nowhere",
                ("--model", "model", "--data", "model"): "model",
                ("--model", "model", "--data", "nowhere"): "nowhere",
            }.items()
        ),
    ]


def _numbers() -> list[Case]:
    """Numbers that are none, or beyond all others."""
    options = {
        "finetune.py": {
            "--learning-rate": ("nan", "inf", "-1", "1e-60", "1e400"),
            "--epochs": ("nan", "inf", "-1", "1e300"),
            "--warmup-steps": ("-2", "1e21", "1" + 21 * "0"),
            "--clip": ("nan", "-1", "-inf"),
            "--batch-size": ("-1", str(10**30)),
            "--seed": ("-1", str(10**30)),
            "--max-length": ("0", "-5", "1"),
            "--max-prompt-length": ("-1",),
            "--probe-prompts": ("0", "-3"),
            "--tracked": ("0", "999999"),
            "--evaluations": ("0",),
            "--checkpoint-every": ("0",),
            "--token-maps": ("-1",),
            "--max-rows": ("-1",),
            "--lora-rank": ("-1", "999999999"),
            "--lora-alpha": ("nan", "1"),
            "--coefficients": ("beta nan", "nonsense 1", "beta"),
            "--target": ("nobody", ""),
            "--loss": ("ppo",),
            "--world": ("large",),
        },
        "pretrain.py": {
            "--learning-rate": ("nan", "inf", "-1"),
            "--epochs": ("nan", "inf", "-1"),
            "--weight-decay": ("nan", "-2"),
            "--clip": ("nan", "-1"),
            "--betas": ("1 1", "-1 0"),
            "--context": ("0", "-1"),
            "--vocab-size": ("0", "-1"),
            "--documents": ("0",),
            "--held-out-share": ("2", "nan", "-1"),
        },
        "squeezing.py": {
            "--points": ("1", "-1", "many"),
            "--seed": ("-1", str(10**30)),
        },
        "mnist.py": {
            "--epochs": ("0", "-1", "inf"),
            "--batch-size": ("-1", str(10**9)),
            "--classes": ("1 2 30", "1 2"),
            "--learning-rate": ("nan",),
            "--num-train": ("-1",),
        },
        "kernel.py": {"--top": ("0",), "--learning-rate": ("nan", "inf", "-1")},
    }
    beside = {("--tracked", "999999"), ("--batch-size", str(10**9))}
    base = {
        "finetune.py": MODEL[1:5],
        "pretrain.py": ("--text", "text.txt"),
    }
    cases = []
    for script, values in options.items():
        for option, texts in values.items():
            for text in texts:
                # Looked at even where a smoke test has a number of its own; not what
                # is too large beside another option, which it has replaced as well.
                smoke = () if (option, text) in beside else ("--smoke",)
                given = (*smoke, *base.get(script, ()), option, *text.split())
                cases.append(Case("numbers", script, (*given, "--out", "new"), option))
    # Read before the options, or large and allowed.
    return [
        case._replace(ends="may run")
        if case.args[-4:-2] in {("--clip", "-inf"), ("--learning-rate", "1e-60")}
        else case
        for case in cases
    ]


def _data() -> list[Case]:
    """Files that hold something else than one expects."""
    whole = (json.dumps(PAIR) + "\n").encode()
    contents = {
        b"": "",
        b"\n\n\n": "",
        b"\x00" * 100: "",
        b"PAR1\x00\x01\x02": "",
        packed(whole): "gz",
        packed(whole)[:-4]: "gz",
        b"\xff\xfe" + whole.decode().encode("utf-16-le"): "",
        b"[1, 2]\n": "JSON object",
        b'{"prompt": "a"}\n': "prompt-only",
        b'{"prompt": 3, "chosen": "b", "rejected": "c"}\n': "text",
        b'{"prompt": "a", "chosen": ["b"], "rejected": "c"}\n': "",
        b'{"prompt": "a", "chosen": "b", "rejected": null}\n': "",
        b'{"prompt": "a", "chosen": "b", "chosen": "c"}\n': "twice",
        b"[" * 100_000: "deep",
        b'{"a":' * 100_000: "deep",
        b'{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}\n': "half a character",
        b'{"prompt": "", "chosen": "b", "rejected": " "}\n': "",
        b'{"prompt": "a", "chosen": 1e400, "rejected": "c"}\n': "",
        b"just some words\n": "JSON",
        b'{"messages": []}\n': "",
        b'{"prompt": "a", "chosen": "b", "rejected": "c"} {}\n': "JSON",
        b"\xc3\x28\n": "UTF-8",
    }
    options = (*MODEL, "--loss", "dpo", "--out", "new")
    cases = [
        Case("data", "finetune.py", options, says, _bytes("pairs.jsonl", data))
        for data, says in contents.items()
    ]
    blank = b'{"prompt": "a", "chosen": " ", "rejected": "c"}\n' * 8
    text = ("--smoke", "--text", "text.txt", "--out", "new")
    return [
        *cases,
        Case(
            "words",
            "finetune.py",
            options,
            "--blank keep.*--on-bad-row skip|--on-bad-row skip.*--blank keep",
            _bytes("pairs.jsonl", blank),
        ),
        Case("data", "finetune.py", options, "", _change("parquet", _parquet)),
        *(
            Case("data", "pretrain.py", text, says, _bytes("text.txt", data))
            for data, says in {
                b"": "",
                b"a": "",
                b"\xff\xfe\x00": "",
                b"\x1f\x8b": "gz",
                b"\n" * 1000: "",
                b"\x00" * 1000: "",
            }.items()
        ),
        Case("data", "pretrain.py", (*text, "--field", "prompt"), "", None),
        Case("data", "mnist.py", ("--smoke", "--mnist-dir", "model"), "model has none"),
        Case("data", "mnist.py", ("--smoke", "--mnist-dir", "nowhere"), "nowhere"),
    ]


def _parquet(folder):
    a_parquet(folder / "pairs.jsonl")


def _settings(**changes):
    def act(folder):
        path = folder / "model" / "config.json"
        content = json.loads(path.read_text())
        content = {k: v for k, v in (content | changes).items() if v != "gone"}
        path.write_text(json.dumps(content))

    return _change(f"config.json {changes}", act)


def _models() -> list[Case]:
    """Models that are not what their files say."""
    changes = [
        _settings(n_layer=10**9),
        _settings(n_layer=10**4),
        _settings(n_layer=-1),
        _settings(n_layer=0),
        _settings(n_layer="one"),
        _settings(n_layer=1.5),
        _settings(n_layer=None),
        _settings(n_layer=True),
        _settings(n_embd=10**12),
        _settings(n_embd=7),
        _settings(n_head=0),
        _settings(n_head=3),
        _settings(n_head=10**9),
        _settings(vocab_size=1),
        _settings(vocab_size=10**12),
        _settings(n_positions=0),
        _settings(n_positions=10**12),
        _settings(model_type="bert"),
        _settings(model_type="gone"),
        _settings(model_type=["gpt2"]),
        _settings(layer_norm_epsilon="small"),
        _settings(activation_function="snake"),
        *(
            _bytes(f"model/{name}", data)
            for name in ("config.json", "tokenizer.json", "model.safetensors")
            for data in (b"", b"{}", b"[]", b"\x00\xff\xfe", b"[" * 100_000)
        ),
        _bytes("model/config.json", b'{"model_type": "gpt2", "n_layer": 1e400}'),
        _bytes("model/tokenizer_config.json", b"["),
        _bytes("model/model.safetensors", b"\xff" * 8 + b"{}"),
        _cut("model/model.safetensors", 0.9),
        _cut("model/model.safetensors", 0.01),
        _cut("model/tokenizer.json", 0.5),
    ]
    args = (*MODEL, "--out", "new")
    return [
        Case("model files", "finetune.py", args, "", change, "may run")
        if "tokenizer_config" in change.__name__
        else Case("model files", "finetune.py", args, "", change)
        for change in changes
    ]


def _damaged() -> list[Case]:
    """Runs with damaged files, read by the report, by `--init` and by `--resume`."""
    names = ("config.json", "tokenizer.json", "metrics.parquet", "summary.json")
    names += ("probes.jsonl", "tokens.npz", "token_maps/000000.npz")
    needed = {"ldjax.report": {"metrics.parquet"}, "--init": set(names[:2])}
    cases = []
    for name in names:
        for change in (
            _bytes(f"run/{name}", b""),
            _cut(f"run/{name}", 0.5),
            _bytes(f"run/{name}", b'{"something": "else"}'),
        ):
            # A summary may say anything.
            is_told = name != "summary.json" or "else" not in change.__name__
            file = name.rpartition("/")[2] if is_told else ""
            must = name in needed["ldjax.report"]
            ends = "refused" if must else "runs"
            cases.append(Case("damaged", "ldjax.report", ("run",), file, change, ends))
            args = ("--smoke", "--init", "run", "--out", "new", "--loss", "dpo")
            if name in needed["--init"]:
                cases.append(Case("damaged", "finetune.py", args, file, change))
        change = _cut(f"run/{name}", 0.5)
        args = (*TINY, "--out", "run", "--resume")
        ends = "refused" if name == "config.json" else "may run"
        cases.append(Case("damaged", "finetune.py", args, "", change, ends))

    def newest(act, name):
        def change(folder):
            checkpoints = folder / "run" / "checkpoints"
            last = max(checkpoints.iterdir(), key=lambda path: int(path.name))
            for path in last.rglob("*"):
                if path.is_file():
                    act(path)

        return _change(f"newest checkpoint {name}", change)

    empty = newest(lambda path: path.write_bytes(b""), "emptied")
    half = newest(
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "cut",
    )
    gone = newest(lambda path: path.unlink(), "gone")
    for change in (empty, half, gone):
        init = ("--smoke", "--init", "run", "--out", "new")
        cases.append(Case("damaged", "finetune.py", init, "damaged", change))
        resume = (*TINY, "--out", "run", "--resume")
        cases.append(Case("damaged", "finetune.py", resume, "", change, "may run"))
    return cases


def _room() -> list[Case]:
    """Files that may not become as large as they have to."""
    cases = [
        Case(
            "no room",
            "finetune.py",
            (*TINY, "--out", "new"),
            "new/.* cannot be written: File too large",
            job={"bytes": limit},
            then=(*TINY, "--out", "new", "--resume") if limit > 10_000 else (),
        )
        for limit in (100, 500, 8_000, 60_000, 200_000)
    ]
    cases += [
        Case(
            "no room",
            "finetune.py",
            (*TINY, "--out", "run", "--overwrite"),
            "run/.* cannot be written: File too large",
            job={"bytes": limit},
        )
        for limit in (100, 500, 8_000)
    ]
    cases += [
        Case(
            "no room",
            script,
            (*args, "--out", "new"),
            "cannot be written: File too large",
            job={"bytes": limit},
        )
        for script, args in {
            "pretrain.py": ("--smoke",),
            "squeezing.py": ("--smoke",),
            "kernel.py": ("--smoke",),
        }.items()
        for limit in (300, 3_000)
    ]
    cases.append(
        Case(
            "no room",
            "ldjax.report",
            ("old",),
            "report.html cannot be written",
            job={"bytes": 100_000},
        )
    )
    return cases


def _stopped() -> list[Case]:
    """Ctrl-C and SIGTERM, at any moment."""
    moments = [{"seconds": 0.5}, {"when": "updates"}, {"seconds": 12.0}]
    cases = []
    for number in (signal.SIGINT, signal.SIGTERM):
        for moment in moments:
            job = {"signal": int(number), **moment}
            long = ("--smoke", "--init", "base", "--epochs", "3", "--out", "new")
            cases.append(
                Case(
                    "stopped",
                    "finetune.py",
                    long,
                    "finetune: stopped by (Ctrl-C|SIGTERM)",
                    ends="stopped",
                    job=job,
                    then=(*long, "--resume") if "when" in moment else (),
                )
            )
            cases.append(
                Case(
                    "stopped",
                    "pipeline.py",
                    ("--smoke", "--out", "new", "--cache", "cache"),
                    "pipeline: stopped by (Ctrl-C|SIGTERM)",
                    ends="stopped",
                    job=job
                    | ({"seconds": 2 * job["seconds"]} if "seconds" in job else {}),
                )
            )
    over = (*TINY, "--out", "run", "--overwrite")
    cases.append(
        Case(
            "stopped",
            "finetune.py",
            over,
            "the run in run is as it was",
            ends="stopped",
            job={"signal": int(signal.SIGINT), "when": "updates"},
        )
    )
    return cases


def _memory() -> list[Case]:
    """More than there is: refused in seconds."""
    args = ("--data", "pairs.jsonl", "--model", "model", "--out", "new")
    return [
        Case("memory", "finetune.py", (*args, "--batch-size", str(10**9)), ""),
        Case("memory", "finetune.py", (*args, "--lora-rank", str(10**9)), ""),
        Case("memory", "pretrain.py", ("--out", "new", "--context", str(10**9)), ""),
        Case("memory", "pretrain.py", ("--out", "new", "--batch-size", str(10**9))),
    ]


CASES = [
    *_lost(),
    *_paths(),
    *_numbers(),
    *_data(),
    *_models(),
    *_damaged(),
    *_room(),
    *_stopped(),
    *_memory(),
]
#: What a command must not have touched, unless the case changed it.
KEPT = ("old", "base", "run", "model")


def kept(case: Case) -> tuple[str, ...]:
    """The folders that must be as they were."""
    args = case.args
    if case.kind == "damaged":  # a report is written into it, or it goes on
        return tuple(name for name in KEPT if name != "run")
    if case.script == "ldjax.report" or args[-1:] == ("link",):
        return tuple(name for name in KEPT if name != "old")
    return KEPT
