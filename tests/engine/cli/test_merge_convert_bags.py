"""`merge`, `convert` and `bags` as processes: fast `--help`, Ctrl-C, a progress bar on a terminal only."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from lastword.bench.checkpoint import make_checkpoint
from lastword.cli.main import main

SLOW = """
import sys, time
from lastword.weights.merging import job
write = job.stream_safetensors
def slowly(path, *others):
    write(path, *others)
    print("wrote", path.name, flush=True)
    time.sleep(0.2 if "00001" in path.name else 30)
job.stream_safetensors = slowly
from lastword.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i in (1, 2):
        make_checkpoint(f"m{i}", seed=i)
    Path("merge.yaml").write_text(
        "models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 2}}]\n"
        "merge_method: multislerp\n"
    )
    return tmp_path


@pytest.mark.timing
@pytest.mark.parametrize("command", ["merge", "convert", "bags"])
def test_help_is_fast_and_has_an_example(command):
    start = time.perf_counter()
    code = "import sys; from lastword.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"lastword {command} " in done.stdout.split("example")[1]
    assert ("id@revision names a branch, tag or commit" in done.stdout) is (command != "bags")
    assert done.stdout.endswith("False\n")
    assert time.perf_counter() - start < 5  # 0.2 s on an idle machine; torch alone takes longer


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_merge_keeps_its_files_and_continues(recipe, capfd, number, status):
    words = ["merge", "merge.yaml", "out", "--shard-size", "200KB"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job that runs in the background may have handed down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert "00001" in process.stdout.readline()
        assert "00002" in process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert (
        err.splitlines()[0] == "lastword: .out.partial: keeps 1 of 3 files; run again to continue"
    )
    assert len(err.splitlines()) == 2
    assert not Path("out").exists()
    assert main(words) == 0
    assert "resumes an unfinished run, 1 of 3 files" in capfd.readouterr().err
    assert not Path(".out.partial").exists()
    assert main(["merge", "merge.yaml", "whole", *words[3:], "--quiet"]) == 0
    for path in Path("whole").glob("*.*"):
        if path.is_file():
            assert path.read_bytes() == Path("out", path.name).read_bytes()


def test_a_bar_on_a_terminal(recipe):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "lastword.cli.main", "merge", "merge.yaml", "out"]
    termios.tcsetwinsize(follower, (24, 100))
    done = subprocess.Popen(command, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    assert done.wait(timeout=60) == 0
    assert re.search(rb"Merging: 100%.*526k/526k", shown)


def test_an_unwritable_report_stops_the_merge_before_it_starts(recipe, capfd):
    assert main(["merge", "merge.yaml", "out", "--report", "gone/report.jsonl"]) == 2
    assert "gone/report.jsonl: cannot be written" in capfd.readouterr().err
    assert not Path("out").exists()
