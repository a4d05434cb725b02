"""`embed` on several devices: the same file as on one device; Ctrl-C prints one line and leaves no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "lastword.cli.main", "embed", "texts.txt", "-o", "out.npy"]
SETTINGS = ["--max-batch-tokens", "500"]


def children(pid: int) -> list[int]:
    """Return the running child processes of a process, read from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def embed_on(devices: str, threads: int, model: Path) -> list[bytes]:
    """Run the command and return its files; matmuls may round differently with another number of threads."""
    done = subprocess.run(
        [*COMMAND, *SETTINGS, "--model", model, "--device", devices],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("lastword: 700 texts, ")
    assert done.stderr.count("\n") == 1
    return [Path(name).read_bytes() for name in ("out.npy", "out.npy.json")]


def test_the_same_file_as_on_one_device(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("".join(f"text number {i} of many\n" for i in range(700)))
    several = embed_on("cpu,cpu", threads=2, model=tiny_checkpoint)
    assert several == embed_on("cpu", threads=1, model=tiny_checkpoint), "a thread each"


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("when", ["loading", "computing"])
def test_ctrl_c(when: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Send the signal to every process of the group, as a terminal does."""
    (tmp_path / "texts.txt").write_text("".join(f"text {i} of many\n" for i in range(400_000)))

    def parts() -> list[Path]:
        return [each for each in tmp_path.iterdir() if each.name != "texts.txt"]

    with subprocess.Popen(
        [*COMMAND, "--model", tiny_checkpoint, "--device", "cpu,cpu", *SETTINGS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job that runs in the background may have handed down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while len(workers := children(process.pid)) < 2 or (
                when == "computing" and not any(part.stat().st_size for part in parts())
            ):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            err = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert err == "lastword: stopped\n"
    assert process.returncode == 130
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert os.listdir(tmp_path) == ["texts.txt"]
