"""The parser of every command: its errors are one line, and an argument that names no type is text.

Text is Unicode. A path may be any bytes, so an argument that is one says `type=options.path`.
"""

import argparse
from typing import Any, NoReturn, Protocol, TypeAlias

from lastword.cli import console, options
from lastword.errors import InputError


class Command(Protocol):
    """The module of a command."""

    ABOUT: str
    EXAMPLES: str

    def add_options(self, parser: "Parser") -> None:
        """Add the command's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command and return its exit status."""


class Parser(argparse.ArgumentParser):
    """argparse's, with errors as all others are."""

    def __init__(self, **settings: Any) -> None:
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**settings, allow_abbrev=False)
        self.register("type", None, options.text)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help")

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002
        # argparse's own ignores a full or closed stdout; nothing but help and version comes here
        console.print_text(message)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_commands(parser: Parser, dest: str) -> Commands:
    """Let a parser have commands; what follows a command's name is for its own parser to check."""
    parser.register("type", None, options.path)
    return parser.add_subparsers(dest=dest, required=True, metavar=dest.upper())


def add_command(commands: Commands, name: str, about: str, examples: str) -> Parser:
    """Add a command's parser; `about` begins in lower case."""
    description = f"{about[0].upper()}{about[1:]}."
    return commands.add_parser(name, help=about, description=description, epilog=examples)
