"""Running transformers layer by layer gives transformers' own results, with one layer in memory."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from helpers.transformers_reference import load_theirs
from transformers.models.qwen3 import modeling_qwen3

from lastword import ConfigError, Embedder
from lastword.bench.checkpoint import make_checkpoint
from lastword.verify.transformers_reference import (
    ReferenceText,
    StoredTensors,
    compute_reference_states,
)

IDS = [[5], [7, 8, 9], [7, 8, 10], list(range(90)), [5, 6], [5]]


def reference_states(folder: Path, dtype: torch.dtype = torch.float32):
    return compute_reference_states(folder, IDS, dtype, torch.device("cpu"), lambda _: None)


@torch.inference_mode()
def test_the_layers_give_the_same_states_as_the_model(tiny_checkpoint: Path) -> None:
    ours, model = reference_states(tiny_checkpoint), load_theirs(tiny_checkpoint)
    for i, ids in enumerate(IDS):
        out = model(torch.tensor([ids]), output_hidden_states=True)
        states = torch.stack([layer[0, -1] for layer in out.hidden_states])
        torch.testing.assert_close(ours.states[i].float(), states, atol=2e-6, rtol=1e-5)
        final = out.last_hidden_state[0].double()
        torch.testing.assert_close(ours.first[i], final[0], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(ours.mean[i], final.mean(0), atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(ours.before_last[i], final[-2:][0], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(
            model.norm(ours.unnormed[i].float()), states[-1], atol=2e-6, rtol=1e-5
        )


def test_one_layer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "deep", num_hidden_layers=6)
    alive: weakref.WeakSet = weakref.WeakSet()
    tables: weakref.WeakSet = weakref.WeakSet()
    most = 0

    def read(self, name: str, true=StoredTensors.read) -> torch.Tensor:
        tensor = true(self, name)
        if name == "embed_tokens.weight":
            tables.add(tensor)
        return tensor

    class Counted(modeling_qwen3.Qwen3DecoderLayer):
        def __init__(self, *args):
            nonlocal most
            super().__init__(*args)
            gc.collect()
            assert not tables, "nor is the embedding table held"
            alive.add(self)
            # Only the layer being built is alive, and its weights are not loaded yet.
            most = max(most, sum(not next(layer.parameters()).is_meta for layer in alive))

    monkeypatch.setattr(modeling_qwen3, "Qwen3DecoderLayer", Counted)
    monkeypatch.setattr(StoredTensors, "read", read)
    reference_states(folder)
    assert most == 0


def test_not_finite_names_tensors(tiny_checkpoint: Path) -> None:
    assert StoredTensors(tiny_checkpoint).not_finite() == []


def test_prompts_are_read_like_sentence_transformers(tiny_checkpoint: Path) -> None:
    text = ReferenceText(tiny_checkpoint)
    assert text.prompt("query").startswith("Instruct: ")
    assert text.prompt("document") == ""
    assert text.appended() == ["<|endoftext|>"]
    assert text.normalize


# The results that verification reads from the Embedder.


@torch.inference_mode()
def test_hidden_states_equal_transformers(tiny_checkpoint: Path) -> None:
    ours, model = Embedder(tiny_checkpoint, device="cpu"), load_theirs(tiny_checkpoint)
    texts = ["a", "a longer text", "a longer text of this kind", "a"]
    states = ours.hidden_states(texts, prompt_name="query")
    assert states.shape == (4, 3, 64)
    for ids, state in zip(ours.token_ids(texts, "query"), states, strict=True):
        out = model(torch.tensor([ids]), output_hidden_states=True)
        expected = torch.stack([layer[0, -1] for layer in out.hidden_states])
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)
    some = ours.hidden_states(texts, layers=[-1, 1], prompt_name="query")
    assert torch.equal(some, states[:, [2, 1]])
    vectors = torch.nn.functional.normalize(states[:, -1], dim=1)
    torch.testing.assert_close(vectors, ours.encode_query(texts), atol=1e-6, rtol=0)
    assert ours.hidden_states([]).shape == (0, 3, 64)


@pytest.mark.parametrize("layer", [3, -4, 1.0, True])
def test_no_such_layer(layer: object, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Embedder(tiny_checkpoint, device="cpu").hidden_states(["a"], layers=[layer])
    assert (caught.value.where, caught.value.what) == ("layers", "no such layer")
    assert caught.value.got == repr(layer)


def test_token_ids_are_what_is_computed(tiny_checkpoint: Path) -> None:
    ours = Embedder(tiny_checkpoint, device="cpu", max_length=6)
    (ids,) = ours.token_ids(["one two three four five six seven"])
    assert len(ids) == 6
    assert ids[-1] == ours.token_ids([""])[0][0]
