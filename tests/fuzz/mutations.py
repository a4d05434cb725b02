"""Seeded mutations of valid inputs: of JSON by its structure, of safetensors by header and payload, of any bytes.

Every function takes a `random.Random` and changes nothing but what it returns.
"""

import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any


class Raw(str):
    """Text that stands in the JSON as it is."""

    __slots__ = ()


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 2**16, 2**31, 2**63, 10**30, -(2**40)),
    *(
        0.0,
        -0.5,
        0.1,
        1.5,
        1e-30,
        1e30,
        1e308,
        Raw("1e999"),
        Raw("NaN"),
        Raw("-Infinity"),
        Raw("-0"),
    ),
    *(
        "",
        " ",
        "x" * 5000,
        "a\nb",
        "\x00",
        "\u2028",
        "é€😀",
        Raw('"\\ud800"'),
        "0",
        "1",
        "true",
        "null",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        [0] * 300,
        ["x" * 300] * 30,
        {f"key {i}": i for i in range(300)},
    ),
    *(Raw("9" * 5000), Raw("[" * 3000 + "]" * 3000), Raw('{"a":' * 3000 + "1" + "}" * 3000)),
    *(
        "..",
        "../..",
        "/etc/passwd",
        "/dev/zero",
        "C:\\x",
        "a/b",
        ".",
        "\x00/x",
        "0_Transformer",
        "1_Pooling",
    ),
    *("cosine", "dot", "cos_sim", "left", "right", "longest_first", "float16", "bfloat16", "int8"),
    *("lasttoken", "mean", "cls", "silu", "gelu", "yarn", "linear", "llama3", "dynamic", "default"),
    *("qwen3", "bert", "Qwen3Model", "Qwen3ForCausalLM", "BertModel", "query", "document"),
    *("sliding_attention", "full_attention", ["sliding_attention"] * 2, ["full_attention"] * 2),
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "linear", "factor": 2.0},
    {"AutoModel": "modeling_x.Model"},
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "x" * 300},
    {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
)
KEYS = tuple(
    "architectures auto_map attention_bias attention_dropout dtype head_dim hidden_act hidden_size is_causal "
    "layer_types max_position_embeddings max_window_layers mlp_bias model_type num_attention_heads "
    "num_hidden_layers num_key_value_heads partial_rotary_factor quantization_config rms_norm_eps "
    "rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings torch_dtype use_cache "
    "use_mrope use_sliding_window vocab_size idx name path type kwargs pooling_mode "
    "pooling_mode_cls_token pooling_mode_lasttoken pooling_mode_mean_tokens include_prompt "
    "word_embedding_dimension embedding_dimension prompts default_prompt_name similarity_fn_name "
    "truncate_dim max_seq_length do_lower_case config_kwargs model_kwargs tokenizer_kwargs processor_kwargs "
    "modality_config module_output_name transformer_task processing_kwargs model_max_length "
    "truncation_side padding_side add_bos_token add_eos_token add_prefix_space do_lower eos_token pad_token "
    "bos_token unk_token chat_template added_tokens_decoder extra_special_tokens tokenizer_class "
    "normalizer pre_tokenizer post_processor decoder model added_tokens truncation padding vocab merges "
    "byte_fallback ignore_merges continuing_subword_prefix weight_map metadata total_size __metadata__ "
    "models merge_method base_model parameters weight t normalize lambda slices tokenizer_source "
    "text embedding id 0 é".split()
)
TOKENS = (
    *(
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\r\n",
        b"\x0b",
        b"\x1c",
    ),
    *(
        "\u2028\x85\u3000".encode(),
        b'"',
        b"'",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\t",
        b" ",
        b"#",
        b"-",
    ),
    *(
        b"null",
        b"NaN",
        b"1e999",
        b"-1",
        b"9" * 400,
        b'""',
        b'"text"',
        b"text",
        b"&a",
        b"*a",
        b"!!python/name:os",
    ),
)


def mutate_json(rng: Random, data: bytes) -> bytes:
    """Change one to three places of a JSON document; a key may then occur twice, a value may be no JSON."""
    value = json.loads(data)
    raw: list[str] = []

    def plain(each: Any) -> Any:
        if isinstance(each, Raw):
            raw.append(each)
            return f"@raw{len(raw) - 1}@"
        return each

    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _change(rng, value, plain)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 2)))
    if rng.random() < 0.1:
        text = _key_twice(rng, text)
    for number, each in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', each)
    return text.encode(errors="surrogatepass")


def _change(rng: Random, value: Any, plain: Callable[[Any], Any]) -> Any:
    """Return a value with one change at a random place, which is reached from the outside inwards."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.25:
        return _change_here(rng, value, plain)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        return {k: _change(rng, v, plain) if k == key else v for k, v in value.items()}
    at = rng.randrange(len(value))
    return [*value[:at], _change(rng, value[at], plain), *value[at + 1 :]]


def _change_here(rng: Random, value: Any, plain: Callable[[Any], Any]) -> Any:
    odd = plain(rng.choice(ODD))
    if isinstance(value, dict) and rng.random() < 0.9:
        changed = dict(value)
        key = rng.choice(list(value)) if value else ""
        match rng.randrange(5):
            case 0:
                changed.pop(key, None)
            case 1:
                changed[rng.choice(KEYS)] = odd
            case 2:
                changed[rng.choice(KEYS)] = changed.pop(key, None)
            case 3:
                changed[key + rng.choice((" ", "x", "\x00", "_"))] = odd
            case _:
                changed[key] = odd
        return changed
    if isinstance(value, list) and rng.random() < 0.9:
        at = rng.randrange(len(value) + 1)
        return rng.choice(
            ([*value[:at], odd, *value[at:]], value[:at], value + value[:at], value[::-1])
        )
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, value * 2, -value, value / 2, str(value), [value]))
    if isinstance(value, str) and rng.random() < 0.4:
        at = rng.randrange(len(value) + 1)
        return rng.choice(
            (value[:at], value[at:], value.upper(), f"{value[:at]}.{value[at:]}", [value])
        )
    return odd


def _key_twice(rng: Random, text: str) -> str:
    places = [place for place, char in enumerate(text) if char == "{"]
    if not places:
        return text
    at = rng.choice(places) + 1
    key, value = rng.choice(KEYS), rng.choice(("null", "1", '"x"', "{}"))
    return f'{text[:at]}"{key}": {value}, "{key}": {value}{", " if text[at:].strip()[:1] != "}" else ""}{text[at:]}'


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Flip, insert, delete, repeat or move bytes at one to four places."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 8, 64, 4096)))
        match rng.randrange(8):
            case 0:
                data = data[:at] + data[end:]
            case 1:
                data = data[:at]
            case 2:
                data = data[:end] + data[at:]
            case 3:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 4:
                data = data[:at] + data[at:end][::-1] + data[end:]
            case 5:
                data = data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"", b"\n\n")))
            case _:
                data = data[:at] + rng.choice(TOKENS) * rng.choice((1, 1, 1, 50)) + data[at:]
    return data


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """Change the header, its length, the size of the payload, or numbers in the payload."""
    length = int.from_bytes(data[:8], "little")
    header, payload = data[8 : 8 + length], data[8 + length :]
    match rng.randrange(6):
        case 0 | 1:
            header = mutate_json(rng, header)
        case 2:
            header = mutate_bytes(rng, header)
        case 3:
            changed = rng.choice((length + 1, length - 1, 0, 2**63, 2**64 - 1, 10**8, 10**8 + 1, 1))
            return changed.to_bytes(8, "little") + header + payload
        case 4:
            payload = rng.choice(
                (payload[:-1], payload[: len(payload) // 2], b"", payload + b"\0" * 8)
            )
        case _:
            number = rng.choice((float("nan"), float("inf"), 3e38, 1e30, 0.0, 1e-40, -1.0))
            count = rng.choice((1, 16, len(payload) // 4))
            at = rng.randrange(len(payload) // 4 - count + 1) * 4
            payload = payload[:at] + struct.pack("<f", number) * count + payload[at + 4 * count :]
    if rng.random() < 0.5:
        header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + payload


LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1191586416\n"
)


def replace_by_another_kind(rng: Random, path: Path) -> str:
    """Put something else than a file in the place of a file; return what it is."""
    if path.exists() or path.is_symlink():
        path.unlink()
    kind = rng.choice(
        (
            "dangling",
            "loop",
            "fifo",
            "folder",
            "zero",
            "full",
            "lfs",
            "empty",
            "sparse",
            "page",
            "gone",
        )
    )
    content: dict[str, bytes] = {
        "lfs": LFS_POINTER,
        "empty": b"",
        "page": b"<!DOCTYPE html><html>\n" * 9,
    }
    links = {"dangling": "gone", "loop": path.name, "zero": "/dev/zero", "full": "/dev/full"}
    if kind in links:
        path.symlink_to(links[kind])
    elif kind in content:
        path.write_bytes(content[kind])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    return kind


def some(rng: Random, items: Sequence[str], most: int) -> list[str]:
    """Choose up to `most` items, at least one."""
    return rng.sample(items, rng.randint(1, min(most, len(items))))
