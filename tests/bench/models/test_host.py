"""The host's steps are timed on every text, and the figures are plausible."""

import json
import re
from pathlib import Path

import pytest
import torch

from lastword.bench.models import host


@pytest.fixture
def threads() -> None:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_three_stages(
    threads: None, tiny_checkpoint: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")  # set back when the test is done
    words = ["--texts", "40", "--length", "12", "--batch", "200", "--rounds", "1"]
    host.main([*words, "--tokenizer", str(tiny_checkpoint)])
    out = capsys.readouterr().out
    assert json.loads(out.partition("\n")[0])["run"]["device"]
    assert "40 texts of" in out
    rates = dict(
        re.findall(r"^(tokenise|build forests|pack) +([\d.]+) M tokens/s$", out, re.MULTILINE)
    )
    assert list(rates) == ["tokenise", "build forests", "pack"]
    assert all(0 < float(rate) < 1000 for rate in rates.values())


def test_a_text_left_out_is_no_figure(
    threads: None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    true = host.plan_forests
    monkeypatch.setattr(host, "plan_forests", lambda ids, batch: list(true(ids, batch))[1:])
    words = ["--texts", "40", "--length", "12", "--batch", "200", "--rounds", "1"]
    with pytest.raises(RuntimeError, match="do not contain every text"):
        host.main([*words, "--tokenizer", str(tiny_checkpoint)])


def test_a_missing_tokenizer_is_one_line(
    threads: None, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    with pytest.raises(SystemExit):
        host.main(["--texts", "4", "--tokenizer", str(tmp_path)])
    assert f"{tmp_path}/tokenizer.json: no such file" in capsys.readouterr().err.splitlines()[-1]
