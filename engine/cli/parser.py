"""The argument parser of every command: errors are one line, and an argument without a `type` must be valid Unicode.

A path may contain any bytes, so an argument that is a path needs `type=options.path_argument`.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NoReturn, Protocol

from lastword.cli import console, options
from lastword.errors import InputError, one_line

# Messages of argparse, and what to say instead. The group `where` matches the names of the missing arguments, the group
# `got` matches the value.
_MISSING = re.compile("the following arguments are required: (?P<where>.+)")
_WORDS = (
    (_MISSING, "missing"),
    (re.compile("not allowed with argument (.+)"), r"cannot be combined with \1"),
    (re.compile("expected one argument"), "needs a value"),
    (re.compile("expected at least one argument"), "needs at least one value"),
    (re.compile("ignored explicit argument (?P<got>.+)"), "takes no value"),
)


_LONGEST = 80  # the most characters of a value in a message


def _join_names(names: Iterable[object]) -> str:
    """Join names as in "a, b or c"."""
    *most, last = map(str, names)
    return f"{', '.join(most)} or {last}" if most else last


def hint_for_file(words: Iterable[str]) -> str | None:
    """Return advice about the first word that begins with a dash and is the name of a file; None if there is none."""
    for word in words:
        if word.startswith("-") and word != "-" and os.path.lexists(word):
            return f"If the file {word} is meant, write {shlex.quote(f'./{word}')}."
    return None


def nearest(word: str, names: Iterable[str]) -> str:
    """Return a question that names the one of `names` that is spelled most like `word`, or "" if none is like it."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(names), 1, 0.7)
    return f"Did you mean {found[0]}? " if found else ""


class Command(Protocol):
    """The interface of a command's module."""

    ABOUT: str
    EXAMPLES: str

    def add_options(self, parser: "Parser", /) -> None:
        """Add the command's options."""

    def run(self, args: argparse.Namespace, /) -> int:
        """Run the command and return its exit status. A command outside `cli` (`bench`) prints with `args.console`."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors as InputError."""

    def __init__(self, **settings: Any) -> None:
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**settings, allow_abbrev=False, exit_on_error=False)
        self.register("type", None, options.text_argument)
        self._given = set[argparse.Action]()  # options that take a path and have been given already
        self._words: Sequence[str] = ()

    def add_subparsers(self, **settings: Any) -> Any:
        """Add commands; each command's own parser checks the arguments after the command's name."""
        self.register("type", None, str)
        return super().add_subparsers(metavar=settings["dest"].upper(), **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but report errors as InputError.

        Raises:
            InputError: argparse refuses an argument, or an option that takes one file is given twice.
        """
        self._given.clear()
        self._words = sys.argv[1:] if args is None else list(args)
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            raise self._refusal(error.message, error.argument_name) from error

    def spelled_like(self, command: str, word: str) -> str:
        """Return what `nearest` says about `word` and the options of a command."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and command in action.choices:
                return nearest(
                    word.partition("=")[0], action.choices[command]._option_string_actions
                )
        return ""

    def error(self, message: str) -> NoReturn:
        raise self._refusal(message)

    def _refusal(
        self, what: str, argument: str | None = None, got: str | None = None
    ) -> InputError:
        """Create the error from argparse's message `what`; the error names `argument` or, if None, the command."""
        where = argument or self.prog.partition(" ")[2] or "arguments"
        for words, plain in _WORDS:
            if (found := words.fullmatch(what)) is not None:
                parts = found.groupdict()
                where, what = parts.get("where", where), found.expand(plain)
                got = parts.get("got", got)
        if where in ("COMMAND", "BENCHMARK") and self._words and self._words[0].startswith("-"):
            return InputError(
                "arguments",
                "unknown",
                got=one_line(self._words[0], _LONGEST),
                remedy=f"{nearest(self._words[0], self._option_string_actions)}See {self.prog} --help.",
            )
        got = None if got is None else one_line(got, _LONGEST)
        meant = hint_for_file(self._words) or (
            self._hint_for_value(where.split("/")) if what == "needs a value" else None
        )
        return InputError(where, what, got=got, remedy=meant or f"See {self.prog} --help.")

    def _hint_for_value(self, options: Sequence[str]) -> str | None:
        """Return advice if a word that begins with a dash, perhaps a value, follows one of `options`; else None."""
        for option, word in pairwise(self._words):
            if option in options and word.startswith("-"):
                written = shlex.quote(f"{option}={word}")
                return f"If {one_line(word, _LONGEST)} is its value, write {one_line(written, _LONGEST)}."
        return None

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse calls this once for each occurrence of an option and keeps the last value. For a setting, that is
        # useful: a shell alias can give a default. A second file is an error, because the first would be ignored.
        if action.type is options.path_argument and isinstance(action, argparse._StoreAction):
            if action.option_strings and action in self._given:
                name = argparse.ArgumentError(action, "").argument_name
                raise self._refusal("given more than once", name)
            self._given.add(action)
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        where = argparse.ArgumentError(action, "").argument_name or self.prog
        got, names = one_line(repr(value), _LONGEST), _join_names(action.choices)
        remedy = f"See {self.prog} --help."
        if isinstance(action, argparse._SubParsersAction):
            remedy = nearest(str(value), action.choices) + remedy
        raise InputError(where, "unknown", got=got, expected=names, remedy=remedy)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # Only here does argparse know both the argument and the given value.
        convert = self._registry_get("type", action.type, action.type)
        try:
            return convert(arg_string)
        except argparse.ArgumentTypeError as error:
            what = str(error)
        except (TypeError, ValueError):
            what = f"invalid {convert.__name__} value"
        raise self._refusal(
            what, argparse.ArgumentError(action, what).argument_name, repr(arg_string)
        )

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002
        # argparse's own method ignores a full or closed stdout. Only help and version text is printed here.
        console.print_text(message)
