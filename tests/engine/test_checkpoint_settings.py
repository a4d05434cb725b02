"""A checkpoint's settings, in whatever file they stand: what changes a vector in sentence-transformers does so here."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import refusal
from helpers.small_models import DROP, change_file
from helpers.transformers_reference import TOLERANCE, difference

from lastword import ConfigError, Embedder
from lastword.bench.checkpoint import make_checkpoint
from lastword.model_info import ModelInfo
from lastword.text.tokenizer import TextTokenizer
from lastword.weights import BUILTIN

TEXTS = [
    "The capital of China is Beijing, and that of France is Paris: both are large cities.",
    "gravity",
    "A <think> token, <|im_start|> another, and  two spaces; it doesn't end here",
]
BERT, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
TOKENIZER, SHORT = "tokenizer_config.json", {"model_max_length": 9}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
LEFT = {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
# Settings that sentence-transformers follows, and lastword too.
FOLLOWED: list[dict[str, Any]] = [
    {PROMPTS: {"truncate_dim": 8}},
    {PROMPTS: {"default_prompt_name": "query"}},
    {"modules.json": MODULES},
    {BERT: {"max_seq_length": 9}},
    {"sentence_roberta_config.json": {"max_seq_length": 9}},
    {BERT: {}, "sentence_xlnet_config.json": {"max_seq_length": 9}},
    {BERT: {"processor_kwargs": SHORT}},
    {BERT: {"tokenizer_args": SHORT, "max_seq_length": 20}},
    {BERT: {"tokenizer_args": SHORT, "processor_kwargs": {"model_max_length": 20}}},
    {BERT: {"processor_kwargs": {"truncation_side": "left"}, "max_seq_length": 9}},
    {BERT: {"tokenizer_args": {"truncation_side": "left"}}, TOKENIZER: SHORT},
    {BERT: {"processor_kwargs": SHORT}, TOKENIZER: {"truncation_side": "left"}},
    {TOKENIZER: SHORT},
    {TOKENIZER: {"model_max_length": DROP, "max_len": 9}},
    {TOKENIZER: SHORT | {"truncation_side": "left"}},
    {TOKENIZER: SHORT, "tokenizer.json": {"truncation": LEFT}},
    {TOKENIZER: SHORT | {"truncation_side": "right"}, "tokenizer.json": {"truncation": LEFT}},
    {"config.json": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}},
]  # fmt: skip
# Settings under which nothing changes there.
HARMLESS: list[dict[str, Any]] = [
    {"config.json": {
        "architectures": ["Qwen3Model"], "auto_map": {}, "gradient_checkpointing": True, "is_matryoshka": True,
        "matryoshka_dimensions": [8, 16], "mlp_bias": False, "use_mrope": False, "add_cross_attention": False,
        "pruned_heads": {}, "_name_or_path": "x", "tokenizer_class": "Qwen2Tokenizer"}},
    {"config.json": {"architectures": None}},
    {BERT: {"max_seq_length": None, "do_lower_case": False}},
    {BERT: {
        "model_args": {"torch_dtype": "float32", "attn_implementation": "eager", "trust_remote_code": True},
        "tokenizer_args": {"padding_side": "left", "use_fast": True}, "config_args": {"use_cache": False}}},
    {BERT: {
        "transformer_task": "feature-extraction", "module_output_name": "token_embeddings", "unpad_inputs": False,
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}}},
    {TOKENIZER: {
        "add_bos_token": True, "add_eos_token": True, "add_prefix_space": False, "bos_token": None,
        "chat_template": "{{ messages }}", "clean_up_tokenization_spaces": True, "do_lower_case": True,
        "errors": "strict", "extra_special_tokens": {}, "additional_special_tokens": ["<|im_start|>"],
        "padding_side": "left", "split_special_tokens": False, "unk_token": None, "max_length": 3, "stride": 1,
        "strip_accents": True, "tokenize_chinese_chars": True, "spaces_between_special_tokens": True}},
    {TOKENIZER: {"tokenizer_class": "Qwen2TokenizerFast", "pad_token": {
        "__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False,
        "single_word": False, "special": True}}},
    {TOKENIZER: {"tokenizer_class": None}},
    {"special_tokens_map.json": {"pad_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
     "added_tokens.json": {"<|endoftext|>": 509, "<|im_start|>": 510, "<|im_end|>": 511}},
    {"generation_config.json": {"do_sample": True, "temperature": 0.6, "of_a_later_version": 1}},
    {PROMPTS: {"similarity_fn_name": "cos_sim", "requirements": {"torch": ">=1"}, "__version__": {}}},
    {"1_Pooling/config.json": {f"pooling_mode_{mode}": DROP for mode in (
        "cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")}
        | {"pooling_mode": "lasttoken", "word_embedding_dimension": DROP, "embedding_dimension": 64}},
    {"2_Normalize/config.json": {
        "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}},
    {"2_Normalize/config.json": {"module_output_name": None}},
]  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("original") / "model",
        num_hidden_layers=1,
        max_position_embeddings=256,
    )


@pytest.fixture(scope="module")
def unchanged(original: Path) -> torch.Tensor:
    return ours(original)


def ours(folder: Path) -> torch.Tensor:
    return Embedder(folder, device="cpu", dtype="float32").encode(TEXTS)


def theirs(folder: Path) -> torch.Tensor:
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": "float32"}
    )
    return model.encode(TEXTS, convert_to_tensor=True)


def changed(original: Path, tmp_path: Path, changes: dict[str, Any]) -> Path:
    folder = Path(shutil.copytree(original, tmp_path / "model"))
    for file, values in changes.items():
        change_file(folder, file, values)
    return folder


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [f"{'+'.join(file.split('.')[0] for file in case)}-{i}" for i, case in enumerate(cases)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", FOLLOWED, ids=names(FOLLOWED))
def test_what_changes_vectors_there_does_so_here(
    original: Path, unchanged: torch.Tensor, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = changed(original, tmp_path, changes)
    mine, other = ours(folder), theirs(folder)
    assert mine.shape == other.shape
    assert difference(mine, other) <= TOLERANCE
    if mine.shape == unchanged.shape:  # a truncated vector is always normalised here, but not there
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)
        assert float((mine - unchanged).abs().max()) > 100 * TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", HARMLESS, ids=names(HARMLESS))
def test_what_changes_nothing_is_not_refused(
    original: Path, unchanged: torch.Tensor, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = changed(original, tmp_path, changes)
    assert torch.equal(ours(folder), unchanged)
    assert difference(theirs(folder), unchanged) <= TOLERANCE


def test_a_saved_width_is_the_default(original: Path, tmp_path: Path) -> None:
    folder = changed(original, tmp_path, {PROMPTS: {"truncate_dim": 8}})
    model, whole = Embedder(folder, device="cpu"), Embedder(original, device="cpu")
    assert (model.truncate_dim, model.dim, model.encode("a").shape) == (8, 8, (8,))
    assert model.encode("a", truncate_dim=16).shape == (16,)
    assert Embedder(folder, device="cpu", truncate_dim=16).dim == 16
    assert model.info.space_fingerprint() == whole.info.space_fingerprint(8)
    model.truncate_dim = None
    assert model.encode("a").shape == (64,)
    assert model.info.space_fingerprint() == whole.info.space_fingerprint()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "prompts", [None, {}, {"query": None}, {"other": "x: "}, {"document": "d: "}]
)
def test_a_query_and_a_document_prompt_always_exist(
    original: Path, tmp_path: Path, prompts: dict[str, Any] | None
) -> None:
    folder = changed(
        original, tmp_path, {PROMPTS: {"prompts": DROP if prompts is None else prompts}}
    )
    model = Embedder(folder, device="cpu")
    library = pytest.importorskip("sentence_transformers")
    other = library.SentenceTransformer(str(folder), device="cpu")
    assert model.prompts == other.prompts
    for name in ("query", "document"):
        mine = model.encode(TEXTS, prompt_name=name)
        assert (
            difference(mine, other.encode(TEXTS, prompt_name=name, convert_to_tensor=True))
            <= TOLERANCE
        )
    assert torch.equal(model.encode_query("a"), model.encode("a", prompt_name="query"))


@pytest.mark.parametrize("original_positions", [64, None])
def test_yarn_with_unchanged_positions_names_the_field(
    original: Path, tmp_path: Path, original_positions: int | None
) -> None:
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0}
    if original_positions is not None:
        scaling["original_max_position_embeddings"] = original_positions
    positions = {"max_position_embeddings": 64, "rope_scaling": scaling}
    folder = changed(
        original, tmp_path, {"config.json": positions, TOKENIZER: {"model_max_length": 256}}
    )
    model = Embedder(folder, device="cpu")
    assert model.max_length == 64
    with pytest.raises(ConfigError) as caught:
        model.max_length = 200
    error = caught.value
    assert (error.where, error.what, error.got) == ("max_length", "out of range", "200")
    assert error.remedy == (
        "YaRN is set for 256 tokens: in config.json raise max_position_embeddings to 256, "
        "and keep original_max_position_embeddings at 64."
    )
    change_file(folder, BERT, {"max_seq_length": 200})
    with pytest.raises(ConfigError) as caught:
        Embedder(folder, device="cpu")
    assert caught.value.remedy == error.remedy
    scaling["original_max_position_embeddings"] = 64
    change_file(folder, "config.json", {"max_position_embeddings": 256, "rope_scaling": scaling})
    assert Embedder(folder, device="cpu").max_length == 200


def test_tokens_that_tokenizer_json_lacks_are_refused(original: Path, tmp_path: Path) -> None:
    folder = changed(original, tmp_path, {TOKENIZER: {"extra_special_tokens": ["<think>"]}})
    with pytest.raises(ConfigError) as caught:
        Embedder(folder, device="cpu")
    error = caught.value
    assert error.where == f"{folder / TOKENIZER}: extra_special_tokens"
    assert (error.what, error.got) == ("contradicts tokenizer.json", '"<think>"')


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({TOKENIZER: {"tokenizer_class": "PreTrainedTokenizerFast"}}, None),
        ({TOKENIZER: {"tokenizer_class": DROP}}, TOKENIZER),
        ({TOKENIZER: {"tokenizer_class": "Qwen2Tokenizer"}}, f"{TOKENIZER}: tokenizer_class"),
        (
            {
                TOKENIZER: {"tokenizer_class": DROP},
                "config.json": {"tokenizer_class": "Qwen2TokenizerFast"},
            },
            "config.json: tokenizer_class",
        ),
    ],
    ids=["its own", "none", "Qwen's", "Qwen's in config.json"],
)
def test_a_class_under_which_transformers_does_not_follow_tokenizer_json(
    changes: dict[str, Any], place: str | None, original: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    lower = {"tokenizer.json": {"normalizer": {"type": "Lowercase"}}}
    folder = changed(original, tmp_path, lower | changes)
    text = "Where do SWIFTS sleep?"
    followed = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    followed = followed == TextTokenizer(folder, 512).encode([text], 100).ids[0]
    assert followed == (place is None)
    if followed:
        ModelInfo(folder)
        return
    with refusal(ConfigError, where=f"{folder}/{place}", what="contradicts tokenizer.json"):
        ModelInfo(folder)


def test_the_builtin_model_keeps_its_settings() -> None:
    model = Embedder(device="cpu")
    assert (model.info.name, model.prompts["query"], model.truncate_dim) == (
        BUILTIN,
        "query: ",
        None,
    )
    assert json.loads((model.info.files.folder / TOKENIZER).read_text())["model_max_length"] == 256
    assert model.max_length == 256
