"""The progress bar is shown on a terminal, and not at all without stderr."""

import io
import re
import sys
import time

import pytest

from lastword.progress import on_terminal, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "expected"), [(None, False), (io.StringIO(), False), (Terminal(), True)]
)
def test_on_terminal(stream, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert on_terminal() is expected


@pytest.mark.timing
@pytest.mark.parametrize(
    ("total", "seconds", "shown"),
    [
        (None, 0, True),
        (256, 0, True),
        (255, 0, False),
        (255, 0.15, True),
        (2, 0.15, True),
        (1, 0.15, False),
    ],
)
def test_short_work_has_no_bar(total, seconds: float, shown: bool, monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("lastword.progress._DELAY_S", 0.1)
    with progress_bar(total, show=None) as advance:
        time.sleep(seconds)
        advance(1)
    assert ("Embedding" in terminal.getvalue()) is shown


def test_a_closed_stderr_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(None, show=None) as advance:
        advance(1)


@pytest.mark.timing
def test_the_clock_goes_on_while_nothing_advances(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(1000, show=True, unit="B") as advance:
        advance(250)
        time.sleep(2.3)
        assert {"00:01", "00:02"} <= set(re.findall(r"\[(\d\d:\d\d)<", terminal.getvalue()))
    drawn = terminal.getvalue()
    assert re.search(r"25%.* 250/1\.00k \[00:02<00:0[67]", drawn), "and the time left is said"
