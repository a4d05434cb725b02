"""The command as a process: closed and full streams, signals, fast `--help`."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.project import ROOT

from lastword.cli.main import COMMANDS

MANY = "yes text | head -n 2000 > a.txt; "


def _one_line(result, *expected):
    assert result.err.count("\n") == 1, result.err
    for part in ("lastword: ", *expected):
        assert part in result.err


SIGPIPE = 141  # as a shell tells of a program that is stopped by it


@pytest.mark.parametrize("command", ["embed a.txt", "embed - < a.txt"])
def test_reader_goes_away(shell, command):
    result = shell(f"{MANY} $LASTWORD {command} | head -n 1 > kept; exit ${{PIPESTATUS[0]}}")
    assert result == (SIGPIPE, "", "")


@pytest.mark.parametrize(
    "command",
    [
        "embed a.txt",
        "embed a.txt -o /dev/stdout",
        "search q a.txt",
        "search --queries a.txt a.txt --json",
        "info",
        "info --json",
        "--help",
        "--version",
        "embed --help",
        "bench kernels --help",
    ],
)
def test_reader_is_gone_before_a_small_output(shell, command):
    """`exec` closes the pipe's end before the command starts to write."""
    line = f"echo x > a.txt; $LASTWORD {command} | exec true; exit ${{PIPESTATUS[0]}}"
    assert shell(line) == (SIGPIPE, "", "")


def test_a_reader_that_goes_away_keeps_the_old_files(shell):
    line = (
        f"{MANY} printf 'one\nor two\n' > b.txt; $LASTWORD embed b.txt --save-ranges r > out; cp r old; "
        "$LASTWORD embed a.txt --save-ranges r | head -n 1 > kept; "
        "s=${PIPESTATUS[0]}; cmp r old && echo same; ls -A; exit $s"
    )
    result = shell(line)
    names = ["a.txt", "b.txt", "kept", "old", "out", "r"]
    assert (result.status, result.out.split()) == (SIGPIPE, ["same", *names])


def test_a_named_pipe_whose_reader_goes_away_is_an_error(shell):
    line = f"{MANY} mkfifo p; head -n 1 p > kept & $LASTWORD embed a.txt -o p"
    result = shell(line)
    assert result.status == 2
    _one_line(result, "p: was closed by its reader")


def test_an_output_file_does_not_depend_on_stdout(shell):
    result = shell(f"{MANY} $LASTWORD embed a.txt -o out | exec true; exit ${{PIPESTATUS[0]}}")
    assert result.status == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["embed a.txt", "search q a.txt", "--help", "--version"])
def test_full_disk_under_stdout(shell, command, unbuffered):
    line = f"echo x > a.txt; PYTHONUNBUFFERED={unbuffered} $LASTWORD {command} > /dev/full"
    result = shell(line)
    assert result.status == 2
    _one_line(result, "stdout: cannot be written (No space left on device)")


@pytest.mark.parametrize("command", ["embed a.txt", "search q a.txt"])
def test_closed_stdout(shell, command):
    result = shell(f"echo x > a.txt; $LASTWORD {command} >&-")
    assert result.status == 2
    _one_line(result, "stdout: is closed")


def test_closed_stdin_and_closed_stderr(shell):
    result = shell("$LASTWORD embed - <&-")
    assert result.status == 2
    _one_line(result, "stdin")
    assert shell("$LASTWORD embed gone.txt 2>&-") == (2, "", "")
    for unbuffered in ("", "1"):
        line = f"PYTHONUNBUFFERED={unbuffered} $LASTWORD embed gone.txt 2>/dev/full"
        assert shell(line) == (2, "", "")


def test_output_is_utf8_whatever_the_locale(shell):
    line = "printf 'caf\\u00e9' > a.txt; PYTHONIOENCODING=ascii $LASTWORD embed a.txt --quiet"
    result = shell(line)
    assert result.status == 0
    assert "café" in result.out


def test_file_size_limit_is_a_full_disk(shell):
    line = f"{MANY} echo old > out; ulimit -f 64; trap '' XFSZ; $LASTWORD embed a.txt -o out"
    result = shell(line + "; s=$?; cat out; ls -A; exit $s")
    assert result.status == 2
    _one_line(result, "out: cannot be written (File too large)")
    assert result.out.split() == ["old", "a.txt", "out"]


@pytest.mark.timing
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGINT, 130, "stopped"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "the terminal was closed"),
    ],
)
@pytest.mark.parametrize("state", ["SLEEP", "STUCK"])
@pytest.mark.parametrize("options", [[], ["--on-error", "skip", "--errors", "errors"]])
def test_signals_clean_up(tmp_path, number, status, word, state, options):
    (tmp_path / "a.txt").write_text(f"a\nb\nc\n{state}\n")
    fake = ROOT / "tests/helpers/fake_embedder.py"
    process = subprocess.Popen(
        [sys.executable, fake, "embed", "a.txt", "-o", "out", *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A job that runs in the background may have handed down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 2
    assert process.returncode == status
    assert err.count("\n") == 1
    assert word in err
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nohup_outlives_its_terminal(shell):
    line = "mkfifo p; trap '' HUP; $LASTWORD embed p -o out.npy & exec 3> p"  # waits for the reader
    result = shell(
        f"{line}; kill -HUP $!; sleep 0.2; echo text >&3; exec 3>&-; wait $!; echo $?; ls"
    )
    assert result.out.split() == ["0", "out.npy", "out.npy.json", "p"]


@pytest.mark.timing
def test_ctrl_c_ends_a_run_whose_reader_takes_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 5000)
    fake = ROOT / "tests/helpers/fake_embedder.py"
    process = subprocess.Popen(
        [sys.executable, fake, "embed", "a.txt"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout.read(10), "it has begun to write"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == 130
    assert process.stderr.read() == b"lastword: stopped\n"
    process.communicate()


BENCH = ("bench kernels", "bench peers", "bench model")
NAMES = (*COMMANDS, *BENCH)
HELP = [["--help"], ["--version"], *([*name.split(), "--help"] for name in NAMES)]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_is_fast(arguments):
    code = f"""
import sys
from lastword.cli.main import main
status = main({arguments!r})
heavy = [name for name in ("torch", "numpy", "transformers", "tokenizers") if name in sys.modules]
sys.exit(status or (f"imported {{heavy}}" if heavy else 0))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "--version" in arguments or "  lastword " in done.stdout.split("example", 1)[1]


def test_options_and_files_in_any_order(cli):
    Path("a.txt").write_text("x")
    Path("-b.txt").write_text("y")
    lines = {
        cli(*arguments).out.replace('"./-b.txt"', '"-b.txt"')
        for arguments in (
            ["embed", "a.txt", "--quiet", "./-b.txt"],
            ["embed", "--quiet", "a.txt", "./-b.txt"],
            ["embed", "--quiet", "--", "a.txt", "-b.txt"],
        )
    }
    assert len(lines) == 1
    assert lines.pop().count("\n") == 2
    assert cli("search", "x", "--top-k", "1", "a.txt", "--quiet").out.count("\n") == 1


# What the installed script does.
SCRIPT = "import re, sys\nfrom lastword.cli.entry import main\nsys.exit(main())\n"
INTERRUPTED = """
import os, re, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
from lastword.cli.entry import main
sys.meta_path.insert(0, Interrupt())
sys.exit(main())
"""


@pytest.mark.parametrize(
    "name",
    [
        "lastword.cli.main",
        "argparse",
        "lastword.errors",
        "lastword.cli.read",
        "lastword.cli.parser",
        "lastword.cli.commands.embed",
        "lastword.bench.command",
    ],
)
def test_ctrl_c_during_an_import_is_one_line(name):
    """Most are imported before `cli.main` handles the signals, the last two afterwards."""
    command = [sys.executable, "-c", INTERRUPTED.format(name=name), "--help"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "lastword: stopped\n")


def test_an_ignored_ctrl_c_stays_ignored():
    code = INTERRUPTED.format(name="argparse").replace(
        "signal.default_int_handler", "signal.SIG_IGN"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], check=False, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_nothing_else_is_imported_before_ctrl_c_is_handled():
    code = "import re, sys; old = {*sys.modules}; import lastword.cli.entry; print({*sys.modules} - old)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    ours = ("lastword", "lastword.cli", "lastword.cli.entry")
    assert sorted(name for name in ast.literal_eval(done.stdout)) == sorted(ours)


@pytest.mark.timing
@pytest.mark.parametrize("seconds", [0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2])
def test_ctrl_c_at_any_time_shows_no_traceback_of_ours(tmp_path, seconds):
    (tmp_path / "a.txt").write_text("text\n")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "embed", "a.txt"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    # Python's own start, which reads the environment's packages, is not in our hands.
    assert err == "lastword: stopped\n" or str(ROOT / "engine") not in err
