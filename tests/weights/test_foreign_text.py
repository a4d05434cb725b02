"""Whatever text a checkpoint holds and wherever, a message about it is one short line without control characters."""

import json
import struct
from shutil import copytree

import pytest

from lastword.bench.checkpoint import make_checkpoint
from lastword.errors import LastwordError, printable
from lastword.weights import Checkpoint, locate, read_config, read_embedding_spec

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = {
    "long": "x" * 100_000,
    "lines": "a\nb\r\x85\u2028" * 20,
    "escapes": "\x1b[31m\x00\x07\x9b" * 1000,
    "surrogates": "\ud800\udfff" * 1000,
    "order": "\u202e\u2066\u200b" * 1000,
    "wide": "\U000e0001" * 5000,
    "quotes": "\"'\\" * 3000,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("whole"), num_hidden_layers=1)


def edit(name, change):
    """Create a place: `change` puts the text into the parsed file `name`, which need not exist."""

    def apply(folder, text):
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(change(values, text) or values), encoding="utf-8")

    return apply


def header(change):
    """Create a place in the header of the weights."""

    def apply(folder, text):
        raw = (folder / SINGLE).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + length])
        change(entries, text)
        new = json.dumps(entries).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return apply


CONFIG, PROMPTS = "config.json", "config_sentence_transformers.json"
NORM = "norm.weight"
PLACES = {
    "config-key": edit(CONFIG, lambda v, text: v.update({text: 1})),
    "config-value": edit(CONFIG, lambda v, text: v.update(hidden_size=text)),
    "config-list": edit(CONFIG, lambda v, text: v.update(architectures=[text] * 9)),
    "config-inner": edit(CONFIG, lambda v, text: v.update(rope_scaling={"rope_type": text, text: text})),
    "config-content": edit(CONFIG, lambda v, text: [text]),
    "module-type": edit("modules.json", lambda v, text: v[1].update(type=text)),
    "module-path": edit("modules.json", lambda v, text: v[1].update(path=text)),
    "module-key": edit("modules.json", lambda v, text: v[1].update({text: {text: text}})),
    "pooling": edit("1_Pooling/config.json", lambda v, text: v.update(pooling_mode=text)),
    "prompts-key": edit(PROMPTS, lambda v, text: v.update({text: text})),
    "prompt-name": edit(PROMPTS, lambda v, text: v["prompts"].update({text: 5})),
    "default-prompt": edit(PROMPTS, lambda v, text: v.update(default_prompt_name=text)),
    "tokenizer-limit": edit("tokenizer_config.json", lambda v, text: v.update(model_max_length=text)),
    "bert-config": edit("sentence_bert_config.json", lambda v, text: v.update({text: text})),
    "index-tensor": edit(INDEX, lambda v, text: {"weight_map": {text: SINGLE}}),
    "index-file": edit(INDEX, lambda v, text: {"weight_map": {"x": text}}),
    "index-long-file": edit(INDEX, lambda v, text: {"weight_map": {"x": "a" * len(text) + ".safetensors"}}),
    "tensor": header(lambda v, text: v.update({text: v.pop(NORM)})),
    "tensor-of-no-entry": header(lambda v, text: v.update({text: text})),
    "tensor-key": header(lambda v, text: v[NORM].update({text: text})),
    "dtype": header(lambda v, text: v[NORM].update(dtype=text)),
    "shape": header(lambda v, text: v[NORM].update(shape=[text] * 100)),
    "metadata": header(lambda v, text: v.update(__metadata__={text: [text]})),
    "prefix": header(lambda v, text: [v.update({f"{text}.{k}": v.pop(k)}) for k in [*v]]),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("place", PLACES)
def test_messages_are_one_short_line(whole, tmp_path, place, text):
    folder = copytree(whole, tmp_path / "model")
    PLACES[place](folder, TEXTS[text])
    with pytest.raises(LastwordError) as caught:
        config = read_config(locate(folder).folder)
        read_embedding_spec(folder, config)
        Checkpoint(folder, config)
    assert printable(str(caught.value)) == str(caught.value)
    assert len(str(caught.value)) < 1000
