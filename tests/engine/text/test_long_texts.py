"""Very long texts in a process of their own: how much memory tokenising takes, and how soon Ctrl-C is answered."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lastword

DATA = os.environ.get("LASTWORD_TEST_DATA")
BUILTIN = Path(lastword.weights.__file__).parent / "builtin"
REAL = Path(DATA or "", "tokenizers/Qwen3-Embedding-0.6B")
MOST_MB = 300
# For each kind of text a piece that is repeated.
PIECES = {
    "prose": "The quick brown fox jumps over the lazy dog, and then it rests. ",
    "digits": "0123456789",
    "base64": "QUJDRA0kX2abF+/z9",
    "letters": "QUJDRAkXabFz",
    "spaces": " ",
    "signs": ",",
    "han": "東京都日本国𠀀",
    "emoji": "🙂🎉🚀",
    "marks": "\u0301\u0323",
}

# Prints a line when it begins, then the MB that tokenising took beyond the texts. Linux counts the peak anew when told.
PROGRAM = """
import json, re, sys
from pathlib import Path
from lastword.errors import InputError
from lastword.text.tokenizer import TextTokenizer

folder, side, piece, chars, texts, most = json.loads(sys.argv[1])
tokenizer = TextTokenizer(Path(folder), 200_000, truncation_side=side)
tokenizer.encode(["a warm-up"], most)
texts = [piece * (chars // len(piece)) for _ in range(texts)]
status = Path("/proc/self/status")

def peak(name):
    return int(re.search(name + r":\\s+(\\d+) kB", status.read_text())[1]) / 1024

Path("/proc/self/clear_refs").write_text("5")
before = peak("VmRSS")
print("begins", flush=True)
try:
    tokens = tokenizer.encode(texts, most)
    assert all(len(ids) <= most for ids in tokens.ids)
except InputError as error:
    assert "no place to split it is known" in str(error)
print(peak("VmHWM") - before, flush=True)
"""


def begin(folder: Path, side: str, kind: str, chars: int, texts: int = 1) -> subprocess.Popen[str]:
    values = json.dumps([str(folder), side, PIECES[kind], chars, texts, 32_768])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, values], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def folder_of(name: str) -> Path:
    if name == "real" and not DATA:
        pytest.skip("LASTWORD_TEST_DATA is not set")
    return REAL if name == "real" else BUILTIN


def check_memory(folder: Path, side: str, kind: str, chars: int) -> None:
    with begin(folder, side, kind, chars) as process:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert float(out) < MOST_MB


linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@linux
@pytest.mark.timing
@pytest.mark.parametrize(
    ("name", "side", "kind"),
    [("builtin", "right", "signs"), ("real", "left", "digits"), ("real", "right", "emoji")],
)
def test_a_long_text_takes_little_memory(name: str, side: str, kind: str) -> None:
    check_memory(folder_of(name), side, kind, 2_000_000)


@linux
@pytest.mark.soak
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", PIECES)
@pytest.mark.parametrize("name", ["builtin", "real"])
def test_a_huge_text_takes_little_memory(name: str, side: str, kind: str) -> None:
    check_memory(folder_of(name), side, kind, 20_000_000)


@linux
@pytest.mark.timing
@pytest.mark.parametrize(
    ("kind", "chars", "texts"), [("spaces", 100_000_000, 1), ("prose", 60_000, 400), ("signs", 900, 30_000)]
)  # fmt: skip
def test_an_interruption_is_answered_soon(kind: str, chars: int, texts: int) -> None:
    with begin(BUILTIN, "right", kind, chars, texts) as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = process.communicate()
        assert time.monotonic() - began < 2
    assert "KeyboardInterrupt" in err
