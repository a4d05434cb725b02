"""`merge`, `convert` and `bags` as processes: fast `--help`, Ctrl-C, a progress bar on a terminal only."""

import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from lastword.bench.checkpoint import make_checkpoint
from lastword.cli.main import main
from lastword.weights.files import writer
from lastword.weights.merging import bags_plan

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
    assert "gone: no such folder" in capfd.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("size", [1000, 200_000])
@pytest.mark.parametrize("command", ["merge", "convert", "bags"])
def test_a_real_limit_on_a_files_size_is_one_line_and_leaves_nothing(recipe, capfd, command, size):
    Path("rows.txt").write_text("x\n" * 100_000)
    words = {
        "merge": ["merge.yaml", "out", "--report", "report.jsonl"],
        "convert": ["m1", "out", "--dtype", "float32"],
        "bags": ["rows.txt", "--ratios", "80,100", "--seed", "1", "-o", "plan.json"],
    }
    before = sorted(os.listdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        status = main([command, *words[command]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capfd.readouterr().err
    assert (status, err.count("\n")) == (2, 1), err
    assert "cannot be written (File too large)" in err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["convert", "bags"])
def test_a_stopped_run_leaves_nothing(recipe, capfd, monkeypatch, command, number):
    """The signal comes when half of the first output has been written."""
    Path("rows.txt").write_text("x\n" * 1000)
    words = {
        "convert": ["m1", "out"],
        "bags": ["rows.txt", "--ratios", "80,100", "--seed", "1", "-o", "plan.json"],
    }
    before = sorted(os.listdir())
    with monkeypatch.context() as patch:
        for module, name in ((writer, "_write_tensor"), (bags_plan, "row_ids")):
            patch.setattr(module, name, lambda *_: signal.raise_signal(number))
        assert main([command, *words[command]]) == (130 if number == signal.SIGINT else 143)
    assert capfd.readouterr().err.count("\n") == 1
    assert sorted(os.listdir()) == before
    assert main([command, *words[command], "--quiet"]) == 0
