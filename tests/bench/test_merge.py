"""The merge benchmark runs, checks its merge, and refuses to print figures of a wrong one."""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lastword.bench import merge as bench
from lastword.bench.checkpoint import make_checkpoint

linux = pytest.mark.skipif(sys.platform != "linux", reason="drops files from the page cache")
TINY = ["--like", "tiny", "--layers", "1", "--rounds", "2"]


@linux
def test_it_prints_speed_share_and_memory(tmp_path, capsys):
    bench.main([*TINY, "--folder", str(tmp_path)])
    out = capsys.readouterr().out
    assert json.loads(out.partition("\n")[0])["run"]["dtype"] == "float32"
    assert re.search(r"share of the copy's speed: \d+% in bytes written, \d+% in bytes moved", out)
    assert re.search(r"peak memory beyond files: [1-9]\d* MB", out)
    assert not list(tmp_path.iterdir())


@linux
def test_a_wrong_merge_prints_no_figures(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(bench, "make_models", lambda folder, options: [tiny_checkpoint] * 2)
    monkeypatch.setattr(bench, "multislerp", lambda tensors, weights: torch.zeros(1).double())
    with pytest.raises(SystemExit, match="differs from the formula: no figures"):
        bench.main([*TINY, "--folder", str(tmp_path)])
    out = capsys.readouterr().out
    assert "two models of" in out
    assert not re.search(r"\d s$|share|MB/s", out, re.MULTILINE), "no seconds of a round either"


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_next_to_the_right_ones_are_caught(tmp_path, dtype):
    models = [make_checkpoint(tmp_path / f"m{i}", seed=i, dtype=dtype) for i in (1, 2)]
    out = tmp_path / "out"
    bench.merge(models, out)
    bench.check(models, out)
    tensors = load_file(out / "model.safetensors")
    tensors["norm.weight"][3] *= 1 + 2 * torch.finfo(dtype).eps
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(SystemExit, match=r"^norm\.weight: the merge differs"):
        bench.check(models, out)


def test_another_system_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit):
        bench.main(TINY)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "needs the page cache and /proc; got darwin, expected linux" in last
