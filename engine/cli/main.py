"""The `lastword` command: the table of commands, and how every error becomes one line and an exit status.

Exit status 0: success; 1: a check failed; 2: bad input or usage; 130: stopped by Ctrl-C; 141: the reader of stdout has
gone; 143: terminated. The module of a command defines its options. It imports torch only when the command runs, so
`--help` and `--version` are fast.
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
from lastword.cli.parser import Command, Parser
from lastword.errors import DeviceError, InputError, LastwordError, LastwordWarning

EXAMPLES = """examples:
  lastword embed notes.txt --model Qwen/Qwen3-Embedding-0.6B > vectors.jsonl
  lastword search "how do I reset it" manual.txt
  lastword rerank "how do I reset it" manual.txt --model Qwen/Qwen3-Reranker-0.6B
  lastword info Qwen/Qwen3-Embedding-0.6B
  lastword verify Qwen/Qwen3-Embedding-0.6B
  lastword eval Qwen/Qwen3-Embedding-0.6B --tasks STS12,SciFact
  lastword merge merge.yaml ./merged"""

# The module of each command, by name: a module of another package must not be imported here.
COMMANDS = {
    "embed": "lastword.cli.commands.embed",
    "search": "lastword.cli.commands.search",
    "rerank": "lastword.cli.commands.rerank",
    "serve": "lastword.cli.commands.serve",
    "info": "lastword.cli.commands.info",
    "verify": "lastword.cli.commands.verify",
    "eval": "lastword.cli.commands.eval",
    "bench": "lastword.bench.command",
    "merge": "lastword.cli.commands.merge",
    "convert": "lastword.cli.commands.convert",
    "bags": "lastword.cli.commands.bags",
}


# What is said when a signal ends the run, and the exit status.
_ENDINGS: dict[int, tuple[str, int]] = {
    signal.SIGINT: STOPPED,
    signal.SIGTERM: ("terminated", 143),
}
_READER_GONE = 141  # the status of a program that is stopped by SIGPIPE
_SECONDS_TO_STOP = 1.0
# Commands with nothing to keep of an unfinished run; the others may write down what they have.
_STOPPED_AT_ONCE = ("embed", "search", "rerank")


class _Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which must clean up exactly like Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    stop = _Stop()
    with stop.on_signals():
        try:
            status = _run_guarded(argv, stop)
        except Exception:
            if not stop.number:
                raise
            status = _fail(*_ENDINGS[stop.number])  # a library made another error of the interrupt
        stop.said = stop.number != 0
        status = _close_stdout(status)
    if argv is None and stop.number:
        os._exit(status)  # Python would wait for threads that nobody needs
    return status


def _run_guarded(argv: Sequence[str] | None, stop: "_Stop") -> int:
    args = argparse.Namespace()
    try:
        args = _parse_arguments(argv)
        stop.at_once = args.command in _STOPPED_AT_ONCE
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
        # Some commands do not have the options that the remedy names.
        lower = hasattr(args, "max_batch_tokens")
        remedy = "Lower --max-batch-tokens or --max-length." if lower else None
        return _fail(str(DeviceError(_command_of(args), "out of memory", remedy=remedy)), 2)
    except _Terminated:
        return _fail(*_ENDINGS[signal.SIGTERM])
    except KeyboardInterrupt:
        return _fail(*_ENDINGS[signal.SIGINT])
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)


def _close_stdout(status: int) -> int:
    """Write what is left of the output and return the exit status; what went wrong before counts more."""
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
    """Recognise out-of-memory errors by their text: PyTorch raises a plain RuntimeError for CPU memory."""
    words = ("allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; files may come before, between and after options.

    argparse accepts files in one place only and returns the others as unknown arguments.
    """
    parser = _parser()
    args: argparse.Namespace
    args, others = parser.parse_known_args(argv)
    unknown = [other for other in others if other.startswith("-") and other != "-"]
    if unknown or (others and not hasattr(args, "files")):
        word = (unknown or others)[0]
        remedy = f"See lastword {args.command} --help."
        raise InputError(args.command, "unknown argument", got=word, remedy=remedy)
    if others:
        args.files += others
    return args


def _fail(message: str, status: int) -> int:
    console.say(message)
    return status


@contextmanager
def _warnings_as_lines(*, quiet: bool) -> Iterator[None]:
    """Print lastword's own warnings as one-line notices; leave other warnings to Python."""
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
    """Ends the run soon after Ctrl-C or SIGTERM.

    Python interrupts its main thread between two instructions only. A long call into a library, such as the attention
    of one long text, would delay the end by minutes; so after a second a thread removes unfinished files and exits.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal, once the main thread has been interrupted
        self.said = False  # whether the last line is printed
        self.at_once = False  # whether the main thread has nothing to do that takes long once it is interrupted
        self._ended = threading.Event()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals during the `with` block."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set a handler
            return
        ours = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
            ours.append(signal.SIGINT)
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
        raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _watch(self, reader: int, ours: Sequence[int]) -> None:
        """Wait for a signal; end the process if the main thread does not end in time."""
        number = 0
        while number not in ours:
            data = os.read(reader, 1)
            if not data:  # the run has ended
                break
            number = data[0]
        in_time = number not in ours or self._ended.wait(_SECONDS_TO_STOP)
        if in_time or (self.number and not self.at_once):
            self._ended.wait()  # it is being stopped
            os.close(reader)
            return
        # Not imported here: the main thread may be inside an import.
        atomic = sys.modules.get("lastword.weights.files.atomic")
        if atomic is not None:
            atomic.remove_unfinished()
        message, status = _ENDINGS[number]
        if not self.said:
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
