"""A tokenizer.json that would end the process is refused before the tokenizers library reads it."""

import json
from pathlib import Path

import pytest
from helpers.messages import refusal

from lastword.bench.checkpoint import make_tokenizer
from lastword.errors import WeightsError
from lastword.weights.files.tokenizer_file import read_tokenizer


@pytest.mark.parametrize("escaped", [False, True])
def test_a_prefix_of_tokens_is_refused(escaped: bool, tmp_path: Path) -> None:
    """tokenizers 0.23 cuts the prefix off every merge by its length: inside a character, the process is aborted."""
    path = tmp_path / "tokenizer.json"
    values = json.loads(make_tokenizer().to_str())
    for prefix in (None, ""):
        values["model"]["continuing_subword_prefix"] = prefix
        path.write_text(json.dumps(values))
        assert read_tokenizer(path)[0].get_vocab_size()
    values["model"]["continuing_subword_prefix"] = "."
    text = json.dumps(values)
    path.write_text(text.replace("_subword_", "\\u005fsubword_") if escaped else text)
    where = f"{path}: continuing_subword_prefix"
    with refusal(WeightsError, where=where, what="not supported in BPE", got='"."'):
        read_tokenizer(path)


def test_word_pieces_may_have_a_prefix(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    model = {
        "type": "WordPiece",
        "unk_token": "a",
        "continuing_subword_prefix": "##",
        "vocab": {"a": 0, "##b": 1},
    }
    path.write_text(
        json.dumps({"version": "1.0", "model": {**model, "max_input_chars_per_word": 9}})
    )
    assert read_tokenizer(path)[0].encode("ab").ids == [0, 1]
