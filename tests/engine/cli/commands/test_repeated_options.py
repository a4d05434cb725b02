"""An option that names one file may be given once; others may be overridden or repeated."""

import argparse

import pytest

from lastword.cli.main import _parser
from lastword.cli.options import path_argument
from lastword.errors import InputError

VALUES = ("x", "1", ";", "0.5", "1,2", "x.jsonl")


def _parsers(parser, words=()):
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                yield from _parsers(each, (*words, name))


CASES = {
    " ".join((*words, action.option_strings[-1])): (words, action)
    for words, parser in _parsers(_parser())
    for action in parser._actions
    if action.option_strings and action.type is path_argument
}


@pytest.fixture(scope="module")
def parser():
    return _parser()


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_not_replaced_silently(parser, name):
    words, action = CASES[name]
    option = action.option_strings[-1]
    for value in action.choices or VALUES:
        try:
            parser.parse_known_args([*words, option, str(value), option, str(value)])
        except InputError as error:
            if error.what == "given more than once" and option in error.where:
                return
            if "missing" in error.what:  # other arguments of the command
                break
        else:
            break
    assert isinstance(action, argparse._AppendAction), "accepted twice"


def test_both_forms_of_an_option_are_one(cli):
    for twice in (["-o", "a", "--output", "b"], ["--output=a", "-o", "b"]):
        assert cli("embed", "a.txt", *twice).err == (
            "lastword: -o/--output: given more than once. See lastword embed --help.\n"
        )


def test_a_setting_is_overridden(parser):
    args, _ = parser.parse_known_args(["embed", "a.txt", "--dim", "3", "--dim", "4"])
    assert args.dim == 4


def test_a_parser_is_used_again(parser):
    for _ in range(2):
        parser.parse_known_args(["embed", "a.txt", "--dim", "3", "--quiet", "--quiet"])
