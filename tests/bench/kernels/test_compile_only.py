"""`lastword bench kernels --compile-only`: refused options, missing Triton, and the written rows."""

import json
from pathlib import Path

import pytest

from lastword.cli.main import main

COMPILE = ["bench", "kernels", "--compile-only", "--model", "0.6B", "--dtype", "bfloat16"]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> None:
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["--op", "swiglu"],
        ["--with", "mine:f"],
        ["--beside"],
        ["--tokens", "64"],
        ["--device", "cpu"],
        ["--rep-ms", "1"],
        ["--plot", "a.svg"],
    ],
    ids=lambda words: words[0],
)
def test_options_for_timing_are_refused(capfd, words: list[str]) -> None:
    assert main([*COMPILE, *words]) == 2
    streams = capfd.readouterr()
    assert f"lastword: {words[0]}: does not go with --compile-only; got both" in streams.err
    assert (streams.out, streams.err.count("\n")) == ("", 1)


def test_compiling_without_triton_is_one_line(capfd, monkeypatch) -> None:
    monkeypatch.setattr("lastword.bench.command.find_spec", lambda _: None)
    assert main(COMPILE) == 2
    streams = capfd.readouterr()
    assert "--compile-only: needs triton, which is not installed" in streams.err
    assert (streams.out, streams.err.count("\n")) == ("", 1)


def test_what_was_compiled_is_written_as_it_comes(capfd, monkeypatch) -> None:
    ahead = pytest.importorskip("lastword.bench.kernels.compile")

    def stopped(*_):
        loop = ahead.InnerLoop(True, {"float": 90, "load": 2, "spill": 1}, 32, 0, 1)
        row = ahead.Resources(
            "sm_90", "0.6B", "bfloat16", "swiglu", 32, 8, 0, matrix=False, serial=False, wide=True,
            loop=loop, programs=16, share=(0.4, 0.75),
        )  # fmt: skip
        yield row
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead, "compile_all", stopped)
    assert main([*COMPILE, "--json", "rows.jsonl"]) == 130
    (row,) = (json.loads(line) for line in Path("rows.jsonl").read_text().splitlines())
    assert (row["operation"], row["registers"], "triton" in row) == ("swiglu", 32, True)
    assert row["loop"]["classes"] == {"float": 90, "load": 2, "spill": 1}
    *_, shown, loop = capfd.readouterr().out.splitlines()
    assert shown.split() == ["sm_90", "0.6B", "bfloat16", "swiglu", "32", "8", "0", "-"]
    assert loop == (
        "        93 instructions per iteration: 90 float, 2 load, 1 spill; 16 bytes per load; 1 spills in a loop; "
        "programs per multiprocessor: 16; estimated 40% to 75% of peak"
    )


@pytest.mark.parametrize(("spills", "status"), [(0, 0), (2, 1)])
def test_spills_in_a_loop_are_a_failure(spills: int, status: int, capfd, monkeypatch) -> None:
    ahead = pytest.importorskip("lastword.bench.kernels.compile")
    row = ahead.Resources(
        "gfx950", "0.6B", "bfloat16", "swiglu", 32, 8, 0, matrix=False, serial=False, wide=True,
        loop=ahead.InnerLoop(True, {"spill": 5}, 0, 0, spills), programs=0, share=None,
    )  # fmt: skip
    monkeypatch.setattr(ahead, "compile_all", lambda *_: iter([row]))
    assert main(COMPILE) == status
    said = "lastword: kernels: 1 of 1 spill registers in a loop; see above\n"
    assert capfd.readouterr().err == (said if status else "")


def test_compiling_begins_with_the_file(capfd, monkeypatch) -> None:
    monkeypatch.setattr(pytest.importorskip("lastword.bench.kernels.compile"), "compile_all", None)
    assert main([*COMPILE, "--json", "gone/rows.jsonl"]) == 2
    assert capfd.readouterr() == ("", "lastword: gone: no such folder. Create it first.\n")
