"""The files of sentence-transformers: both formats are read; everything but last-token pooling is refused."""

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
CHAIN, INSIDE = "Transformer, Pooling and, optionally, Normalize", "a folder inside the model's"
LENGTH, LIMIT = "an integer from 2 to 2147483647", "a finite number above 1"
# The file, its content, and the error's parts: where (in the file), what, got, expected.
BAD = [
    ("modules.json", [*NEW_MODULES, DENSE], ": modules", "not supported",
     '["Transformer", "Pooling", "Normalize", "Dense"]', CHAIN),
    ("modules.json", NEW_MODULES[:1], ": modules", "not supported", '["Transformer"]', CHAIN),
    ("modules.json", [], ": modules", "not supported", "[]", CHAIN),
    ("modules.json", {}, "", "wrong content", "{}", "a list of modules"),
    ("modules.json", [1], "", "wrong content", "[1]", "a list of modules"),
    ("modules.json", module(0, type="custom_st.Transformer2"), ": modules", "not supported",
     '["Transformer2", "Pooling", "Normalize"]', CHAIN),
    ("modules.json", module(1, type=None), ": module 1: type", "wrong value", "null", "a class name"),
    ("modules.json", module(0, path="0_Transformer"), ": the Transformer's path", "not supported",
     '"0_Transformer"', "none"),
    ("modules.json", module(1, path="../1_Pooling"), ": module path", "not allowed", '"../1_Pooling"', INSIDE),
    ("modules.json", module(1, path="/etc"), ": module path", "not allowed", '"/etc"', INSIDE),
    ("modules.json", module(1, path=""), ": module path", "not allowed", '""', INSIDE),
    ("modules.json", module(0, kwargs={"trust_remote_code": True}), ": module 0: kwargs", "wrong value",
     '{"trust_remote_code": true}', "none"),
    (POOLING, NEW_POOLING | {"pooling_mode": "mean"}, ": pooling mode", "not supported", '["mean"]', "lasttoken"),
    (POOLING, NEW_POOLING | {"pooling_mode": ["lasttoken", "cls"]}, ": pooling mode", "not supported",
     '["lasttoken", "cls"]', "lasttoken"),
    (POOLING, {"pooling_mode_cls_token": True}, ": pooling mode", "not supported", '["cls_token"]', "lasttoken"),
    (POOLING, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True}, ": pooling mode", "not supported",
     '["lasttoken", "mean_tokens"]', "lasttoken"),
    (POOLING, {}, ": pooling mode", "not supported", "[]", "lasttoken"),
    (POOLING, NEW_POOLING | {"embedding_dimension": 65}, ": embedding_dimension", "wrong value", "65",
     "hidden_size, which is 64"),
    (PROMPTS, {"model_type": "SparseEncoder"}, ": model_type", "wrong value", '"SparseEncoder"',
     '"SentenceTransformer"'),
    (PROMPTS, {"prompts": {"query": 7}}, ": prompts: query", "wrong value", "7", "a string"),
    (PROMPTS, {"prompts": ["a"]}, ": prompts", "wrong value", '["a"]', "a JSON object or null"),
    (PROMPTS, {"prompts": {"a": ""}, "default_prompt_name": "b"}, ": default_prompt_name", "wrong value", '"b"',
     "one of the prompts: a"),
    (PROMPTS, {"similarity_fn_name": "hamming"}, ": similarity_fn_name", "wrong value", '"hamming"',
     "one of cosine, dot, euclidean, manhattan"),
    (BERT, {"max_seq_length": 1}, ": max_seq_length", "wrong value", "1", LENGTH),
    (BERT, {"max_seq_length": "512"}, ": max_seq_length", "wrong value", '"512"', LENGTH),
    (BERT, {"do_lower_case": True}, ": do_lower_case", "wrong value", "true", "none"),
    (BERT, {"transformer_task": "fill-mask"}, ": transformer_task", "wrong value", '"fill-mask"',
     '"feature-extraction"'),
    (BERT, {"query_expansion": {"strategy": "fixed"}}, ": query_expansion", "wrong value",
     '{"strategy": "fixed"}', "none"),
    (BERT, {"processing_kwargs": {"text": {}}}, ": processing_kwargs", "wrong value", '{"text": {}}', "none"),
    ("tokenizer_config.json", {"model_max_length": "long"}, ": model_max_length", "wrong value", '"long"', LIMIT),
    ("tokenizer_config.json", {"model_max_length": 0}, ": model_max_length", "wrong value", "0", LIMIT),
    ("tokenizer_config.json", {"model_max_length": 10**400}, ": model_max_length", "wrong value", "1" + 58 * "0" + "…",
     LIMIT),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "place", "what", "got", "expected"),
    BAD,
    ids=[f"{name.split('.')[0]}{place}-{i}" for i, (name, _, place, *_) in enumerate(BAD)],
)
def test_refused_by_name(folder, name, value, place, what, got, expected):
    put(folder, name, value)
    with pytest.raises(ConfigError) as caught:
        read(folder)
    error = caught.value
    assert error.where == f"{folder / name}{place}"
    assert (error.what, error.got, error.expected) == (what, got, expected)
    assert "\n" not in str(error)


def test_missing_pooling_file(folder):
    (folder / POOLING).unlink()
    with pytest.raises(WeightsError) as caught:
        read(folder)
    assert (caught.value.where, caught.value.what) == (str(folder / POOLING), "no such file")
