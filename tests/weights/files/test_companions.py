"""Companion files: only a model's own files are copied, whatever stands under their names, and differences are told."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.messages import refusal
from helpers.small_models import snapshot_of

from lastword.errors import WeightsError
from lastword.weights.files import companions
from lastword.weights.files.companions import (
    check_companions,
    copy_companions,
    differing_companions,
    read_companion,
)

SECRET = "the secret"
POOLING = "1_Pooling/config.json"
OUTSIDE, UNREADABLE = "is stored outside the model's folder", "cannot be read"
NOWHERE = "a link that leads nowhere"
OWN = "Only the model's own files are copied. Replace the link by the file, if it belongs to the model."


MODULES = [
    {"type": "T", "path": ""},
    {"type": "P", "path": "1_Pooling"},
    {"type": "N", "path": "2_Normalize"},
]
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json")


@pytest.fixture
def model(tmp_path) -> Path:
    """A model's folder without weights."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}")
    (folder / "modules.json").write_text(json.dumps(MODULES))
    return folder


def link(name: str, target: str):
    """Replace a file or folder by a link."""

    def make(model: Path) -> None:
        place = model / name
        place.parent.mkdir(exist_ok=True)
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.symlink_to(target)

    return make


def pipe(name: str):
    def make(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)

    return make


def chained(model: Path) -> None:
    """A link to a link in the folder, which leads out of it."""
    link("NOTICE", "../secret")(model)
    link("LICENSE", "NOTICE")(model)


# What is done to the model, the file that is refused, what is wrong with it, and the target of the link.
REFUSED = {
    "outside": (link("LICENSE", "../secret"), "LICENSE", OUTSIDE, "secret"),
    "absolute": (link("LICENSE", "/etc/passwd"), "LICENSE", OUTSIDE, "/etc/passwd"),
    "card": (link("README.md", "../secret"), "README.md", OUTSIDE, "secret"),
    "config": (link("config.json", "../secret"), "config.json", OUTSIDE, "secret"),
    "chain": (chained, "LICENSE", OUTSIDE, "secret"),
    "module-file": (link(POOLING, "../../secret"), POOLING, OUTSIDE, "secret"),
    "module-folder": (link("1_Pooling", "../folder"), POOLING, OUTSIDE, "folder/config.json"),
    "sibling": (link("vocab.json", "../model-2/vocab.json"), "vocab.json", OUTSIDE, "model-2/vocab.json"),
    "device": (link("merges.txt", "/dev/zero"), "merges.txt", f"{UNREADABLE} (it is a device)", None),
    "pipe": (pipe("merges.txt"), "merges.txt", f"{UNREADABLE} (it is a pipe)", None),
    "folder": (lambda m: (m / "LICENSE").mkdir(), "LICENSE", f"{UNREADABLE} (it is a folder)", None),
    "dangling": (link("LICENSE", "gone"), "LICENSE", NOWHERE, None),
    "dangling-module": (link("1_Pooling", "gone"), "1_Pooling", NOWHERE, None),
    "loop": (link("NOTICE", "NOTICE"), "NOTICE", f"{UNREADABLE} (Too many levels of symbolic links)", None),
    "large": (lambda m: (m / "LICENSE").write_bytes(bytes(1001)), "LICENSE", "too large", None),
    "pointer": (lambda m: (m / "vocab.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
                "vocab.json", "a Git LFS pointer, not the file itself", None),
}  # fmt: skip


def read_all(folder: Path) -> None:
    """Read everything that `convert` copies, the card too."""
    check_companions(folder)
    if os.path.lexists(folder / "README.md"):
        read_companion(folder, Path("README.md"))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_models_own_is_refused(tmp_path, model, monkeypatch, case):
    make, file, what, target = REFUSED[case]
    for place in ("secret", "folder/config.json", "model-2/vocab.json"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(f'["{SECRET}"]')
    if case == "large":
        monkeypatch.setattr(companions, "_MAX_BYTES", 1000)
    make(model)
    parts = {} if target is None else {"got": str(tmp_path / target), "remedy": OWN}
    with refusal(WeightsError, where=str(model / file), what=what, **parts):
        read_all(model)


def test_links_within_a_model_are_followed(tmp_path, model):
    (model / "LICENSE.txt").write_text("free")
    link("LICENSE", "LICENSE.txt")(model)
    (tmp_path / "other").symlink_to("model")
    (tmp_path / "new").mkdir()
    copy_companions(tmp_path / "other", tmp_path / "new", {torch.float32})
    assert (tmp_path / "new/LICENSE").read_text() == "free"
    assert not (tmp_path / "new/LICENSE").is_symlink()


def test_what_is_no_json_may_begin_and_end_as_it_likes(tmp_path, model):
    """Many model cards begin with HTML, and many templates with a token in angle brackets."""
    texts = {"LICENSE": "", "README.md": "<p>A model</p>", "chat_template.jinja": "<|im_start|>"}
    for name, text in texts.items():
        (model / name).write_text(text)
    (tmp_path / "new").mkdir()
    copy_companions(model, tmp_path / "new", {torch.float32})
    assert read_companion(model, Path("README.md")) == b"<p>A model</p>"
    assert (tmp_path / "new/chat_template.jinja").read_text() == "<|im_start|>"
    assert (tmp_path / "new/LICENSE").read_text() == ""


def test_a_snapshot_of_the_hubs_cache_is_a_model(tmp_path, cache):
    snapshot = snapshot_of(cache)
    blobs = snapshot.parent.parent / "blobs"
    (tmp_path / "new").mkdir()
    copy_companions(snapshot, tmp_path / "new", {torch.bfloat16})
    copied = {
        path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*.json")
    }
    assert copied == {
        path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.json")
    } - {"model.safetensors.index.json"}  # fmt: skip
    assert json.loads((tmp_path / "new/config.json").read_text())["torch_dtype"] == "bfloat16"
    # Of what is beside the blobs, nothing belongs to the model.
    for place in (blobs / "secret", blobs.parent / "refs/main", tmp_path / ("0" * 40)):
        place.write_text(SECRET)
        link("LICENSE", str(place))(snapshot)
        with refusal(WeightsError, where=str(snapshot / "LICENSE"), what=OUTSIDE, got=str(place)):
            check_companions(snapshot)
    # A folder that is not in a cache has no blobs.
    plain = tmp_path / "x/snapshots/model"
    shutil.copytree(snapshot, plain, ignore=lambda *_: ["LICENSE"])
    (tmp_path / "x/blobs").mkdir()
    (tmp_path / "x/blobs" / ("0" * 40)).write_text(SECRET)
    link("LICENSE", "../../blobs/" + "0" * 40)(plain)
    with refusal(WeightsError, where=str(plain / "LICENSE"), what=OUTSIDE):
        check_companions(plain)


def test_only_the_folders_of_the_modules_are_copied(tmp_path, model):
    for name in (".git", "onnx", "9_Other"):
        (model / name).mkdir()
        (model / name / "config.json").write_text("{}")
    modules = json.loads((model / "modules.json").read_text())
    modules[1]["path"] = "deep/1_Pooling"
    modules += [{"path": "../outside"}, {"path": "/etc"}, {"path": 3}, "x"]
    (model / "deep").mkdir()
    (model / "1_Pooling").rename(model / "deep/1_Pooling")
    (model / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "new").mkdir()
    copy_companions(model, tmp_path / "new", {torch.float32})
    folders = {path.parent.name for path in (tmp_path / "new").rglob("config.json")}
    assert folders == {"new", "1_Pooling"}
    assert (tmp_path / "new/deep/1_Pooling/config.json").is_file()


TOKENS, SETTINGS = "tokenizer_config.json", "config_sentence_transformers.json"
# Two contents of a file, and what is said about them; None in place of one is no file.
DIFFERENCES = [
    (TOKENS, {"a": 1}, {"a": 1.0}, None),
    (TOKENS, {"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
    (TOKENS, {"truncation_side": "right"}, {"truncation_side": "left"}, 'truncation_side "left" (used: "right")'),
    (TOKENS, {}, {"truncation_side": "left"}, 'truncation_side "left" (used: none)'),
    (TOKENS, {"a": None}, {}, "a none (used: null)"),
    (SETTINGS, {"prompts": {"query": "Q: ", "x": ""}}, {"prompts": {"query": "", "x": ""}},
     'prompts.query "" (used: "Q: ")'),
    (SETTINGS, {"prompts": {}}, {"prompts": []}, "prompts [] (used: {})"),
    (TOKENS, {"a": {"b": {"c": {"d": 1, "e": 2}}}}, {"a": {"b": {"c": {"d": 2, "e": 2}}}},
     'a.b.c {"d": 2, "e": 2} (used: {"d": 1, "e": 2})'),
    ("modules.json", [{"type": "T"}, {"type": "P"}, {"type": "N"}], [{"type": "T"}, {"type": "Q"}],
     '1.type "Q" (used: "P"), 2 none (used: {"type": "N"})'),
    (TOKENS, {f"k{i}": i for i in range(9)}, {},
     "k0 none (used: 0), k1 none (used: 1), k2 none (used: 2), k3 none (used: 3), k4 none (used: 4) and 4 more"),
    (TOKENS, {"a b\n": "x" * 99}, {}, '"a b\\n" none (used: "' + "x" * 38 + "…)"),
    (TOKENS, None, {"truncation_side": "left"}, "only one of the two models has it"),
    ("merges.txt", "a", "b", "the content differs"),
    ("LICENSE", "a", "b", None),
    ("README.md", "a", "b", None),
]  # fmt: skip


@pytest.mark.parametrize(("file", "used", "found", "told"), DIFFERENCES)
def test_what_differs_is_told_in_a_bounded_line(tmp_path, file, used, found, told):
    for folder, content in (("used", used), ("found", found)):
        (tmp_path / folder).mkdir()
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / folder / file).write_text(text)
    expected = [] if told is None else [(file, told)]
    assert list(differing_companions(tmp_path / "used", tmp_path / "found")) == expected


def test_values_too_deep_to_compare_differ(tmp_path):
    for folder, value in (("used", "1"), ("found", "2")):
        (tmp_path / folder).mkdir()
        nested = '{"a":' + "[" * 900 + value + "]" * 900 + "}"
        (tmp_path / folder / TOKENS).write_text(nested)
    ((_, told),) = differing_companions(tmp_path / "used", tmp_path / "found")
    assert len(told) < 200
