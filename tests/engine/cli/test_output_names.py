"""Names of outputs: JSON lines by their endings, any name beside --format, and paths that are not UTF-8."""

import json
import os
from pathlib import Path

import pytest


@pytest.mark.parametrize("ending", ["", ".json", ".jsonl", ".ndjson", ".JSONL"])
def test_json_lines_by_name(cli, ending):
    Path("a.txt").write_text("x")
    assert cli("embed", "a.txt", "-o", f"v{ending}").status == 0
    assert json.loads(Path(f"v{ending}").read_text())["text"] == "x"


def test_any_ending_of_a_named_format(cli):
    Path("a.txt").write_text("x")
    assert cli("embed", "a.txt", "-o", "v.out", "--format", "jsonl").status == 0
    assert json.loads(Path("v.out").read_text())["text"] == "x"


def test_paths_that_are_not_utf8(cli):
    Path("a\udcff.txt").write_text("one\ntwo")
    assert cli("embed", "a\udcff.txt", "-o", "v\udcff.npy", "--save-ranges", "r\udcff").status == 0
    assert {"v\udcff.npy", "v\udcff.npy.json", "r\udcff"} < set(os.listdir())
    result = cli("search", "one", "a\udcff.txt", "--json")
    assert json.loads(result.out.splitlines()[0])["file"] == "a\udcff.txt"
