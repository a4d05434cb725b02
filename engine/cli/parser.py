"""The parser of every command: its errors are one line, and an argument that names no type is text.

Text is Unicode. A path may be any bytes, so an argument that is one says `type=options.path`.
"""

import argparse
from typing import Any, NoReturn, Protocol

from lastword.cli import console, options
from lastword.errors import InputError


class Command(Protocol):
    """The module of a command."""

    ABOUT: str
    EXAMPLES: str

    def add_options(self, parser: "Parser", /) -> None:
        """Add the command's options."""

    def run(self, args: argparse.Namespace, /) -> int:
        """Run the command and return its exit status; a package beside this one prints with `args.console`."""


class Parser(argparse.ArgumentParser):
    """argparse's, with errors as all others are."""

    def __init__(self, **settings: Any) -> None:
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**settings, allow_abbrev=False, exit_on_error=False)
        self.register("type", None, options.text)

    def add_subparsers(self, **settings: Any) -> Any:
        """Let the parser have commands; what follows a command's name is for its own parser to check."""
        self.register("type", None, options.path)
        return super().add_subparsers(metavar=settings["dest"].upper(), **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; an argument that it refuses is an InputError."""
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            raise self._refused(error.message, error.argument_name) from error

    def error(self, message: str) -> NoReturn:
        raise self._refused(message)

    def _refused(
        self, what: str, argument: str | None = None, got: str | None = None
    ) -> InputError:
        """Name the argument, or the command where argparse names none."""
        where = argument or self.prog.partition(" ")[2] or "arguments"
        return InputError(where, what, got=got, remedy=f"See {self.prog} --help.")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # only here argparse knows both the argument and what was given for it
        convert = self._registry_get("type", action.type, action.type)
        try:
            return convert(arg_string)
        except argparse.ArgumentTypeError as error:
            what = str(error)
        except (TypeError, ValueError):
            what = f"invalid {convert.__name__} value"
        raise self._refused(
            what, argparse.ArgumentError(action, what).argument_name, repr(arg_string)
        )

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002
        # argparse's own ignores a full or closed stdout; nothing but help and version comes here
        console.print_text(message)
