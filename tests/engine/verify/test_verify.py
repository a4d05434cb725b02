"""`lastword verify`: a correct engine passes; a broken engine or a damaged checkpoint fails the check that names it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.messages import bars_of
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from lastword import ConfigError, Embedder, InputError
from lastword.bench.checkpoint import make_checkpoint, make_tokenizer
from lastword.cli.main import main
from lastword.verify import card_scores, verification, verify


def cause(verdict) -> str | None:
    return verdict.cause.name if verdict.cause else None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_correct_engine_passes(dtype: str, tiny_checkpoint: Path) -> None:
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


def test_no_progress_bar_if_disabled(tiny_checkpoint: Path, monkeypatch) -> None:
    """Nor does the loading of the model show one."""
    shown = bars_of(verification, monkeypatch)
    assert verify(tiny_checkpoint, show_progress_bar=False).passed
    assert shown == [False]


# Damaged checkpoints, through the command line.


def without_template(folder: Path) -> None:
    make_tokenizer(end_token=False).save(str(folder / "tokenizer.json"))


INSTRUCTION = "Instruct: Given a question, find its answer\nQuery:"


def set_prompts(folder: Path, query: str, document: str) -> None:
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    settings["prompts"] = {"query": query, "document": document}
    path.write_text(json.dumps(settings))


def rename_end_token(folder: Path) -> None:
    """Without a tokenizer_config.json transformers then adds Qwen's end token with an id of its own."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<|endoftext|>", "[END]"), "utf-8")


def end_token_of_another_family(folder: Path, eos: int | None = None) -> None:
    """Call the end token [END] and name it in config.json, or name the token `eos` there."""
    path = folder / "tokenizer_config.json"
    path.write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    rename_end_token(folder)
    path = folder / "tokenizer.json"
    end = Tokenizer.from_file(str(path)).token_to_id("[END]")
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), "eos_token_id": end if eos is None else eos}
    path.write_text(json.dumps(values))


def another_end_token_is_named(folder: Path) -> None:
    end_token_of_another_family(folder, eos=5)


def no_line_break(folder: Path) -> None:
    set_prompts(folder, INSTRUCTION.replace("\n", " "), "")


def space_at_the_end(folder: Path) -> None:
    set_prompts(folder, f"{INSTRUCTION} ", "")


def instructed_documents(folder: Path) -> None:
    set_prompts(folder, INSTRUCTION, INSTRUCTION)


def mean_pooling(folder: Path) -> None:
    path = folder / "1_Pooling/config.json"
    settings = {**json.loads(path.read_text()), "pooling_mode_lasttoken": False}
    path.write_text(json.dumps({**settings, "pooling_mode_mean_tokens": True}))


def a_token_of_another_file(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "[PAD]"}))


def a_tensor_of_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


DAMAGED = {
    "template": (without_template, "end token", "got none, expected '<|endoftext|>'"),
    "end token": (another_end_token_is_named, "end token", "got '[END]', expected"),
    "line break": (no_line_break, "prompt text", "its answer Query:', expected 'Instruct: …"),
    "space": (space_at_the_end, "prompt text", "Query: ', expected 'Instruct: …"),
    "documents": (instructed_documents, "prompt text", "is a query instruction; got 'Instruct: "),
    "pooling": (mean_pooling, "checkpoint", "pooling mode"),
    "token": (a_token_of_another_file, "checkpoint", "contradicts tokenizer.json"),
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
    no_line_break(model)
    verdict = verify(model, accept=["prompt text"])
    assert verdict.passed
    assert next(c for c in verdict.checks if c.name == "prompt text").status == "accepted"


# Correct checkpoints of other forms.


def no_prompts(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text('{"prompts": {"query": null}, "truncate_dim": 16}')


def end_of_long_texts(folder: Path) -> None:
    keywords = {"truncation_side": "left", "model_max_length": 16}
    (folder / "sentence_bert_config.json").write_text(json.dumps({"processor_kwargs": keywords}))


def default_prompt(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    settings = {**json.loads(path.read_text()), "default_prompt_name": "query"}
    path.write_text(json.dumps(settings))


def no_modules(folder: Path) -> None:
    (folder / "modules.json").unlink()  # sentence-transformers then reads no prompts


def another_file(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"].fill_(torch.nan)
    save_file(tensors, folder / "training_state.safetensors")


def prompts_of_another_kind(folder: Path) -> None:
    set_prompts(folder, "query: ", "passage: ")


@pytest.mark.parametrize(
    "change",
    [
        no_prompts,
        end_of_long_texts,
        default_prompt,
        no_modules,
        another_file,
        prompts_of_another_kind,
        end_token_of_another_family,
    ],
)
def test_a_correct_checkpoint_passes(change, model: Path) -> None:
    change(model)
    verdict = verify(model)
    assert verdict.passed, verdict.cause


def test_texts_that_are_cut_to_the_same_tokens_are_ranked_as_one(tiny_checkpoint: Path) -> None:
    texts = [f"The report has three parts, and each of them is long. {i}" for i in range(30)]
    verdict = verify(tiny_checkpoint, texts=texts, max_length=16)
    assert verdict.passed, verdict.cause


def test_a_text_without_tokens_is_refused_despite_a_default_prompt(model: Path) -> None:
    default_prompt(model)
    without_template(model)
    with pytest.raises(InputError) as caught:
        verify(model, texts=["a", ""])
    assert (caught.value.where, caught.value.what) == ("text 1", "gives no token")
    assert caught.value.index == 1


def test_tokens_that_only_transformers_adds(model: Path) -> None:
    rename_end_token(model)
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError) as caught:
        verify(model)
    expected = {
        "where": f"{model}: transformers' tokenizer",
        "what": "token ids go beyond the embedding table",
        "got": "id 512",
        "expected": "below 512",
    }
    assert expected.items() <= vars(caught.value).items()


@pytest.mark.parametrize(
    ("damage", "name"), [(mean_pooling, "checkpoint"), (a_tensor_of_nan, "weights")]
)
def test_an_uncompared_model_does_not_pass(damage, name: str, model: Path) -> None:
    damage(model)
    verdict = verify(model, accept=[name])
    assert cause(verdict) == name
    assert "not accepted: other checks did not run" in verdict.cause.detail
    assert verdict.checks[-1].status == "not run"


# The command, its table and its errors.


def test_the_built_in_model_passes(capfd) -> None:
    """`lastword verify` without a model is the first thing that people try."""
    assert main(["verify"]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "PASSED"
    assert "[END] after every text" in out
    assert err == ""


def test_the_table(tiny_checkpoint: Path, known_reference, tmp_path: Path, capfd) -> None:
    texts = tmp_path / "mine.jsonl"
    texts.write_text('{"body": "a text of mine"}\n', encoding="utf-8")
    words = ["verify", str(tiny_checkpoint), "--texts", str(texts), "--text-field", "body"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "PASSED"
    assert "texts      55 with" in out
    assert "transformers in float64" in out
    assert err == ""


@pytest.mark.parametrize("move", [0.0, 0.01], ids=["right", "wrong"])
def test_scores_of_the_card(
    move: float, tiny_checkpoint: Path, known_reference, monkeypatch
) -> None:
    ours = Embedder(tiny_checkpoint)
    true = card_scores.known_card_scores()["Qwen/Qwen3-Embedding-0.6B"]
    scores = ours.similarity(
        ours.encode_query(true.queries), ours.encode_document(true.documents)
    ).tolist()
    scores[1][0] += move
    known = {"a/b": replace(true, scores=scores)}
    monkeypatch.setattr(verification, "known_card_scores", lambda: known)
    verdict = verify(tiny_checkpoint, scores=True, known_as="A/B")
    assert cause(verdict) == ("scores" if move else None)


def test_scores_with_stderr_closed(tiny_checkpoint: Path, known_reference, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    verdict = verify(
        tiny_checkpoint, scores=True, known_as="Qwen/Qwen3-Embedding-0.6B", show_progress_bar=False
    )
    assert cause(verdict) == "scores"


def test_the_cards_that_are_known() -> None:
    known = card_scores.known_card_scores()
    assert len(known) == 4
    assert known["Qwen/Qwen3-Embedding-0.6B"].scores == [[0.7646, 0.1414], [0.1355, 0.6]]
    assert all(name == card.model for name, card in known.items())


KNOWN = (
    "one of: checkpoint, weights, end token, prompt text, template, tokens, pooled row, final norm, head, "
    "normalisation, order, neighbours, layers, vectors, log-odds, drift, ranking, scores"
)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"accept": ["speed"]}, ConfigError, ("accept", "no such check", "'speed'", KNOWN)),
        (
            {"accept": ["drift"]},
            ConfigError,
            ("accept", "this check runs only with --quantize", "'drift'", None),
        ),
        (
            {"accept": ["scores"]},
            ConfigError,
            ("accept", "this check runs only with --scores", "'scores'", None),
        ),
        (
            {"quantize": "int4"},
            ConfigError,
            ("quantize", "unknown", "'int4'", "None, 'int8' on a CPU or 'fp8' on a GPU"),
        ),
        ({"texts": ["a", 5]}, InputError, ("text 1", "not a string", "int", "str")),
        (
            {"texts": ["a", "\udfff"]},
            InputError,
            (
                "text 1",
                "not valid Unicode",
                "the lone surrogate U+DFFF at character 0",
                "text",
            ),
        ),
        (
            {"truncate_dim": 65},
            ConfigError,
            ("truncate_dim", "out of range", "65", "1 to 64"),
        ),
    ],
)
def test_refused(options: dict, error: type, parts: tuple, tiny_checkpoint: Path) -> None:
    with pytest.raises(error) as caught:
        verify(tiny_checkpoint, **options)
    raised = caught.value
    assert (raised.where, raised.what, raised.got, raised.expected) == parts


def test_too_many_texts(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError) as caught:
        verify(tiny_checkpoint, texts=["a"] * 1000)
    raised = caught.value
    assert (raised.where, raised.what) == ("texts", "too many")
    assert raised.got.startswith("1,054 texts with ")
    assert raised.expected == "at most 1,000 texts with 65,536 tokens in total"
    assert raised.remedy == "Verify a sample of the texts."


def test_a_model_without_a_known_card(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        verify(tiny_checkpoint, scores=True)
    raised = caught.value
    assert (raised.where, raised.what) == ("scores", "no model card is known")
    assert raised.got == repr(str(tiny_checkpoint))
    assert raised.expected.startswith("one of: ICT-TIME-and-Querit/BOOM_4B_v1, ")
    assert "known_as" in raised.remedy


def test_a_tokenizer_that_transformers_cannot_open(model: Path, monkeypatch) -> None:
    def broken(*_, **__):
        raise OSError("no such class\nand more")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", broken)
    with pytest.raises(ConfigError) as caught:
        verify(model)
    assert str(caught.value) == (
        f"{model}: transformers cannot open its tokenizer (no such class). "
        "Download the tokenizer's files again."
    )


def test_without_transformers_it_says_what_to_install(tiny_checkpoint, monkeypatch, capfd) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert main(["verify", str(tiny_checkpoint)]) == 2
    assert "pip install 'lastword[verify]'" in capfd.readouterr().err
