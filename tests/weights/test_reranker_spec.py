"""A reranker's files: which row is its head, which settings are honoured, and what is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.messages import refusal
from helpers.small_models import DROP, KINDS, TEMPLATE, change_file, make_reranker
from safetensors.torch import load_file, save_file

from lastword import ConfigError, Embedder, Reranker, WeightsError
from lastword.text.rerank_template import is_named_reranker
from lastword.weights import (
    Checkpoint,
    RerankerSpec,
    ScoreTokens,
    read_config,
    read_reranker_spec,
    read_score_row,
)

OURS = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.models.Pooling"
LOGITS = {"method": "forward", "method_output_name": "logits"}
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("rerankers")
    return {kind: make_reranker(place / kind, kind) for kind in KINDS}


@pytest.fixture
def fresh(made: dict[str, Path], tmp_path: Path):
    """A copy of a reranker, by kind, that a test may change."""
    return lambda kind: Path(shutil.copytree(made[kind], tmp_path / kind))


def read(folder: Path) -> RerankerSpec:
    return read_reranker_spec(folder, read_config(folder, reranker=True))


def row(folder: Path, tokens: ScoreTokens) -> torch.Tensor:
    config = read_config(folder, reranker=True)
    return read_score_row(Checkpoint(folder, config, reranker=True), read(folder), tokens)


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    stored = load_file(path) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in stored.items() if value is not None}, path)


def list_modules(folder: Path, *types: str, **config: object) -> None:
    """Write modules.json, with the settings of a LogitScore."""
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_Part" if i else "", "type": kind}
        for i, kind in enumerate(types)
    ]
    change_file(folder, "modules.json", modules)
    change_file(folder, "1_Part/config.json", config)


def test_the_row_of_each_kind(made) -> None:
    tied, untied, classifier = (load_file(made[kind] / "model.safetensors") for kind in KINDS)
    table, head = tied["model.embed_tokens.weight"], untied["lm_head.weight"]
    assert not torch.equal(untied["model.embed_tokens.weight"], head)
    both, one = ScoreTokens(7, 3), ScoreTokens(7, None)
    assert torch.equal(row(made["tied"], both), table[7] - table[3])
    assert torch.equal(row(made["untied"], both), head[7] - head[3])
    assert torch.equal(row(made["untied"], one), head[7])
    assert torch.equal(row(made["classifier"], both), classifier["score.weight"][0])


def test_the_difference_is_made_in_fp32(fresh) -> None:
    folder = fresh("untied")
    head = load_file(folder / "model.safetensors")["lm_head.weight"].bfloat16()
    change_weights(folder, lm_head__weight=head)
    expected = head[7].float() - head[3].float()
    assert torch.equal(row(folder, ScoreTokens(7, 3)), expected)
    assert not torch.equal((head[7] - head[3]).float(), expected)


def test_defaults_without_modules(made) -> None:
    for kind in KINDS:
        spec = read(made[kind])
        assert (spec.max_length, spec.sigmoid, spec.tokens) == (4096, True, None)
        assert (spec.prompts, spec.default_prompt_name, spec.chat_template) == ({}, None, None)


@pytest.mark.parametrize(
    ("positions", "model_max", "expected"),
    [(40960, 131072, 8192), (40960, 512, 512), (1024, 131072, 1024), (40960, None, 8192)],
)
def test_max_length(fresh, positions: int, model_max: int | None, expected: int) -> None:
    folder = fresh("tied")
    change_file(folder, "config.json", {"max_position_embeddings": positions})
    change_file(folder, "tokenizer_config.json", {"model_max_length": model_max})
    assert read(folder).max_length == expected


def test_logit_score_names_the_tokens(fresh) -> None:
    folder = fresh("tied")
    list_modules(folder, TRANSFORMER, OURS, true_token_id=7, false_token_id=3)
    assert read(folder).tokens == ScoreTokens(7, 3)
    list_modules(folder, TRANSFORMER, OURS, true_token_id=7, false_token_id=None)
    assert read(folder).tokens == ScoreTokens(7, None)


def test_settings_of_sentence_transformers(fresh) -> None:
    folder = fresh("tied")
    list_modules(folder, TRANSFORMER, OURS, true_token_id=7, module_input_name="causal_logits")
    settings = {"prompts": {"web": "Find it"}, "default_prompt_name": "web"}
    settings |= {"model_type": "CrossEncoder", "activation_fn": IDENTITY}
    change_file(folder, "config_sentence_transformers.json", settings)
    task = {"transformer_task": "text-generation", "module_output_name": "causal_logits"}
    modality = {"text": LOGITS, "message": {**LOGITS, "format": "flat"}}
    task |= {"modality_config": modality, "max_seq_length": 300}
    change_file(folder, "sentence_bert_config.json", task)
    spec = read(folder)
    assert (spec.prompts, spec.default_prompt_name) == ({"web": "Find it"}, "web")
    assert (spec.sigmoid, spec.max_length) == (False, 300)


@pytest.mark.parametrize(
    ("values", "sigmoid"),
    [
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}}, False),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, True),
        ({"sentence_transformers": {"version": "4.1.0"}}, True),
        ({"sbert_ce_default_activation_function": IDENTITY}, False),
    ],
)
def test_the_activation_in_config_json(fresh, values: dict, sigmoid: bool) -> None:
    folder = fresh("classifier")
    change_file(folder, "config.json", values)
    assert read(folder).sigmoid is sigmoid
    with refusal(ConfigError, where=str(folder / "config.json")):
        read_config(folder)


def test_the_chat_template_is_found(fresh) -> None:
    folder = fresh("tied")
    change_file(folder, "tokenizer_config.json", {"chat_template": "in the config"})
    assert read(folder).chat_template == "in the config"
    several = [{"name": "tool", "template": "a"}, {"name": "default", "template": "b"}]
    change_file(folder, "tokenizer_config.json", {"chat_template": several})
    assert read(folder).chat_template == "b"
    (folder / "chat_template.jinja").write_text("<|im_start|>its own file")
    assert read(folder).chat_template == "<|im_start|>its own file"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with refusal(ConfigError, what="not UTF-8 at byte 0"):
        read(folder)


# What is refused, and by which name.

LOST = "Without it there is no score. Fetch or convert the model again."


def test_a_lost_head_is_refused(fresh) -> None:
    untied, classifier = fresh("untied"), fresh("classifier")
    change_weights(untied, lm_head__weight=None)
    with refusal(WeightsError, where=str(untied), what="lm_head.weight is missing", remedy=LOST):
        Reranker(untied)
    change_weights(classifier, score__weight=None)
    with refusal(WeightsError, what="score.weight is missing", remedy=LOST):
        Reranker(classifier)


def test_several_labels_are_refused(fresh) -> None:
    folder = fresh("classifier")
    change_weights(folder, score__weight=torch.zeros(2, 64))
    with refusal(WeightsError, what="wrong shape", got="[2, 64]", expected="[1, 64]"):
        Reranker(folder)


def test_a_head_that_contradicts_the_config_is_refused(fresh) -> None:
    folder = fresh("untied")
    change_file(folder, "config.json", {"tie_word_embeddings": True})
    what = "lm_head.weight and embed_tokens.weight differ, although config.json ties them"
    with refusal(WeightsError, where=str(folder), what=what):
        Reranker(folder)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_weights(folder, lm_head__weight=table)
    assert Reranker(folder).info.score_row.shape == (64,)


@pytest.mark.parametrize("named", [["Qwen3Model"], [], None, ["Qwen3ForCausalLM", "Qwen3Model"]])
def test_other_classes_are_refused(fresh, named: list | None) -> None:
    folder = fresh("tied")
    change_file(folder, "config.json", {"architectures": named})
    where = f"{folder / 'config.json'}: architectures"
    with refusal(ConfigError, where=where, what="wrong value", got=json.dumps(named)):
        Reranker(folder)


def test_the_other_kind_of_model_is_named(fresh, tiny_checkpoint: Path) -> None:
    remedy = "This is an embedding model. Name a reranker."
    with refusal(ConfigError, what="not supported", remedy=remedy):
        Reranker(tiny_checkpoint)
    remedy = "If it is a reranker, use lastword rerank, or lastword.Reranker in Python."
    with refusal(ConfigError, what="wrong value", remedy=remedy):
        Embedder(fresh("classifier"))
    causal = fresh("tied")
    list_modules(causal, TRANSFORMER, OURS, true_token_id=7)
    with refusal(ConfigError, what="not supported", remedy=remedy):
        Embedder(causal)


def test_a_reranker_without_modules_is_no_embedding_model(fresh, tmp_path: Path) -> None:
    folder = fresh("tied")
    (unnamed,) = Embedder(folder, device="cpu").notices  # nothing says that it is one
    assert "no modules.json" in unnamed
    named = tmp_path / "Qwen3-Reranker-0.6B"
    folder.rename(named)
    notice = Embedder(named, device="cpu").notices[1]
    assert notice == (
        f"{named}: its name says that it is a reranker, whose vectors are of little use; "
        "to score documents, use lastword rerank or lastword.Reranker"
    )
    refused = {
        "where": f"{named}: chat template",
        "what": "is for pairs of a query and a document",
        "remedy": "Use lastword rerank, or lastword.Reranker in Python.",
    }
    for template in (
        TEMPLATE,
        "{% for m in messages %}{{ m.query['query'] + m['document'] }}{% endfor %}",
    ):
        (named / "chat_template.jinja").write_text(template)
        with refusal(ConfigError, **refused):
            Embedder(named)
    (named / "chat_template.jinja").unlink()
    change_file(named, "tokenizer_config.json", {"chat_template": TEMPLATE})
    with refusal(ConfigError, **refused):
        Embedder(named)


def test_only_the_models_own_name_counts(fresh, tmp_path: Path) -> None:
    folder = tmp_path / "rerankers" / "model"
    folder.parent.mkdir()
    fresh("tied").rename(folder)
    assert len(Embedder(folder, device="cpu").notices) == 1
    assert not is_named_reranker(folder, str(folder))
    assert is_named_reranker(folder, "Qwen/Qwen3-Reranker-0.6B")
    assert is_named_reranker(folder.parent, ".")


def test_modules_that_do_not_fit_are_refused(fresh) -> None:
    what = "do not fit the model's class"
    causal, classifier = fresh("tied"), fresh("classifier")
    list_modules(causal, TRANSFORMER)
    with refusal(ConfigError, what=what, got="no LogitScore"):
        Reranker(causal)
    list_modules(classifier, TRANSFORMER, OURS, true_token_id=7)
    with refusal(ConfigError, what=what, got="LogitScore"):
        Reranker(classifier)
    list_modules(classifier, TRANSFORMER, "mine.Dense")
    with refusal(ConfigError, what="not supported", got='["Transformer", "mine.Dense"]'):
        Reranker(classifier)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"true_token_id": DROP}, "true_token_id"),
        ({"true_token_id": 10**6}, "true_token_id"),
        ({"false_token_id": -1}, "false_token_id"),
        ({"module_input_name": "logits"}, "module_input_name"),
    ],
)
def test_wrong_settings_of_logit_score(fresh, values: dict, key: str) -> None:
    folder = fresh("tied")
    list_modules(folder, TRANSFORMER, OURS, true_token_id=7)
    path = change_file(folder, "1_Part/config.json", values)
    with refusal(ConfigError, where=f"{path}: {key}"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "values", "key"),
    [
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.Tanh"}, "activation_fn"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("sentence_bert_config.json", {"module_output_name": "scores"}, "module_output_name"),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "modality_config"),
    ],
)
def test_wrong_settings_of_sentence_transformers(fresh, file: str, values: dict, key: str) -> None:
    folder = fresh("tied")
    list_modules(folder, TRANSFORMER, OURS, true_token_id=7)
    path = change_file(folder, file, values)
    with refusal(ConfigError, where=f"{path}: {key}"):
        read(folder)


def test_other_refusals(fresh) -> None:
    folder = fresh("tied")
    change_file(folder, "tokenizer_config.json", {"truncation_side": "left"})
    with refusal(ConfigError, what="not supported for a reranker", got='"left"'):
        read(folder)
    change_file(folder, "tokenizer_config.json", {"truncation_side": DROP, "chat_template": 3})
    with refusal(ConfigError, what="wrong content", got="3"):
        read(folder)


def test_a_tokenizer_without_the_two_tokens(tmp_path: Path) -> None:
    from lastword.bench.checkpoint import make_checkpoint

    folder = make_checkpoint(tmp_path / "m", prefix="model.", sentence_transformers=False)
    with refusal(WeightsError, what='has no token "yes"', remedy="Name a reranker."):
        Reranker(folder)
