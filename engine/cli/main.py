"""The `lastword` command line: find a command, run it, and turn every error into one line and an exit status.

Exit status 0: success; 1: a check failed; 2: bad input or usage; 129: stopped by SIGHUP, because the terminal was
closed; 130: stopped by Ctrl-C; 141: the reader of stdout is gone; 143: stopped by SIGTERM. Each command's module
defines the command's options, and imports torch only when the command runs, so `--help` and `--version` are fast.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO, cast

import lastword
from lastword.cli import console, options
from lastword.cli.entry import STOPPED
from lastword.cli.parser import Command, Parser, hint_for_file
from lastword.errors import DeviceError, InputError, LastwordError, LastwordWarning

EXAMPLES = """examples:
  lastword embed notes.txt --model Qwen/Qwen3-Embedding-0.6B > vectors.jsonl
  lastword search "how do I reset it" manual.txt
  lastword rerank "how do I reset it" manual.txt --model Qwen/Qwen3-Reranker-0.6B
  lastword info Qwen/Qwen3-Embedding-0.6B
  lastword verify Qwen/Qwen3-Embedding-0.6B
  lastword eval Qwen/Qwen3-Embedding-0.6B --tasks STS12,SciFact
  lastword merge merge.yaml ./merged"""

# The module of each command, as a string: `cli` must not import `bench` (see tests/test_arrows.py).
COMMANDS = {
    "embed": "lastword.cli.commands.embed",
    "search": "lastword.cli.commands.search",
    "rerank": "lastword.cli.commands.rerank",
    "serve": "lastword.cli.commands.serve",
    "run-batch": "lastword.cli.commands.run_batch",
    "info": "lastword.cli.commands.info",
    "verify": "lastword.cli.commands.verify",
    "eval": "lastword.cli.commands.eval",
    "bench": "lastword.bench.command",
    "merge": "lastword.cli.commands.merge",
    "convert": "lastword.cli.commands.convert",
    "bags": "lastword.cli.commands.bags",
}


# The last message, and the exit status, when a signal ends the run.
_ENDINGS: dict[int, tuple[str, int]] = {
    signal.SIGINT: STOPPED,
    signal.SIGTERM: ("terminated", 143),
}
if hasattr(signal, "SIGHUP"):  # not on Windows
    _ENDINGS[signal.SIGHUP] = "the terminal was closed", 129
_READER_GONE = 141  # the status of a program that SIGPIPE has stopped
_SECONDS_TO_STOP = 1.0
# Commands that save nothing when they are stopped; the others may need time to save what they have.
_STOPPED_AT_ONCE = ("embed", "search", "rerank", "run-batch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    stop = _Stop()
    with stop.on_signals():
        try:
            status = _run_guarded(argv, stop)
        except Exception:
            if not stop.number:
                raise
            status = _fail(*_ENDINGS[stop.number])  # a library turned the interrupt into an error
        stop.reported = stop.number != 0
        status = _close_stdout(status)
    if argv is None and stop.number:
        os._exit(status)  # a normal exit would wait for background threads that nobody needs
    return status


def _run_guarded(argv: Sequence[str] | None, stop: "_Stop") -> int:
    args = argparse.Namespace()
    try:
        args = _parse_arguments(argv)
        # With --ray, processes of the cluster have to be ended.
        stop.at_once = args.command in _STOPPED_AT_ONCE and getattr(args, "ray", None) is None
        with _warnings_as_lines(quiet=getattr(args, "quiet", False)):
            args.console = console
            return _module(args.command).run(args)
    except console.ReaderGone:
        return _READER_GONE
    except LastwordError as error:
        return _fail(options.in_option_words(error), 2)
    except OSError as error:
        where = _command_of(args) if error.filename is None else str(error.filename)
        return _fail(str(InputError(where, error.strerror or str(error))), 2)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        # Some commands lack the options that the remedy names.
        lower = hasattr(args, "max_batch_tokens")
        remedy = "Lower --max-batch-tokens or --max-length." if lower else None
        return _fail(str(DeviceError(_command_of(args), "out of memory", remedy=remedy)), 2)
    except KeyboardInterrupt:
        return _fail(*_ENDINGS[stop.number or signal.SIGINT])
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)


def _close_stdout(status: int) -> int:
    """Flush stdout and return the exit status: `status` unless it is 0 and the flush fails."""
    try:
        console.close_stdout()
    except console.ReaderGone:
        return status or _READER_GONE
    except InputError as error:
        return status or _fail(str(error), 2)
    return status


def _command_of(args: argparse.Namespace) -> str:
    return str(getattr(args, "command", "arguments"))


def _is_out_of_memory(error: Exception) -> bool:
    """Recognise an out-of-memory error, by its text too: PyTorch raises a plain RuntimeError for CPU memory."""
    words = ("allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; files may come before, between and after options.

    argparse accepts files in one place only; it returns files elsewhere as unknown arguments.
    """
    parser = _parser()
    args: argparse.Namespace
    args, others = parser.parse_known_args(argv)
    unknown = [other for other in others if other.startswith("-") and other != "-"]
    if unknown or (others and not hasattr(args, "files")):
        word = (unknown or others)[0]
        meant, see = hint_for_file([word]), f"See lastword {args.command} --help."
        remedy = meant or parser.spelled_like(args.command, word) + see
        if remedy == see and hasattr(args, "query") and not word.startswith("--"):
            remedy += " A query that begins with - comes after all options and a --."
        raise InputError(args.command, "unknown argument", got=word, remedy=remedy)
    if others:
        args.files += others
    return args


def _fail(message: str, status: int) -> int:
    console.say(message)
    return status


@contextmanager
def _warnings_as_lines(*, quiet: bool) -> Iterator[None]:
    """Print lastword's own warnings as one-line notices, unless `quiet` is set; leave other warnings to Python."""
    with warnings.catch_warnings():
        # torch gives this warning on import; lastword works without NumPy
        warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
        shown_by_python = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not isinstance(message, LastwordWarning):
                shown_by_python(message, category, filename, lineno, file, line)
            elif not quiet:
                console.say(options.in_option_words(message))

        warnings.showwarning = show
        yield


class _Stop:
    """Ends the process soon after Ctrl-C, SIGTERM or SIGHUP.

    Python handles a signal only between two instructions of its main thread. A long call into a library, such as the
    attention of one long text, could delay the end by minutes. So a background thread waits for one second after the
    signal. If the main thread is still stuck in such a call by then, the background thread removes unfinished files and
    ends the process.
    """

    def __init__(self) -> None:
        self.number = 0  # the signal's number, once the main thread has been interrupted
        self.reported = False  # whether the last message has been printed
        # Whether to end the process one second after the signal even if the main thread is already stopping, because
        # the command has nothing to save.
        self.at_once = False
        self._ended = threading.Event()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGTERM in the `with` block, and SIGINT and SIGHUP unless they are ignored or have another handler."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set a handler
            return
        ours = [signal.SIGTERM]
        # A shell starts background jobs with SIGINT ignored; that must stay so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            ours.append(signal.SIGINT)
        # `nohup` starts a command with SIGHUP ignored.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            ours.append(signal.SIGHUP)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        threading.Thread(target=self._watch, args=(reader, ours), daemon=True).start()
        before = [signal.signal(number, self._interrupt) for number in ours]
        descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            self._ended.set()
            signal.set_wakeup_fd(descriptor)
            for number, handler in zip(ours, before, strict=True):
                signal.signal(number, handler)
            os.close(writer)

    def _interrupt(self, number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG002  given by Python
        self.number = number
        raise KeyboardInterrupt  # for every signal, because libraries clean up after it

    def _watch(self, reader: int, ours: Sequence[int]) -> None:
        """Wait for a signal; then end the process, unless the main thread does so itself (see `_Stop`)."""
        number = 0
        while number not in ours:
            data = os.read(reader, 1)
            if not data:  # the run has ended
                break
            number = data[0]
        in_time = number not in ours or self._ended.wait(_SECONDS_TO_STOP)
        if in_time or (self.number and not self.at_once):
            self._ended.wait()  # the main thread is stopping by itself
            os.close(reader)
            return
        # Not imported here: the main thread may be inside an import.
        atomic = sys.modules.get("lastword.weights.files.atomic")
        if atomic is not None:
            atomic.remove_unfinished()
        message, status = _ENDINGS[number]
        if not self.reported:
            console.say(message)
        os._exit(status)


def _parser() -> Parser:
    parser = Parser(
        prog="lastword",
        description=lastword.__doc__.splitlines()[0] if lastword.__doc__ else None,
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"lastword {lastword.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = _module(name)
        about = f"{command.ABOUT[0].upper()}{command.ABOUT[1:]}."
        settings = {"help": command.ABOUT, "description": about, "epilog": command.EXAMPLES}
        command.add_options(commands.add_parser(name, **settings))
    return parser


def _module(name: str) -> Command:
    return cast("Command", importlib.import_module(COMMANDS[name]))


if __name__ == "__main__":
    sys.exit(main())
