"""A broken or missing model: exit status 2, one line that names the problem, and the old output kept."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.messages import one_line


def _without(name):
    return lambda folder: (folder / name).unlink()


def _edit(name, change):
    def edit(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return edit


def _json_edit(name, **fields):
    return _edit(name, lambda old: json.dumps({**json.loads(old), **fields}).encode())


# The damage to the folder, and the parts that the one line must contain.
BROKEN = {
    "no-config": (_without("config.json"), ["config.json"]),
    "no-tokenizer": (_without("tokenizer.json"), ["tokenizer.json"]),
    "no-weights": (_without("model.safetensors"), ["safetensors"]),
    "no-pooling": (_without("1_Pooling/config.json"), ["1_Pooling"]),
    "config-not-json": (_edit("config.json", lambda old: old[:-5]), ["config.json"]),
    "config-a-list": (_edit("config.json", lambda old: b"[]"), ["config.json"]),
    "config-not-utf8": (_edit("config.json", lambda old: b"\xff"), ["config.json"]),
    "other-model": (_json_edit("config.json", model_type="bert"), ["bert"]),
    "sliding-window": (
        _json_edit(
            "config.json",
            use_sliding_window=True,
            sliding_window=16,
            max_window_layers=0,
            layer_types=["sliding_attention"] * 2,
        ),
        ["config.json"],
    ),
    "other-shape": (_json_edit("config.json", intermediate_size=97), ["97"]),
    "tokenizer-cut": (_edit("tokenizer.json", lambda old: old[:-50]), ["tokenizer.json"]),
    "tokenizer-empty": (_edit("tokenizer.json", lambda old: b""), ["tokenizer.json"]),
    "weights-cut": (_edit("model.safetensors", lambda old: old[:-9]), ["model.safetensors"]),
    "weights-empty": (_edit("model.safetensors", lambda old: b""), ["model.safetensors"]),
    "weights-header": (
        _edit("model.safetensors", lambda old: old[:8] + b"\x00" + old[9:]),
        ["model.safetensors"],
    ),
    "weights-a-page": (
        _edit("model.safetensors", lambda old: b"<!DOCTYPE html><html>" * 9),
        ["model.safetensors"],
    ),
    "modules-unknown": (
        _edit("modules.json", lambda old: old.replace(b"Normalize", b"Dense")),
        ["Dense"],
    ),
}


@pytest.mark.parametrize(("damage", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_models(run, tiny_checkpoint, tmp_path, damage, expected):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    damage(folder)
    Path("out.npy").write_text("old")
    one_line(run("embed", "texts.txt", "--model", folder, "-o", "out.npy"), *expected)
    assert Path("out.npy").read_text() == "old"
    assert sorted(os.listdir()) == ["model", "out.npy", "texts.txt"]


@pytest.mark.parametrize("model", ["gone/folder/here", "./gone", "texts.txt"])
def test_no_such_model(run, model):
    one_line(run("embed", "texts.txt", "--model", model), model)
