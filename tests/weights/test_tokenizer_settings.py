"""Tokens that the files beside tokenizer.json name: they must be those of tokenizer.json itself."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.small_models import DROP, change_file
from tokenizers import Tokenizer

from lastword.errors import ConfigError
from lastword.weights import check_tokens
from lastword.weights.json_fields import Fields
from lastword.weights.tokenizer_settings import read_tokenizer_settings

DATA = os.environ.get("LASTWORD_TEST_DATA")
FILE, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
END = {
    "content": "<|endoftext|>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}
# As make_checkpoint's tokenizer.json has them.
DECODER = {
    str(number): END | {"content": content, "special": True}
    for number, content in ((509, "<|endoftext|>"), (510, "<|im_start|>"), (511, "<|im_end|>"))
}
AN_ADDED = "an added token, as in tokenizer.json"


@pytest.fixture
def folder(model):
    (model / FILE).unlink()
    return model


def check(folder, keywords=None) -> None:
    settings = read_tokenizer_settings(folder, Fields(keywords or {}, "keywords"))
    added = Tokenizer.from_file(str(folder / "tokenizer.json")).get_added_tokens_decoder()
    check_tokens(settings, added)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (FILE, {"added_tokens_decoder": DECODER, "eos_token": "<|im_end|>", "bos_token": None}),
        (FILE, {"pad_token": END | {"__type": "AddedToken"}, "unk_token": ""}),
        (
            FILE,
            {"extra_special_tokens": {"image_token": "<|im_start|>"}, "audio_token": "<|im_end|>"},
        ),
        (FILE, {"additional_special_tokens": ["<|im_start|>", END], "extra_special_tokens": []}),
        (MAP, {"pad_token": END, "additional_special_tokens": ["<|im_end|>"]}),
        (ADDED, {"<|endoftext|>": 509}),
    ],
    ids=range(6),
)
def test_tokens_of_tokenizer_json(folder, file, values):
    change_file(folder, file, values)
    check(folder)


@pytest.mark.skipif(not DATA, reason="LASTWORD_TEST_DATA is not set")
@pytest.mark.parametrize("name", ["Qwen3-Embedding-0.6B", "Qwen3-Embedding-4B", "Qwen3"])
def test_what_transformers_4_writes_beside_a_published_tokenizer(tmp_path, name):
    shutil.copy(Path(str(DATA)) / "tokenizers" / name / "tokenizer.json", tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    decoder = {str(token.pop("id")): token for token in added}
    ids = {token["content"]: int(number) for number, token in decoder.items()}
    special = [token["content"] for token in added if token["special"]]
    named = {key: value for key, value in decoder["151643"].items() if key != "special"}
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": special[1:],
        "bos_token": None,
        "chat_template": "{%- if tools %}",
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "extra_special_tokens": {},
        "model_max_length": 131072,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    change_file(tmp_path, FILE, settings | tokens)
    change_file(tmp_path, MAP, {"additional_special_tokens": special[1:], "pad_token": named})
    change_file(tmp_path, ADDED, ids)
    check(tmp_path)


def other(number: str, **changes: object) -> dict:
    return {"added_tokens_decoder": DECODER | {number: DECODER.get(number, END) | changes}}


# The file, what it holds, and the error's parts: where (in the file), got, expected.
CONTRADICTIONS = [
    (FILE, {"extra_special_tokens": ["<think>"]}, ": extra_special_tokens", '"<think>"', AN_ADDED),
    (FILE, {"extra_special_tokens": {"a_token": "<a>"}}, ": extra_special_tokens", '"<a>"', AN_ADDED),
    (FILE, {"additional_special_tokens": ["<a>"]}, ": additional_special_tokens", '"<a>"', AN_ADDED),
    (FILE, {"model_specific_special_tokens": {"b_token": "<a>"}}, ": model_specific_special_tokens", '"<a>"',
     AN_ADDED),
    (FILE, {"pad_token": "[PAD]"}, ": pad_token", '"[PAD]"', AN_ADDED),
    (FILE, {"unk_token": "The"}, ": unk_token", '"The"', AN_ADDED),
    (FILE, {"audio_token": "<audio>"}, ": audio_token", '"<audio>"', AN_ADDED),
    (FILE, other("600", content="<think>"), ": added_tokens_decoder: 600", '"<think>"', AN_ADDED),
    (FILE, other("511", content="<|im_start|>"), ": added_tokens_decoder: 511",
     "id 511", "id 510, as in tokenizer.json"),
    (FILE, other("510", rstrip=True), ": added_tokens_decoder: 510",
     "rstrip true", "rstrip false, as in tokenizer.json"),
    (FILE, other("510", lstrip=1), ": added_tokens_decoder: 510",
     "lstrip 1", "lstrip false, as in tokenizer.json"),
    (FILE, {"added_tokens_decoder": {}}, ": added_tokens_decoder",
     "a list without <|endoftext|>, <|im_end|>, <|im_start|>",
     "every added token, as in tokenizer.json"),
    (FILE, {"added_tokens_decoder": {"509": DECODER["509"]}}, ": added_tokens_decoder",
     "a list without <|im_end|>, <|im_start|>", "every added token, as in tokenizer.json"),
    (MAP, {"cls_token": "<a>"}, ": cls_token", '"<a>"', AN_ADDED),
    (ADDED, {"<a>": 600}, "", '"<a>"', AN_ADDED),
    (ADDED, {"<|endoftext|>": 7}, "", "id 7", "id 509, as in tokenizer.json"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "values", "place", "got", "expected"), CONTRADICTIONS)
def test_a_contradiction_is_refused_by_name(folder, file, values, place, got, expected):
    path = change_file(folder, file, values)
    with pytest.raises(ConfigError) as caught:
        check(folder)
    error = caught.value
    assert (error.where, error.what) == (f"{path}{place}", "contradicts tokenizer.json")
    assert (error.got, error.expected) == (got, expected)
    assert error.remedy is not None


def test_keyword_arguments_name_tokens_too(folder):
    with pytest.raises(ConfigError) as caught:
        check(folder, {"pad_token": "[PAD]"})
    assert caught.value.where == "keywords: pad_token"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize(
    "case", [case for case in CONTRADICTIONS if case[0] == FILE][:11], ids=range(11)
)
def test_a_contradiction_matters_to_transformers(folder, name, case):
    """Or at least it may: the class decides."""
    transformers = pytest.importorskip("transformers")
    texts = [
        f"a {token} b" for token in ("<think>", "<a>", "[PAD]", "<audio>", "<|im_start|>", "The")
    ]

    def ids() -> object:
        return transformers.AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]

    change_file(folder, FILE, {"tokenizer_class": DROP if name is None else name})
    before = ids()
    file, values, _, got, _ = case
    change_file(folder, file, values)
    try:
        after = ids()
    except TypeError:  # a property that is no bool
        return
    assert after != before or got == "id 511"


def test_what_is_read(folder):
    change_file(folder, FILE, {"model_max_length": 1e30, "truncation_side": "left"})
    settings = read_tokenizer_settings(folder, Fields({"model_max_length": 9}, "keywords"))
    assert (settings.limit, settings.model_max_length) == (9, 2**31 - 1)
    assert settings.truncation_side == "left"
    settings = read_tokenizer_settings(folder, Fields({"truncation_side": "right"}, "keywords"))
    assert (settings.limit, settings.truncation_side) == (None, "right")
    assert json.loads((folder / FILE).read_text())["truncation_side"] == "left"
