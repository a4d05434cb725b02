"""The reference: transformers' own Qwen3 layers on the stored tensors, with one layer in memory at a time.

Config, tokenizer, prompts and weights are read with transformers, safetensors and json only, so that errors in
lastword's reading code are found too. This module does not use `Embedder`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lastword.errors import ConfigError
from lastword.kernels.caller_settings import integers
from lastword.verify.rounding import (
    calibration_ids,
    is_quantized,
    quantize_layer,
    smoothing_factors,
)

QWEN_END_TOKEN = "<|endoftext|>"  # noqa: S105  Qwen3-Embedding was trained with it


def open_tokenizer(folder: Path, **keywords: str) -> Any:
    """Open a checkpoint's tokenizer with transformers.

    Raises:
        ConfigError: transformers cannot open it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **keywords)
    except Exception as error:  # transformers raises many unrelated classes
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            str(folder),
            f"transformers cannot open its tokenizer ({reason})",
            remedy="Download the tokenizer's files again.",
        ) from error


class ReferenceText:
    """A checkpoint's prompts, tokenizer and normalisation, read as sentence-transformers reads them.

    Raises:
        ConfigError: transformers cannot open the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        modules = read_json(folder / "modules.json", None)
        transformer = (modules and read_json(folder / "sentence_bert_config.json", {})) or {}
        keywords = transformer.get("tokenizer_args") or transformer.get("processor_kwargs") or {}
        keywords = {k: v for k, v in keywords.items() if k == "truncation_side"}
        self._tokenizer = open_tokenizer(folder, **keywords)
        self._eos = read_json(folder / "config.json", {}).get("eos_token_id")
        settings = read_json(folder / "config_sentence_transformers.json", {})
        # Without modules.json, sentence-transformers reads no prompts.
        read = (modules and settings.get("prompts")) or {}
        named = {name: prompt or "" for name, prompt in read.items()}
        self.prompts: dict[str, str] = {"query": "", "document": "", **named}
        self.normalize = modules is None or modules[-1]["type"].endswith(".Normalize")

    def prompt(self, kind: str) -> str:
        """Return the prompt for a kind of text ("query" or "document"), or "" if there is none."""
        return self.prompts.get(kind, "")

    def ids(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Return the token ids of each text, cut to max_length; each text is tokenised on its own."""
        return [
            self._tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            for text in texts
        ]

    def appended(self) -> list[str]:
        """Return the tokens that the tokenizer appends to a text."""
        core = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self._tokenizer("a")["input_ids"]
        tokens: list[str] = self._tokenizer.convert_ids_to_tokens(whole[len(core) :])
        return tokens

    def end_tokens(self) -> list[str]:
        """Return the tokens that may end a text according to the model's files, the most likely first; [] for none.

        With Qwen's vocabulary these are Qwen3-Embedding's end token and config.json's `eos_token_id`. The tokenizer's
        `eos_token` does not count then, because for Qwen3-Embedding it is the end of a chat message.
        """
        eos = self._eos if isinstance(self._eos, list) else [self._eos]
        named = self._tokenizer.convert_ids_to_tokens([i for i in eos if i is not None])
        if QWEN_END_TOKEN in self._tokenizer.get_vocab():
            named = [QWEN_END_TOKEN, *named]
        else:
            named += [self._tokenizer.eos_token, self._tokenizer.sep_token]
        return list(dict.fromkeys(token for token in named if token is not None))


def read_json(path: Path, absent: Any) -> Any:
    """Return the content of a JSON file, or `absent` if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else absent


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers loads; others in the folder, such as adapters, are ignored."""
    index = read_json(folder / "model.safetensors.index.json", None)
    names = ["model.safetensors"] if index is None else sorted({*index["weight_map"].values()})
    return [folder / name for name in names]


class StoredTensors:
    """Reads the tensors of a checkpoint one at a time. Name a tensor without the prefix `model.`."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, tuple[Path, str]] = {}
        for path in _weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    self._files[key.removeprefix("model.")] = (path, key)

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype."""
        path, key = self._files[name]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    def group(self, prefix: str, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by their names without it."""
        names = [name for name in self._files if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.read(name).to(device, dtype) for name in names}

    def not_finite(self) -> list[str]:
        """Return the names of the tensors that contain NaN or infinity."""
        return [name for name in self._files if not bool(self.read(name).isfinite().all())]


@dataclass(frozen=True, slots=True)
class ReferenceStates:
    """The hidden states that transformers computes for N token lists, in fp64 on the CPU."""

    states: Tensor  # [N, L + 1, C]: last token, after the embedding and each layer; at L, after the final norm
    unnormed: Tensor  # [N, C]: last token, after layer L, before the final norm
    first: Tensor  # [N, C]: first token, after the final norm
    before_last: Tensor  # [N, C]: the token before the last, after the final norm
    mean: Tensor  # [N, C]: mean over all tokens, after the final norm


@torch.inference_mode()
def compute_reference_states(
    folder: Path,
    ids: Sequence[Sequence[int]],
    dtype: torch.dtype,
    device: torch.device,
    advance: Callable[[int], None],
    quantize: str | None = None,
) -> ReferenceStates:
    """Compute hidden states with transformers: all token lists go through a layer before the next layer is loaded.

    Args:
        folder: the checkpoint.
        ids: N token lists.
        dtype: the dtype to compute in.
        device: the device to compute on.
        advance: called with 1 after each layer.
        quantize: mode by which to round the matmuls ("int8" or "fp8"), or None.
    """
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    config: Any = qwen3.Qwen3Config.from_pretrained(
        folder,
        local_files_only=True,
        attn_implementation="sdpa",  # causal without a mask, since all lists of a batch have the same length
    )
    tensors = StoredTensors(folder)
    batches = _equal_lengths(ids)
    rows = [[list(ids[i]) for i in batch] for batch in batches]
    measured = [[calibration_ids(config.vocab_size)]] if quantize == "int8" else []
    embedded = _embed(tensors, [*rows, *measured], device, dtype)
    states, calibration = embedded[: len(rows)], embedded[len(rows) :]
    rotary = qwen3.Qwen3RotaryEmbedding(config).to(device)
    kept = [_last_rows(states, batches)]
    for index in range(config.num_hidden_layers):
        _through_layer(config, index, tensors, states, calibration, rotary, quantize)
        kept.append(_last_rows(states, batches))
        advance(1)
    norm = qwen3.Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    norm.load_state_dict(tensors.group("norm.", device, dtype), assign=True)
    states = [norm(x) for x in states]
    return ReferenceStates(
        states=torch.stack([*kept[:-1], _last_rows(states, batches)], dim=1),
        unnormed=kept[-1],
        first=_in_order([x[:, 0] for x in states], batches),
        before_last=_in_order([x[:, -2:][:, 0] for x in states], batches),
        mean=_in_order([x.mean(1) for x in states], batches),
    )


def _embed(
    tensors: StoredTensors,
    batches: Sequence[list[list[int]]],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return the embeddings [n, T, C] of each batch; the table, which is larger than a layer, is freed on return."""
    table = tensors.read("embed_tokens.weight")
    ids = [torch.tensor(batch, dtype=torch.int64, device="cpu") for batch in batches]
    return [table[each].to(device, dtype) for each in ids]


def _through_layer(
    config: Any,
    index: int,
    tensors: StoredTensors,
    states: list[Tensor],
    calibration: list[Tensor],
    rotary: torch.nn.Module,
    quantize: str | None,
) -> None:
    """Replace the states [n, T, C] in both lists with the states after one layer; the layer is freed on return.

    Those in `calibration` (one in int8, else none) go through the layer before its matmuls are rounded.
    """
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    device, dtype = states[0].device, states[0].dtype
    with torch.device("meta"):
        layer = qwen3.Qwen3DecoderLayer(config, index)
    layer.load_state_dict(tensors.group(f"layers.{index}.", device, dtype), assign=True)
    layer.eval()

    def run(states: list[Tensor]) -> None:
        for number, x in enumerate(states):
            places = torch.arange(x.shape[1], dtype=torch.int64, device=device)[None]
            states[number] = layer(x, position_ids=places, position_embeddings=rotary(x, places))

    if quantize is not None and is_quantized(quantize, index, config.num_hidden_layers):
        factors = smoothing_factors(layer, partial(run, calibration)) if calibration else {}
        quantize_layer(layer, quantize, factors)
    run(states)


def _equal_lengths(ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group the indices of token lists by length: a group needs no padding."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, each in enumerate(ids):
        groups[len(each)].append(index)
    return list(groups.values())


def _last_rows(states: list[Tensor], batches: list[list[int]]) -> Tensor:
    return _in_order([x[:, -1] for x in states], batches)


def _in_order(rows: list[Tensor], batches: list[list[int]]) -> Tensor:
    """Put the rows [n, C] of all batches into the caller's order: [N, C] fp64 on the CPU."""
    order = integers([index for batch in batches for index in batch])
    joined = torch.cat(rows).double().cpu()
    out = torch.empty_like(joined)
    out[order] = joined
    return out
