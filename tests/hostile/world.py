"""The folder in which hostile input is given, and what must be there afterwards."""

import contextlib
import gzip
import importlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import polars as pl
import tyro

from ldjax.cli import COMMANDS, STUDIES
from ldjax.data.tokenizers import train_bpe
from ldjax.models import Pretrained, Transformer, gpt2_config, save
from ldjax.report import __main__ as report
from ldjax.runs.folder import create_run

PAIR = {"prompt": "What is it?", "chosen": "A small thing.", "rejected": "Who knows."}


class Case(NamedTuple):
    """Something that a user may do.

    Attributes:
      kind: Which table it is of.
      script: The experiment.
      args: Of its command line.
      says: What its line says, a regular expression.
      change: Made in the folder before.
      ends: Whether it must be `refused`, or `may run` as well.
      job: More of what `server.py` takes.
      is_fast: It is refused before anything is computed.
      then: Arguments of a command that must succeed after it.
    """

    kind: str
    script: str
    args: tuple[str, ...]
    says: str = ""
    change: Callable[[Path], Any] | None = None
    ends: str = "refused"
    job: dict[str, Any] = {}  # noqa: RUF012
    is_fast: bool = False
    then: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the list of tests."""
        changed = getattr(self.change, "__name__", "") if self.change else ""
        extra = " ".join(str(value) for value in self.job.values())
        words = " ".join(word[:40] for word in self.args)
        return ascii(" ".join([self.kind, self.script, words, changed, extra]).strip())

    @property
    def needs_training(self) -> bool:
        """Whether it needs the runs `base` and `run`."""
        return self.kind == "damaged" or bool({"base", "run"} & set(self.args))

    @property
    def limit(self) -> float:
        """Seconds after which it hangs; longer where models are compiled."""
        is_refused = self.ends == "refused" and "bytes" not in self.job
        return 60.0 if is_refused else 300.0


def make_folder(folder: Path) -> Path:
    """Data, a model of the hub and a run that is done: what a user has."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "pairs.jsonl", pairs())
    texts = [f"Once there were {i} texts." for i in range(200)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    tokenizer = train_bpe([" ".join(PAIR.values())], vocab_size=280)
    config = gpt2_config(
        vocab_size=280, num_layers=1, width=8, num_heads=2, max_positions=64
    )
    model = Transformer(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    save(folder / "model", Pretrained(model, params, config, tokenizer))
    run = create_run(folder / "old", {"seed": 0})
    run.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
    (folder / "old" / "years.txt").write_text("of work")
    run.release()
    return folder


def pairs() -> list[dict[str, str]]:
    """Rows that differ in everything."""
    return [{name: f"{text} {i}" for name, text in PAIR.items()} for i in range(8)]


def write_rows(path: Path, rows: list[Any]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the locks."""
    if not folder.is_dir():
        return {}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def name_of(script: str) -> str:
    """What a script calls itself."""
    return script.removesuffix(".py").removeprefix("kernel_")


def program_of(script: str) -> Any:
    """The module of a script."""
    place, _ = (COMMANDS | STUDIES)[name_of(script)]
    return importlib.import_module(place)


def in_process(case: Case) -> dict[str, Any]:
    """Call the script's `main`, which is far quicker than to start it."""
    out, err = io.StringIO(), io.StringIO()
    status: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if case.script == "ldjax.report":
                status = report.main(report.parse(case.args))
            else:
                module = program_of(case.script)
                status = module.main(tyro.cli(module.Config, args=case.args))
        except SystemExit as end:
            status = end.code
    if isinstance(status, str):
        err.write(f"{status}\n")
        status = 1
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def check(case: Case, done: dict[str, Any], folder: Path, old: dict[str, Any]) -> None:
    """No traceback, one line, nothing lost, nothing half-written."""
    told = f"{case.name}: status {done['status']}\n{done['out'][-500:]}\n{done['err']}"
    assert "Traceback" not in done["err"] + done["out"], told
    assert done["status"] in _STATUS[case.ends], told
    if done["status"] == 1 and "FAILS" not in done["out"]:
        lines = [line for line in done["err"].splitlines() if line.strip()]
        assert lines, told
        assert lines[-1].startswith(f"{name_of(case.script)}: "), told
        # What is damaged, and how far something long was.
        assert all(" is damaged" in x or " so far" in x for x in lines[:-1]), told
    if case.ends != "may run" or done["status"]:
        assert _found(case.says, done["err"]), told
    left = list(folder.rglob(".*partial"))
    assert all((path / "made-before").is_dir() for path in left), told
    for name, before in old.items():
        assert contents(folder / name) == before, told


_STATUS = {
    "refused": (1, 2),
    "may run": (0, 1, 2),
    "runs": (0,),
    "stopped": (130, 143),
}


def _found(says: str, err: str) -> bool:
    import re

    words = " ".join(err.replace("│", " ").split())  # of the parser's box
    return re.search(says, words) is not None


def packed(data: bytes) -> bytes:
    """Gzip."""
    return gzip.compress(data, mtime=0)


def a_parquet(path: Path) -> None:
    """A table where lines are expected."""
    pl.DataFrame({"prompt": ["a"], "chosen": ["b"]}).write_parquet(path)


def copy(source: Path, target: Path) -> Path:
    """A folder that may be damaged."""
    return shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
