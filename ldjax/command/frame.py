"""What programs share with the shell: mistakes in one line, Ctrl-C, `~`.

    @command.experiment
    def main(config: Config) -> int:
        with command.set_up():
            ...                                    # what the user asked for is checked
        ...

    parse = functools.partial(command.parse, Config, __doc__)

`ldjax.cli.program` runs such a module.
"""

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ldjax.command.options import flag, flat

__all__ = [
    "SIGNALS",
    "Stopped",
    "expanded",
    "experiment",
    "parse",
    "run",
    "set_up",
    "teller",
    "worded",
]

#: Seconds that a stopped experiment may take to end, as in the midst of a compilation.
GRACE = 5.0
#: What stops a program, and what a user calls it.
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_LIBRARY = Path(__file__).parents[1]
#: Attribute of an error that came while what was asked for was looked at.
_REFUSAL = "ldjax_refusal"
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")


class Stopped(KeyboardInterrupt):
    """By a signal; `args` is its number."""


@contextlib.contextmanager
def set_up() -> Iterator[None]:
    """While what was asked for is looked at: whatever is refused is one line.

    The error passes as it is, for one who calls a program as a function; `experiment`
    knows it again, wherever it comes from.
    """
    try:
        yield
    except (OSError, ValueError, MemoryError) as error:
        setattr(error, _REFUSAL, True)
        raise


def experiment(main: Callable[..., Any]) -> Callable[..., Any]:
    """An experiment whose mistakes are one line, and whose paths may begin with `~`.

    Args:
      main: Takes its settings, a dataclass or arguments by name; gives its exit status.

    Returns:
      The same, that ends with `SystemExit` and the line where the user, the data or the
      machine is the reason: in `set_up`, or as ldjax says it. Other errors are the
      program's, and pass.
    """
    called = _name(main)

    @functools.wraps(main)
    def framed(*settings: Any, **named: Any) -> Any:
        names = {*named, *inspect.signature(main).parameters}
        for config in settings:
            if dataclasses.is_dataclass(config):
                names |= flat(config).keys()
        try:
            return main(
                *map(expanded, settings),
                **{name: _expanded(value) for name, value in named.items()},
            )
        except Exception as error:
            if not _is_told(error):
                raise
            line = _text(error) + _after_room(error, settings)
        sys.exit(f"{called}: {worded(line, names)}")

    return framed


def run(main: Callable[[Any], Any], config: Any) -> NoReturn:
    """Run an experiment as a program.

    Ctrl-C and SIGTERM end it with one line that says how to go on, and with status 130
    or 143; what was written before is whole.

    Args:
      main: Made by `experiment`.
      config: Its settings; the folder is `out`, and `resume` goes on with it, or where
        they have a true `goes_on` the same command.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files may be of any bytes, and a terminal of few letters.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    farewell = _Farewell(config)
    farewell.listen()
    try:
        status = main(config)
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        status = farewell.say(stopped.args[0] if stopped.args else signal.SIGINT)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def parse(
    settings: Any,
    description: str | None,
    words: Sequence[str] | None = None,
    called: str | None = None,
    **options: Any,
) -> Any:
    """The settings of a program from the words of its command line.

    Args:
      settings: A dataclass.
      description: What the program does.
      words: What was given; by default to this process.
      called: What the user typed to start it, for the help.
      **options: Of `tyro.cli`.
    """
    import tyro

    return tyro.cli(
        settings,
        description=description,
        args=words,
        prog=called,
        config=(tyro.conf.OmitArgPrefixes,),
        **options,
    )


def expanded(config: Any) -> Any:
    """The same settings with a leading `~` of paths replaced by the home folder."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return _expanded(config)
    changed = {
        field.name: new
        for field in dataclasses.fields(config)
        if (new := expanded(old := getattr(config, field.name))) is not old
    }
    return dataclasses.replace(config, **changed) if changed else config


def worded(message: str, options: Collection[str]) -> str:
    """A message of the library with its arguments as options of the command line.

    Args:
      message: Names arguments as `resume=True`, with backquotes.
      options: Names that are options.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found[0]
        if value in (None, "True", "False"):
            return flag(f"no_{name}" if value == "False" else name)
        return f"{flag(name)} {value.strip(chr(34) + chr(39))}"

    return _ARGUMENT.sub(option, message)


def teller(config: Any) -> Callable[[Any], None]:
    """Prints what a run says of itself, its arguments as options of the command line.

    What is no message but has a `text`, such as an example, is printed as it is, in
    colours where a terminal shows them.

    Args:
      config: The settings of the program.
    """

    def tell(said: Any) -> None:
        is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        is_message = isinstance(said, str)
        text = worded(said, flat(config)) if is_message else said.text(is_coloured)
        print(text, flush=True)

    return tell


class _Farewell:
    """One line for one who stops an experiment, whatever it is busy with."""

    def __init__(self, config: Any):
        self._config = config
        self._once, self._line = threading.Lock(), ""

    def listen(self) -> None:
        """From now on; where the interpreter does not come to it, by a thread."""
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._stop)
        # Of a checkpoint's other writers, when one of them had no room.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()
        self._hook, sys.unraisablehook = sys.unraisablehook, self._not_raised

    def say(self, number: int) -> int:
        """Say how to go on, once; the exit status."""
        with self._once:
            if not self._line:
                self._line = f"{_script()}: {self._how_to_go_on(number)}"
                with contextlib.suppress(OSError):
                    os.write(2, f"\n{self._line}\n".encode(errors="replace"))
        return 128 + number

    def _stop(self, number: int, frame: Any) -> NoReturn:
        del frame
        if self._line:  # again
            os._exit(128 + number)
        raise Stopped(number)

    def _not_raised(self, lost: Any) -> None:
        """A callback, as of the garbage collector, where nothing can be raised."""
        if isinstance(lost.exc_value, RuntimeError) and "loop is closed" in str(
            lost.exc_value
        ):
            return  # of the writers of a checkpoint, after one of them had no room
        if not isinstance(lost.exc_value, Stopped):
            self._hook(lost)
            return
        again = threading.Timer(0.05, os.kill, (os.getpid(), lost.exc_value.args[0]))
        again.daemon = True
        again.start()

    def _watch(self, receiver: int) -> None:
        number = 0
        while number not in SIGNALS:
            number = os.read(receiver, 1)[0]
        threading.Event().wait(GRACE)
        # Still here: inside a compilation, or something waits for its threads.
        os._exit(self.say(number))

    def _how_to_go_on(self, number: int) -> str:
        from ldjax.files.locks import held_locks

        out = getattr(self._config, "out", None)
        folder = Path(out).expanduser().resolve() if out else None
        is_begun = is_back = False
        for lock in held_locks():
            came_back = bool(lock.release())
            if lock.folder == folder:
                is_begun, is_back = True, came_back
        how = f"stopped by {SIGNALS[signal.Signals(number)]}"
        if is_back:
            return f"{how} before its first numbers; the run in {out} is as it was."
        if not is_begun:
            return f"{how} before {out or 'anything'} was begun."
        if getattr(self._config, "goes_on", False):
            return f"{how}; to go on: {_command()}"
        if hasattr(self._config, "resume"):
            return f"{how}; to go on: {_command('resume')}"
        return f"{how}; to begin anew: {_command('overwrite')}"


def _command(*how: str) -> str:
    """The command that was given, with another of the options that say how to begin."""
    program = os.path.relpath(sys.executable)
    if program.startswith(".."):
        program = sys.executable
    begins = {
        flag(f"{no}{name}") for name in ("resume", "overwrite") for no in ("", "no_")
    }
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = ["-m", spec.name] if spec else sys.argv[:1]
    words = [word for word in sys.argv[1:] if word not in begins]
    return shlex.join([program, *script, *words, *map(flag, how)])


def _is_told(error: Exception) -> bool:
    """Whether an error is made for the user: by ldjax, or by a machine that is full."""
    if getattr(error, _REFUSAL, False):
        return True
    if isinstance(error, OSError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return not isinstance(error, BrokenPipeError)
    if not isinstance(error, ValueError | FloatingPointError):
        return False
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return _LIBRARY in Path(innermost.f_code.co_filename).parents


def _after_room(error: Exception, settings: Collection[Any]) -> str:
    """What goes on with a run that had no room, if something does."""
    from ldjax.files.locks import held_locks
    from ldjax.files.replacing import is_replacing
    from ldjax.files.whole import WriteError

    if not isinstance(error, WriteError):
        return ""
    begun = [lock.folder for lock in held_locks() if not is_replacing(lock.folder)]
    for config in settings:
        if hasattr(config, "resume") and expanded(config).out.resolve() in begun:
            return " When there is room, `resume=True` goes on."
    return ""


def _text(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        place = os.fsdecode(error.filename)
        if type(error).__str__ is OSError.__str__:
            return f"{place}: {error.strerror}"
    return " ".join(str(error).split()) or "there is not enough memory"


def _expanded(value: Any) -> Any:
    """A path, or a text that is the path of something, without `~`."""
    if isinstance(value, tuple) and any(_expanded(item) is not item for item in value):
        return tuple(map(_expanded, value))
    if not isinstance(value, str | Path) or not str(value).startswith("~"):
        return value
    try:
        there = Path(value).expanduser()
    except RuntimeError:  # nobody of that name
        return value
    if isinstance(value, Path):
        return there
    return str(there) if there.exists() else value


def _name(main: Callable[..., Any]) -> str:
    """What a program is called: its module, or the package that is about it."""
    if main.__module__ == "__main__":
        return _script()
    *_, package, module = ("", *main.__module__.split("."))
    return package if module in ("run", "study") else module


def _script() -> str:
    return Path(sys.argv[0]).stem
