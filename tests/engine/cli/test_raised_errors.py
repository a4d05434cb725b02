"""What a command raises: no memory is one line, a mistake of ours is not hidden."""

import pytest
import torch

from lastword.cli.main import COMMANDS


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["embed", "a.txt"], "out of memory; lower --max-batch-tokens or --max-length"),
        (["convert", "m", "out"], "out of memory"),
    ],
)
@pytest.mark.parametrize("error", [MemoryError, None], ids=["python", "torch"])
def test_no_memory(cli, monkeypatch, arguments, expected, error):
    def run(args):
        if error is None:
            torch.empty(1 << 60)
        raise error

    monkeypatch.setattr(COMMANDS[arguments[0]], "run", run)
    assert cli(*arguments) == (2, "", f"lastword: {expected}\n")


def test_other_errors_are_not_hidden(cli, monkeypatch):
    def run(args):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(COMMANDS["embed"], "run", run)
    with pytest.raises(RuntimeError, match="a mistake"):
        cli("embed", "a.txt")
