"""The files of sentence-transformers: both formats are read; everything but last-token pooling is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lastword.bench.checkpoint import QUERY_PROMPT, make_checkpoint
from lastword.errors import ConfigError, WeightsError
from lastword.weights import EmbeddingSpec, read_config, read_embedding_spec
from lastword.weights.embedding_spec import SIMILARITIES
from lastword.weights.module_list import CLASSES

DATA = os.environ.get("LASTWORD_TEST_DATA")
BASE = "sentence_transformers.base.modules"
POOLING_CLASS = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
NEW_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{BASE}.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": POOLING_CLASS},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{BASE}.normalize.Normalize"},
]  # fmt: skip
NEW_POOLING = {"embedding_dimension": 64, "pooling_mode": "lasttoken", "include_prompt": True}
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
NEW_BERT = {
    "transformer_task": "feature-extraction",
    "modality_config": TEXT_ONLY,
    "module_output_name": "token_embeddings",
}
NEW_NORMALIZE = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
}
POOLING, NORMALIZE = "1_Pooling/config.json", "2_Normalize/config.json"
BERT, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
TOKENIZER, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "model"
    return make_checkpoint(folder, num_hidden_layers=1, max_position_embeddings=512)


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


EMPTY = {"query": "", "document": ""}


def put(folder, name: str, value: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
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
    put(folder, POOLING, NEW_POOLING)
    put(folder, NORMALIZE, NEW_NORMALIZE)
    put(folder, BERT, NEW_BERT)
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
    put(folder, BERT, {"max_seq_length": 9})  # not read, as in sentence-transformers
    spec = read(folder)
    assert (spec.prompts, spec.normalize, spec.max_length) == (EMPTY, True, 512)
    assert "no modules.json" in str(spec.notice)
    assert "\n" not in str(spec.notice)


def test_no_normalize(folder):
    put(folder, "modules.json", NEW_MODULES[:2])
    assert not read(folder).normalize


def test_no_prompts_file(folder):
    (folder / "config_sentence_transformers.json").unlink()
    spec = read(folder)
    assert (spec.prompts, spec.similarity, spec.truncate_dim) == (EMPTY, "cosine", None)


def test_prompts(folder):
    prompts = {"query": None, "passage": "p: ", "document": ""}
    put(folder, PROMPTS, {"prompts": prompts, "default_prompt_name": "document"})
    spec = read(folder)
    assert spec.prompts == {"query": "", "passage": "p: ", "document": ""}
    assert spec.default_prompt_name == "document"


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        (None, "cosine"),
        ("cos_sim", "cosine"),
        ("pytorch_cos_sim", "cosine"),
        *((name, name) for name in SIMILARITIES),
    ],
)
def test_similarity(folder, name, meaning):
    put(folder, PROMPTS, {"similarity_fn_name": name})
    assert read(folder).similarity == meaning


@pytest.mark.parametrize(("dim", "meaning"), [(None, None), (1, 1), (64, 64)])
def test_truncate_dim(folder, dim, meaning):
    put(folder, PROMPTS, {"truncate_dim": dim})
    assert read(folder).truncate_dim == meaning


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


@pytest.mark.parametrize(
    "keywords",
    [{"processor_kwargs": {"model_max_length": 9}}, {"tokenizer_args": {"model_max_length": 9}}],
)
def test_keywords_for_the_tokenizer_override(folder, keywords):
    put(folder, BERT, {"max_seq_length": 20, **keywords})
    put(folder, TOKENIZER, {"model_max_length": 30, "truncation_side": "left"})
    spec = read(folder)
    assert (spec.max_length, spec.tokenizer.truncation_side) == (9, "left")


@pytest.mark.parametrize("modes", ["lasttoken", ["lasttoken"]])
def test_pooling_spellings(folder, modes):
    put(folder, POOLING, NEW_POOLING | {"pooling_mode": modes})
    assert read(folder).normalize


PATHS = [(name, path) for name, paths in CLASSES.items() for path in paths]


ORDER = ("Transformer", "Pooling", "Normalize")
OF_CHAIN = [(name, path) for name, path in PATHS if name in ORDER]


@pytest.mark.parametrize(("name", "path"), OF_CHAIN, ids=[path for _, path in OF_CHAIN])
def test_every_path_of_a_module(folder, name, path):
    number = ORDER.index(name)
    put(folder, "modules.json", module(number, type=path))
    assert read(folder).normalize


@pytest.mark.filterwarnings("ignore")
def test_the_paths_are_those_of_sentence_transformers():
    util = pytest.importorskip("sentence_transformers.util")
    found = {path: util.import_from_string(path).__name__ for _, path in PATHS}
    assert found == {path: name for name, path in PATHS}


def module(number: int, **changes: object) -> list[dict]:
    modules = [dict(entry) for entry in NEW_MODULES]
    modules[number] |= changes
    return modules


DENSE = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
CHAIN = "Transformer, Pooling and, optionally, Normalize of sentence-transformers"
INSIDE, OTHERS = "a folder inside the model's", "not supported"
LENGTH, LIMIT = "an integer from 2 to 2147483647", "a finite number above 1"
FORWARD = 'only "text", by the method "forward" and its "last_hidden_state"'
CHAT = {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}
# The file, its content, and the error's parts: where (in the file), what, got, expected.
BAD = [
    ("modules.json", [*NEW_MODULES, DENSE], ": modules", OTHERS,
     '["Transformer", "Pooling", "Normalize", "sentence_transformers.models.Dense"]', CHAIN),
    ("modules.json", NEW_MODULES[:1], ": modules", OTHERS, '["Transformer"]', CHAIN),
    ("modules.json", [], ": modules", OTHERS, "[]", CHAIN),
    ("modules.json", {}, "", "wrong content", "{}", "a list of modules"),
    ("modules.json", [1], "", "wrong content", "[1]", "a list of modules"),
    ("modules.json", module(0, type="custom_st.Transformer"), ": modules", OTHERS,
     '["custom_st.Transformer", "Pooling", "Normalize"]', CHAIN),
    ("modules.json", module(1, type="my_pkg.pooling.Pooling"), ": modules", OTHERS,
     '["Transformer", "my_pkg.pooling.Pooling", "Normalize"]', CHAIN),
    ("modules.json", module(2, type="sentence_transformers.custom.Normalize"), ": modules", OTHERS,
     '["Transformer", "Pooling", "sentence_transformers.custom.Normalize"]', CHAIN),
    ("modules.json", module(1, type=None), ": module 1: type", "wrong value", "null", "a class name"),
    ("modules.json", module(0, path="0_Transformer"), ": the Transformer's path",
     "a folder of its own is not supported", '"0_Transformer"', '""'),
    ("modules.json", module(1, path="../1_Pooling"), ": module path", "not allowed", '"../1_Pooling"', INSIDE),
    ("modules.json", module(1, path="/etc"), ": module path", "not allowed", '"/etc"', INSIDE),
    ("modules.json", module(1, path=""), ": module path", "not allowed", '""', INSIDE),
    ("modules.json", module(2, path="2\\_Normalize"), ": module path", "not allowed", '"2\\\\_Normalize"', INSIDE),
    ("modules.json", module(0, kwargs={"trust_remote_code": True}), ": module 0: kwargs", "wrong value",
     '{"trust_remote_code": true}', "none"),
    ("modules.json", module(2, name="1"), ": module 2: name", "wrong value", '"1"', "a name that no other module has"),
    (POOLING, NEW_POOLING | {"pooling_mode": "mean"}, ": pooling mode", OTHERS, '["mean"]', "lasttoken"),
    (POOLING, NEW_POOLING | {"pooling_mode": ["lasttoken", "cls"]}, ": pooling mode", OTHERS,
     '["lasttoken", "cls"]', "lasttoken"),
    (POOLING, {"pooling_mode_cls_token": True}, ": pooling mode", OTHERS, '["cls_token"]', "lasttoken"),
    (POOLING, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True}, ": pooling mode", OTHERS,
     '["mean_tokens", "lasttoken"]', "lasttoken"),
    (POOLING, {"pooling_mode_lasttoken": 1}, ": pooling_mode_lasttoken", "wrong value", "1", "true or false"),
    (POOLING, {}, ": pooling mode", OTHERS, "[]", "lasttoken"),
    (POOLING, NEW_POOLING | {"embedding_dimension": 65}, ": embedding_dimension", "wrong value", "65",
     "hidden_size, which is 64"),
    (POOLING, NEW_POOLING | {"include_prompt": False}, ": include_prompt", "wrong value", "false", "true"),
    (NORMALIZE, NEW_NORMALIZE | {"module_input_name": "token_embeddings"}, ": module_input_name", "wrong value",
     '"token_embeddings"', '"sentence_embedding"'),
    (NORMALIZE, {"module_input_name": None}, ": module_input_name", "wrong value", "null", '"sentence_embedding"'),
    (NORMALIZE, {"module_output_name": "unit"}, ": module_output_name", "wrong value", '"unit"',
     '"sentence_embedding"'),
    (PROMPTS, {"model_type": "SparseEncoder"}, ": model_type", "wrong value", '"SparseEncoder"',
     '"SentenceTransformer"'),
    (PROMPTS, {"prompts": {"query": 7}}, ": prompts: query", "wrong value", "7", "a string"),
    (PROMPTS, {"prompts": ["a"]}, ": prompts", "wrong value", '["a"]', "a JSON object or null"),
    (PROMPTS, {"prompts": {"a": ""}, "default_prompt_name": "b"}, ": default_prompt_name", "wrong value", '"b"',
     "one of the prompts: a, document, query"),
    (PROMPTS, {"similarity_fn_name": "hamming"}, ": similarity_fn_name", "wrong value", '"hamming"',
     "one of cosine, dot, euclidean, manhattan"),
    (PROMPTS, {"similarity_fn_name": "dot_score"}, ": similarity_fn_name", "wrong value", '"dot_score"',
     "one of cosine, dot, euclidean, manhattan"),
    (PROMPTS, {"truncate_dim": 0}, ": truncate_dim", "wrong value", "0", "an integer from 1 to 64"),
    (PROMPTS, {"truncate_dim": 65}, ": truncate_dim", "wrong value", "65", "an integer from 1 to 64"),
    (BERT, {"max_seq_length": 1}, ": max_seq_length", "wrong value", "1", LENGTH),
    (BERT, {"max_seq_length": "512"}, ": max_seq_length", "wrong value", '"512"', LENGTH),
    (BERT, {"do_lower_case": True}, ": do_lower_case", "wrong value", "true", "false"),
    (BERT, {"transformer_task": "fill-mask"}, ": transformer_task", "wrong value", '"fill-mask"',
     '"feature-extraction"'),
    (BERT, {"query_expansion": {"strategy": "fixed"}}, ": query_expansion", "wrong value",
     '{"strategy": "fixed"}', "null"),
    (BERT, {"query_length": 32}, ": query_length", "wrong value", "32", "null"),
    (BERT, {"document_length": 32}, ": document_length", "wrong value", "32", "null"),
    (BERT, {"processing_kwargs": {"text": {}}}, ": processing_kwargs", "wrong value", '{"text": {}}', "null"),
    (BERT, {"modality_config": TEXT_ONLY | CHAT}, ": modality_config", "wrong value", None, FORWARD),
    (BERT, {"modality_config": None}, ": modality_config", "wrong value", "null", FORWARD),
    (BERT, {"modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}}, ": modality_config",
     "wrong value", None, FORWARD),
    (BERT, NEW_BERT | {"module_output_name": "sentence_embedding"}, ": module_output_name", "wrong value",
     '"sentence_embedding"', '"token_embeddings"'),
    (BERT, {"tokenizer_name_or_path": "other"}, ": tokenizer_name_or_path", "wrong value", '"other"', "null"),
    (BERT, {"config_kwargs": {"rope_theta": 1e4}}, ": config_kwargs", "unknown settings: rope_theta", None, None),
    (BERT, {"config_args": {"num_hidden_layers": 1}}, ": config_args", "unknown settings: num_hidden_layers", None,
     None),
    (BERT, {"model_kwargs": {"variant": "fp16"}}, ": model_kwargs", "unknown settings: variant", None, None),
    (BERT, {"model_args": {"quantization_config": {}}}, ": model_args", "unknown settings: quantization_config", None,
     None),
    (BERT, {"processor_kwargs": {"x": 1}}, ": processor_kwargs", "unknown settings: x", None, None),
    (BERT, {"processor_kwargs": {"add_eos_token": False}}, ": processor_kwargs", "unknown settings: add_eos_token",
     None, None),
    (BERT, {"tokenizer_args": {"tokenizer_file": "x"}}, ": tokenizer_args", "unknown settings: tokenizer_file", None,
     None),
    (BERT, {"tokenizer_args": {"split_special_tokens": True}}, ": tokenizer_args: split_special_tokens",
     "wrong value", "true", "false"),
    (TOKENIZER, {"model_max_length": "long"}, ": model_max_length", "wrong value", '"long"', LIMIT),
    (TOKENIZER, {"model_max_length": 0}, ": model_max_length", "wrong value", "0", LIMIT),
    (TOKENIZER, {"model_max_length": 10**400}, ": model_max_length", "wrong value", None, LIMIT),
    (TOKENIZER, {"max_len": 0}, ": max_len", "wrong value", "0", LIMIT),
    (TOKENIZER, {"truncation_side": "middle"}, ": truncation_side", "wrong value", '"middle"', '"right"'),
    (TOKENIZER, {"truncation_side": None}, ": truncation_side", "wrong value", "null", '"right"'),
    (TOKENIZER, {"split_special_tokens": True}, ": split_special_tokens", "wrong value", "true", "false"),
    (TOKENIZER, {"add_prefix_space": True}, ": add_prefix_space", "wrong value", "true", "false"),
    (TOKENIZER, {"fix_mistral_regex": True}, ": fix_mistral_regex", "wrong value", "true", "false"),
    (TOKENIZER, {"auto_map": {"AutoTokenizer": ["a.B", None]}}, ": auto_map", "wrong value",
     '{"AutoTokenizer": ["a.B", null]}', "null"),
    (TOKENIZER, {"tokenizer_class": "GPT2Tokenizer"}, ": tokenizer_class", "wrong value", '"GPT2Tokenizer"',
     '"Qwen2Tokenizer"'),
    (TOKENIZER, {"processor_class": "Qwen2VLProcessor"}, ": processor_class", "wrong value", '"Qwen2VLProcessor"',
     "null"),
    (TOKENIZER, {"fast_tokenizer_files": ["tokenizer.5.0.0.json"]}, ": fast_tokenizer_files", "wrong value",
     '["tokenizer.5.0.0.json"]', "null"),
    (TOKENIZER, {"init_inputs": [{}]}, ": init_inputs", "wrong value", "[{}]", "null"),
    (TOKENIZER, {"model_input_names": ["input_ids"]}, ": model_input_names", "wrong value", '["input_ids"]',
     '["input_ids", "attention_mask"]'),
    (TOKENIZER, {"eos_token": 7}, ": eos_token", "wrong content", "7",
     "a token: a string, or an object with its content"),
    (TOKENIZER, {"extra_special_tokens": "x"}, ": extra_special_tokens", "wrong value", '"x"',
     "a list or an object of tokens"),
    (TOKENIZER, {"added_tokens_decoder": {"x": "a"}}, ": added_tokens_decoder", "wrong content", '"x"',
     "a token's id"),
    (SPECIAL, {"truncation_side": "left"}, "", "unknown settings: truncation_side", None, None),
    ("added_tokens.json", {"a": "b"}, "", "wrong content", '"b"', "a token's id"),
    *((file, {"of_a_later_version": 1}, "", "unknown settings: of_a_later_version", None, None)
      for file in (PROMPTS, BERT, TOKENIZER, SPECIAL, POOLING, NORMALIZE)),
    ("modules.json", module(1, of_a_later_version=1), ": module 1", "unknown settings: of_a_later_version", None,
     None),
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
    assert error.what == what
    assert got is None or error.got == got
    assert expected is None or error.expected == expected
    assert "\n" not in str(error)
    assert len(str(error)) < 700


def test_missing_pooling_file(folder):
    (folder / POOLING).unlink()
    with pytest.raises(WeightsError) as caught:
        read(folder)
    assert (caught.value.where, caught.value.what) == (str(folder / POOLING), "no such file")


@pytest.mark.parametrize(
    "name", [PROMPTS, BERT, TOKENIZER, SPECIAL, NORMALIZE, "added_tokens.json", "modules.json"]
)
def test_a_link_that_leads_nowhere_is_no_absent_file(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(folder / "gone")
    with pytest.raises(WeightsError) as caught:
        read(folder)
    assert caught.value.where == str(folder / name)


@pytest.mark.skipif(not DATA, reason="LASTWORD_TEST_DATA is not set")
@pytest.mark.parametrize("name", ["Qwen3-Embedding-0.6B", "Qwen3-Embedding-4B"])
def test_published_files_are_read(name):
    spec = read(Path(str(DATA)) / "tokenizers" / name)
    assert spec.prompts == {"query": QUERY_PROMPT, "document": ""}
    assert (spec.normalize, spec.default_prompt_name, spec.truncate_dim) == (True, None, None)
    assert (spec.similarity, spec.notice) == ("cosine", None)
