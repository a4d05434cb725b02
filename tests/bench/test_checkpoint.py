"""Random checkpoints: the real libraries can read them, they are repeatable, and their activations are sane."""

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from lastword.bench.checkpoint import (
    END,
    QUERY_PROMPT,
    main,
    make_checkpoint,
    make_tokenizer,
    word_tokenizer,
)
from lastword.bench.models.workloads import WORDS
from lastword.errors import ConfigError
from lastword.weights import Checkpoint, locate, read_config, read_embedding_spec


def test_tokenizer_appends_its_end_token():
    tokenizer = make_tokenizer()
    end = tokenizer.token_to_id(END)
    assert tokenizer.encode("").ids == [end]
    assert tokenizer.encode("gravity").ids[-1] == end
    assert tokenizer.encode("a", "b").ids.count(end) == 1
    plain = make_tokenizer(end_token=False)
    assert plain.encode("").ids == []
    assert plain.encode("gravity").ids == tokenizer.encode("gravity").ids[:-1]


def test_a_word_is_one_token():
    for tokenizer in (word_tokenizer(), word_tokenizer(end_token=False)):
        for word in WORDS:
            for text in (word, f" {word}"):
                assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 1
        prompt = tokenizer.encode(QUERY_PROMPT, add_special_tokens=False).ids
        assert len(prompt) == 18
        for word in WORDS:  # also right after the prompt's colon
            ids = tokenizer.encode(QUERY_PROMPT + word, add_special_tokens=False).ids
            assert (ids[:-1], len(ids)) == (prompt, 19)


@pytest.mark.parametrize(
    "text", [QUERY_PROMPT, "日本語 e\u0301 ü 👩‍👩‍👧 \u200f", " \n\t x\r\n1234", "\0\ufeff", END]
)
def test_tokenizer_round_trip(text):
    import unicodedata

    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_same_seed_same_weights(tmp_path):
    one, two = (make_checkpoint(tmp_path / name) for name in "ab")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    again = make_checkpoint(tmp_path / "a", seed=2, shards=2)  # made anew over the old files
    assert not (again / "model.safetensors").exists()
    assert Checkpoint(again, read_config(again)).num_parameters > 0


@pytest.mark.parametrize("form", ["v4", "v5"])
@pytest.mark.parametrize("bias", [False, True])
def test_transformers_loads_it_and_activations_stay_sane(tmp_path, form, bias):
    transformers = pytest.importorskip("transformers")
    folder = make_checkpoint(
        tmp_path, num_hidden_layers=12, config_format=form, attention_bias=bias, prefix="model."
    )
    model, report = transformers.Qwen3Model.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("What is gravity?").ids
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for state in states:
        assert 0.1 < float(state.std()) < 10


def test_an_unknown_config_format(tmp_path):
    with pytest.raises(ConfigError) as caught:
        make_checkpoint(tmp_path, config_format="v3")
    error = caught.value
    assert (error.where, error.got) == ("config_format", "'v3'")
    assert error.expected == "'v4' or 'v5'"


def test_untied_with_prefix_has_a_head(tmp_path):
    folder = make_checkpoint(tmp_path, tied=False, prefix="model.")
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


def test_command_line(tmp_path, capsys):
    main([str(tmp_path / "out"), "--layers", "1", "--dtype", "bfloat16", "--shards", "2"])
    folder = locate(capsys.readouterr().out.strip()).folder
    config = read_config(folder)
    assert config.num_hidden_layers == 1
    assert Checkpoint(folder, config).dtypes == ("BF16",)
    assert read_embedding_spec(folder, config).prompts["query"] == QUERY_PROMPT
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert config.vocab_size == tokenizer.get_vocab_size()
    assert len(tokenizer.encode("always looked together").ids) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out", "--layers", "0"], "argument --layers: not a whole number of at least 1"),
        (["out", "--shards", "0"], "argument --shards: not a whole number of at least 1"),
        (["taken"], "taken: File exists"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].partition("error: ")[2].startswith(said)
