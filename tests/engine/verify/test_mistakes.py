"""Ways to break the engine: the patched function, and the check of `lastword verify` that must fail."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.kernels import cpu
from lastword.model.qwen3 import Model
from lastword.runtime import loop, runner
from lastword.text.tokenizer import TextTokenizer
from lastword.verify import verify


def no_end_token(self, texts, max_length, *, true=TextTokenizer.encode, **others):
    tokens = true(self, texts, max_length, **others)
    return replace(tokens, ids=[ids[:-1] or ids for ids in tokens.ids])


def end_token_lost_in_cut(self, texts, max_length, *, true=TextTokenizer.encode, **others):
    return replace(
        tokens := true(self, texts, 100_000, **others),
        ids=[ids[:max_length] for ids in tokens.ids],
    )


def space_after_prompt(self, name=None, prompt=None, kind=None, true=Embedder.resolve_prompt):
    return true(self, name, prompt, kind) + (" " if kind == "query" else "")


def query_prompt_on_documents(self, texts, *args, true=Embedder.encode_query, **options):
    return true(self, texts, *args, **options)


def no_query_prompt(self, texts, *args, **options):
    return self.encode(texts, **options)


def no_normalizer(self, folder, *args, true=TextTokenizer.__init__, **kwargs):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as without:
        wrong = json.dumps({**tokenizer, "normalizer": None})
        Path(without, "tokenizer.json").write_text(wrong, encoding="utf-8")
        true(self, Path(without), *args, **kwargs)


def row_before_the_last(tokens, *args, true=loop.plan_forests, **options):
    return true([ids[:-1] or ids for ids in tokens], *args, **options)


def first_row(tokens, *args, true=loop.plan_forests, **options):
    return true([ids[:1] for ids in tokens], *args, **options)


def before_final_norm(self, forest, observe=None, true=Model.forward):
    residuals = []

    def both(layer, states):
        residuals.append(states.clone())
        if observe:
            observe(layer, states)

    true(self, forest, both)
    return residuals[-1]


def not_normalised(states, dim, *, normalize):
    return states[:, :dim].float()


def next_text(self, texts, *args, true=Embedder.encode, **options):
    vectors = true(self, texts, *args, **options)
    return vectors if len(texts) == 1 else vectors.roll(1, 0)


def mask_off_by_one(q, k, v, plan, scale, true=cpu.forest_attention):
    # Each row sees its path's last key where its own should be.
    rows = torch.arange(len(k))
    paths = [rows[block.path].view(block.count, -1).roll(1, 1).flatten() for block in plan.blocks]
    blocks = [replace(b, path=path) for b, path in zip(plan.blocks, paths, strict=True)]
    return true(q, k, v, replace(plan, blocks=tuple(blocks)), scale)


def swapped_kv_heads(q, k, v, plan, scale, true=cpu.forest_attention):
    return true(q, k.flip(1), v.flip(1), plan, scale)


def wrong_last_layer(self, *args, true=Model.__init__, **settings):
    true(self, *args, **settings)
    self.layers[-1].q_norm = self.layers[-1].q_norm * 1.01


BROKEN: dict[str, tuple[object, str, Callable, str, str]] = {
    "end token": (TextTokenizer, "encode", no_end_token, "end token", "missing from"),
    "end token, cut": (TextTokenizer, "encode", end_token_lost_in_cut, "end token", "was cut"),
    "prompt": (Embedder, "resolve_prompt", space_after_prompt, "prompt text", "a space after"),
    "no prompt": (Embedder, "encode_query", no_query_prompt, "prompt text", "with no prompt"),
    "prompt on documents": (
        Embedder, "encode_document", query_prompt_on_documents, "prompt text", "the query prompt",
    ),
    "tokens": (TextTokenizer, "__init__", no_normalizer, "tokens", "Cafe"),
    "row": (loop, "plan_forests", row_before_the_last, "pooled row", "before the last"),
    "first row": (loop, "plan_forests", first_row, "pooled row", "the first row"),
    "norm": (Model, "forward", before_final_norm, "final norm", "before the final norm"),
    "length": (runner, "postprocess", not_normalised, "normalisation", "expected 1"),
    "order": (Embedder, "encode", next_text, "order", "has the vector of"),
    "mask": (cpu, "forest_attention", mask_off_by_one, "neighbours", "in a batch"),
    "heads": (cpu, "forest_attention", swapped_kv_heads, "layers", "after layer 1 of 2"),
    "last layer": (Model, "__init__", wrong_last_layer, "layers", "after layer 2 of 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_is_named(
    name: str, tiny_checkpoint: Path, known_reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_named(name, tiny_checkpoint, monkeypatch)


# An error of 1 % in a weight of q_norm has less effect than rounding to 8 bits.
@pytest.mark.parametrize("name", [name for name in BROKEN if name != "last layer"])
def test_a_broken_engine_is_named_despite_int8(
    name: str, tiny_checkpoint: Path, known_reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_named(name, tiny_checkpoint, monkeypatch, quantize="int8")


# The final norm of this checkpoint changes a vector less than fp8 does: only the check "layers" finds it missing.
@pytest.mark.parametrize("name", ["end token", "prompt", "first row", "row", "length", "order"])
def test_a_broken_engine_is_named_despite_fp8(
    name: str,
    four_layers: Path,
    known_reference,
    fp8_on_a_cpu: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_named(name, four_layers, monkeypatch, **fp8_on_a_cpu)


def assert_named(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options) -> None:
    owner, attribute, wrong, expected, words = BROKEN[name]
    monkeypatch.setattr(owner, attribute, wrong)
    verdict = verify(folder, **options)
    assert verdict.cause is not None
    assert verdict.cause.name == expected, verdict.checks
    assert words in verdict.cause.detail
