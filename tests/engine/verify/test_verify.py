"""`lastword verify`: a sound engine passes, a broken one or a damaged checkpoint fails by the name of what is wrong."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.loading_bars import bars_of
from safetensors.torch import load_file, save_file

from lastword import ConfigError, Embedder, InputError
from lastword.bench.checkpoint import make_checkpoint, make_tokenizer
from lastword.cli.main import main
from lastword.verify import cards, run, verify


def cause(verdict) -> str | None:
    return verdict.cause.name if verdict.cause else None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sound_engine_passes(dtype: str, tiny_checkpoint: Path) -> None:
    verdict = verify(tiny_checkpoint, dtype=dtype, texts=["one more text", "and another"])
    assert verdict.passed, verdict.cause
    assert {check.status for check in verdict.checks} == {"ok"}
    assert verdict.reference == ("float64" if dtype == "float32" else "float32")
    assert [each.layer for each in verdict.layers] == [0, 1, 2]
    assert 0 < verdict.figures["max_abs_difference"] < (1e-5 if dtype == "float32" else 2e-2)
    assert verdict.texts == 56


@pytest.mark.parametrize(
    "layout",
    [
        {"prefix": "model.", "shards": 2, "tied": False, "dtype": torch.bfloat16},
        {"config_format": "v5", "attention_bias": True, "sentence_transformers": False},
    ],
    ids=["prefixed-shards-bf16", "v5-biases-no-modules"],
)
def test_every_layout_of_checkpoint_passes(layout: dict, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", **layout)
    verdict = verify(folder, truncate_dim=24)
    assert verdict.passed, verdict.cause


@pytest.mark.skipif("LASTWORD_TEST_DATA" not in os.environ, reason="LASTWORD_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [("Qwen3-Embedding-4B", 151_665, None), ("Qwen3", 151_936, "end token")],
)
def test_real_tokenizers(name: str, rows: int, expected: str | None, tmp_path: Path) -> None:
    tokenizer = Path(os.environ["LASTWORD_TEST_DATA"], "tokenizers", name, "tokenizer.json")
    folder = make_checkpoint(tmp_path / "model", tokenizer=tokenizer, vocab_size=rows)
    assert cause(verify(folder)) == expected


def test_no_bar_where_none_is_wanted(tiny_checkpoint: Path, monkeypatch) -> None:
    """Of the model as it loads neither; see `Embedder`."""
    shown = bars_of(run, monkeypatch)
    assert verify(tiny_checkpoint, show_progress_bar=False).passed
    assert shown == [False]


# Four damaged checkpoints, through the command line.


def without_template(folder: Path) -> None:
    make_tokenizer(end_token=False).save(str(folder / "tokenizer.json"))


def foreign_prompts(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    settings["prompts"] = {"query": "query: ", "document": "passage: "}
    path.write_text(json.dumps(settings))


def mean_pooling(folder: Path) -> None:
    path = folder / "1_Pooling/config.json"
    settings = {**json.loads(path.read_text()), "pooling_mode_lasttoken": False}
    path.write_text(json.dumps({**settings, "pooling_mode_mean_tokens": True}))


def a_tensor_of_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


DAMAGED = {
    "template": (without_template, "end token", "got none, expected '<|endoftext|>'"),
    "prompts": (foreign_prompts, "prompt text", "got 'query: ', expected 'Instruct: …"),
    "pooling": (mean_pooling, "checkpoint", "pooling mode"),
    "nan": (a_tensor_of_nan, "weights", "not finite: layers.1.mlp.up_proj.weight"),
}


@pytest.fixture
def model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_named(name: str, model: Path, capfd) -> None:
    damage, expected, words = DAMAGED[name]
    damage(model)
    assert main(["verify", str(model), "--json"]) == 1
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert (found["passed"], found["cause"]) == (False, expected)
    assert words in err
    assert err.count("\n") == 1


def test_an_accepted_check_may_fail(model: Path) -> None:
    foreign_prompts(model)
    verdict = verify(model, accept=["prompt text"])
    assert verdict.passed
    assert next(c for c in verdict.checks if c.name == "prompt text").status == "accepted"


# Sound checkpoints of other forms.


def default_prompt(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    settings = {**json.loads(path.read_text()), "default_prompt_name": "query"}
    path.write_text(json.dumps(settings))


def no_modules(folder: Path) -> None:
    (folder / "modules.json").unlink()  # its prompts are nobody's then


def another_file(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"].fill_(torch.nan)
    save_file(tensors, folder / "training_state.safetensors")


@pytest.mark.parametrize("change", [default_prompt, no_modules, another_file])
def test_a_sound_checkpoint_passes(change, model: Path) -> None:
    change(model)
    verdict = verify(model)
    assert verdict.passed, verdict.cause


def test_texts_that_are_cut_to_the_same_tokens_are_ranked_as_one(tiny_checkpoint: Path) -> None:
    texts = [f"The report has three parts, and each of them is long. {i}" for i in range(30)]
    verdict = verify(tiny_checkpoint, texts=texts, max_length=16)
    assert verdict.passed, verdict.cause


def test_a_text_without_a_token_is_refused_beside_a_default_prompt(model: Path) -> None:
    default_prompt(model)
    without_template(model)
    with pytest.raises(InputError, match="text 1: gives no token"):
        verify(model, texts=["a", ""])


@pytest.mark.parametrize(
    ("damage", "name"), [(mean_pooling, "checkpoint"), (a_tensor_of_nan, "weights")]
)
def test_nothing_passes_that_was_not_compared(damage, name: str, model: Path) -> None:
    damage(model)
    verdict = verify(model, accept=[name])
    assert cause(verdict) == name
    assert "not accepted: other checks did not run" in verdict.cause.detail
    assert verdict.checks[-1].status == "not run"


# The command, its table and its errors.


def test_the_table(tiny_checkpoint: Path, known_truth, tmp_path: Path, capfd) -> None:
    texts = tmp_path / "mine.jsonl"
    texts.write_text('{"body": "a text of mine"}\n', encoding="utf-8")
    words = ["verify", str(tiny_checkpoint), "--texts", str(texts), "--text-field", "body"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "PASSED"
    assert "texts      55 of" in out
    assert "transformers in float64" in out
    assert err == ""


@pytest.mark.parametrize("move", [0.0, 0.01], ids=["right", "wrong"])
def test_scores_of_the_card(move: float, tiny_checkpoint: Path, known_truth, monkeypatch) -> None:
    ours = Embedder(tiny_checkpoint)
    true = cards.known_cards()["Qwen/Qwen3-Embedding-0.6B"]
    scores = ours.similarity(
        ours.encode_query(true.queries), ours.encode_document(true.documents)
    ).tolist()
    scores[1][0] += move
    monkeypatch.setattr(run, "known_cards", lambda: {"a/b": replace(true, scores=scores)})
    verdict = verify(tiny_checkpoint, scores=True, known_as="A/B")
    assert cause(verdict) == ("scores" if move else None)


def test_scores_with_stderr_closed(tiny_checkpoint: Path, known_truth, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    verdict = verify(
        tiny_checkpoint, scores=True, known_as="Qwen/Qwen3-Embedding-0.6B", show_progress_bar=False
    )
    assert cause(verdict) == "scores"


def test_the_cards_that_are_known() -> None:
    known = cards.known_cards()
    assert len(known) == 4
    assert known["Qwen/Qwen3-Embedding-0.6B"].scores == [[0.7646, 0.1414], [0.1355, 0.6]]
    assert all(name == card.model for name, card in known.items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accept": ["speed"]}, ConfigError, "accept: no such check; got 'speed'"),
        ({"accept": ["drift"]}, ConfigError, "accept: not checked .* got 'drift', .* --quantize"),
        ({"accept": ["scores"]}, ConfigError, "accept: not checked .* got 'scores', .* --scores"),
        ({"quantize": "int4"}, ConfigError, "quantize: unknown; got 'int4'"),
        ({"scores": True}, ConfigError, "scores: no model card is known for .* --as"),
        ({"texts": ["a", 5]}, InputError, "text 1: not a string"),
        ({"texts": ["a", "\udfff"]}, InputError, "text 1: not valid Unicode"),
        ({"texts": ["a"] * 1000}, InputError, "too many to verify with"),
        ({"truncate_dim": 65}, ConfigError, "truncate_dim: out of range"),
    ],
)
def test_refused(options: dict, error: type, message: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(error, match=message):
        verify(tiny_checkpoint, **options)


def test_without_transformers_it_says_what_to_install(tiny_checkpoint, monkeypatch, capfd) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert main(["verify", str(tiny_checkpoint)]) == 2
    assert "pip install 'lastword[verify]'" in capfd.readouterr().err
