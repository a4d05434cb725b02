"""Fixtures: a corpus, and the command line on a real, tiny model."""

import json
from pathlib import Path

import pytest

RECORDS = [
    {
        "id": f"doc-{i}",
        "text": f"note {i} on {'cats ' * (i % 5)}and {'the moon' if i % 3 else 'tin'}",
    }
    for i in range(60)
]
TEXTS = [record["text"] for record in RECORDS]


class Call:
    """Calls commands with one model; keeps stdout and stderr of the last."""

    def __init__(self, capfd, model) -> None:
        self._capfd, self.model, self.out, self.err, self.status = capfd, model, "", "", 0

    def __call__(self, *arguments: object, model: object = None) -> "Call":
        from lastword.cli.main import main

        chosen = ("--model", model or self.model, "--device", "cpu")
        self.status = main([str(each) for each in (*arguments, *chosen)])
        self.out, self.err = self._capfd.readouterr()
        return self

    def embed(self, *arguments: object) -> None:
        assert self("embed", *arguments, "--quiet").status == 0, self.err

    def hits(self, *arguments: object) -> list[dict]:
        """Return the hits of a search."""
        assert self("search", *arguments, "--json").status == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]

    def refused(self, *arguments: object, model: object = None) -> str:
        """Return the one line that a refused search prints."""
        assert self("search", *arguments, model=model).status == 2, self.out
        assert (self.out, self.err.count("\n")) == ("", 1), self.err
        return self.err


@pytest.fixture
def call(capfd, tmp_path, monkeypatch, tiny_checkpoint):
    """Return the command line, in a folder with a.jsonl and a.txt."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    Path("a.txt").write_text("".join(text + "\n" for text in TEXTS))
    return Call(capfd, tiny_checkpoint)
