"""The files of sentence-transformers: both formats read, everything that is not last-token pooling refused."""

import json

import pytest

from lastword.bench.checkpoint import QUERY_PROMPT, make_checkpoint
from lastword.errors import ConfigError, WeightsError
from lastword.weights import EmbeddingSpec, read_config, read_embedding_spec

POOLING_CLASS = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
BASE = "sentence_transformers.base.modules"
NEW_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": POOLING_CLASS},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{BASE}.normalize.Normalize"},
]  # fmt: skip
NEW_POOLING = {"embedding_dimension": 64, "pooling_mode": "lasttoken", "include_prompt": True}
NEW_BERT = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward"}},
    "module_output_name": "token_embeddings",
}


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "model", num_hidden_layers=1, max_position_embeddings=512)


def put(folder, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def read(folder) -> EmbeddingSpec:
    return read_embedding_spec(folder, read_config(folder))


def test_old_format(folder):
    spec = read(folder)
    assert spec.prompts == {"query": QUERY_PROMPT, "document": ""}
    assert QUERY_PROMPT.endswith("\nQuery:")
    assert (spec.default_prompt_name, spec.normalize, spec.max_length) == (None, True, 512)
    assert (spec.similarity, spec.notice) == ("cosine", None)


def test_new_format_means_the_same(folder):
    old = read(folder)
    put(folder, "modules.json", NEW_MODULES)
    put(folder, "1_Pooling/config.json", NEW_POOLING)
    put(folder, "sentence_bert_config.json", NEW_BERT)
    prompts = {"query": QUERY_PROMPT, "document": ""}
    settings = {"__version__": {}, "model_type": "SentenceTransformer", "prompts": prompts}
    put(folder, "config_sentence_transformers.json", settings)
    assert read(folder) == old


def test_written_by_sentence_transformers(folder, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    ours = read(tmp_path / "saved")
    assert ours.prompts == theirs.prompts
    assert ours.max_length == theirs.max_seq_length == 512
    assert ours.similarity == theirs.similarity_fn_name


def test_no_modules(folder):
    (folder / "modules.json").unlink()
    spec = read(folder)
    assert (spec.prompts, spec.normalize, spec.max_length) == ({}, True, 512)
    assert "no modules.json" in str(spec.notice)
    assert "\n" not in str(spec.notice)


def test_no_normalize(folder):
    put(folder, "modules.json", NEW_MODULES[:2])
    assert not read(folder).normalize


def test_no_prompts_file(folder):
    (folder / "config_sentence_transformers.json").unlink()
    assert (read(folder).prompts, read(folder).similarity) == ({}, "cosine")


@pytest.mark.parametrize(
    ("bert", "tokenizer", "expected"),
    [
        ({"max_seq_length": 256}, {"model_max_length": 128}, 256),
        ({"max_seq_length": None}, {"model_max_length": 128}, 128),
        ({}, {"model_max_length": 131072}, 512),
        ({}, {"model_max_length": 1000000000000000019884624838656}, 512),
        ({}, {"model_max_length": 1e30}, 512),
        ({}, {"model_max_length": None}, 512),
        (None, {}, 512),
        (None, None, 512),
    ],
    ids=range(8),
)
def test_max_length(folder, bert, tokenizer, expected):
    for name, value in (("sentence_bert_config", bert), ("tokenizer_config", tokenizer)):
        (folder / f"{name}.json").unlink(missing_ok=True)
        if value is not None:
            put(folder, f"{name}.json", value)
    assert read(folder).max_length == expected


@pytest.mark.parametrize("modes", ["lasttoken", ["lasttoken"]])
def test_pooling_spellings(folder, modes):
    put(folder, "1_Pooling/config.json", NEW_POOLING | {"pooling_mode": modes})
    assert read(folder).normalize


def module(number: int, **changes: object) -> list[dict]:
    modules = [dict(entry) for entry in NEW_MODULES]
    modules[number] |= changes
    return modules


DENSE = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
POOLING, BERT = "1_Pooling/config.json", "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
BAD = [
    ("modules.json", [*NEW_MODULES, DENSE], "Dense"),
    ("modules.json", NEW_MODULES[:1], "Transformer"),
    ("modules.json", [], "expected Transformer"),
    ("modules.json", {}, "list of modules"),
    ("modules.json", [1], "list of modules"),
    ("modules.json", module(0, type="custom_st.Transformer2"), "Transformer2"),
    ("modules.json", module(1, type=None), "class name"),
    ("modules.json", module(0, path="0_Transformer"), "0_Transformer"),
    ("modules.json", module(1, path="../1_Pooling"), "folder inside"),
    ("modules.json", module(1, path="/etc"), "folder inside"),
    ("modules.json", module(1, path=""), "folder inside"),
    ("modules.json", module(0, kwargs={"trust_remote_code": True}), "kwargs"),
    (POOLING, NEW_POOLING | {"pooling_mode": "mean"}, "mean"),
    (POOLING, NEW_POOLING | {"pooling_mode": ["lasttoken", "cls"]}, "cls"),
    (POOLING, {"pooling_mode_cls_token": True}, "cls_token"),
    (POOLING, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True}, "mean_tokens"),
    (POOLING, {}, "expected lasttoken"),
    (POOLING, NEW_POOLING | {"embedding_dimension": 65}, "embedding_dimension"),
    (PROMPTS, {"model_type": "SparseEncoder"}, "SparseEncoder"),
    (PROMPTS, {"prompts": {"query": 7}}, "query"),
    (PROMPTS, {"prompts": ["a"]}, "prompts"),
    (PROMPTS, {"prompts": {"a": ""}, "default_prompt_name": "b"}, "default_prompt_name"),
    (PROMPTS, {"similarity_fn_name": "hamming"}, "hamming"),
    (BERT, {"max_seq_length": 1}, "max_seq_length"),
    (BERT, {"max_seq_length": "512"}, "max_seq_length"),
    (BERT, {"do_lower_case": True}, "do_lower_case"),
    (BERT, {"transformer_task": "fill-mask"}, "fill-mask"),
    (BERT, {"query_expansion": {"strategy": "fixed"}}, "query_expansion"),
    (BERT, {"processing_kwargs": {"text": {}}}, "processing_kwargs"),
    ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length"),
    ("tokenizer_config.json", {"model_max_length": 0}, "model_max_length"),
    ("tokenizer_config.json", {"model_max_length": 10**400}, "model_max_length"),
]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    BAD,
    ids=[f"{n.split('.')[0]}-{w}-{i}" for i, (n, _, w) in enumerate(BAD)],
)
def test_refused_by_name(folder, name, value, what):
    put(folder, name, value)
    with pytest.raises(ConfigError) as error:
        read(folder)
    message = str(error.value)
    assert message.startswith(str(folder / name))
    assert what in message
    assert "\n" not in message


def test_missing_pooling_file(folder):
    (folder / POOLING).unlink()
    with pytest.raises(WeightsError, match=r"1_Pooling/config\.json: no such file"):
        read(folder)
