"""Read a LoRA adapter in PEFT's format, and add it to the weights of its model.

An adapter stores two thin matrices for each matrix W that was trained, and the merged weight is

    W + f · B · A,    A [r, in], B [out, r],

with f = alpha / r, or alpha / sqrt(r) for rsLoRA. Every other way in which PEFT can change a weight is refused by name.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lastword.errors import InputError, WeightsError, list_some
from lastword.weights.files.dtypes import WEIGHT_DTYPES
from lastword.weights.files.file_tensor import map_tensor
from lastword.weights.files.hashes import hash_file
from lastword.weights.files.header import TensorInfo, read_header
from lastword.weights.files.reading import has_file
from lastword.weights.json_fields import Fields, read_object, show_value
from lastword.weights.locate import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS
from lastword.weights.tensor_names import LM_HEAD, PREFIX

# PEFT wraps the model twice and keeps its names: `model.` is inside if a causal model was trained.
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Settings that do not change the merged weights. Dropout acts in training only; the patterns of modules have done their
# work, because the file holds a pair of matrices for each module that was trained.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
}  # fmt: skip
# Settings that would change the merged weights; each value means that the setting is off.
_MUST_BE_OFF: dict[str, tuple[object, ...]] = {
    "alora_invocation_tokens": (None,),
    "alpha_pattern": ({}, None),
    "arrow_config": (None,),
    "bias": ("none",),
    "ensure_weight_tying": (False,),
    "fan_in_fan_out": (False, None),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "loftq_config": ({}, None),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "use_dora": (False,),
    "use_qalora": (False,),
    "velora_config": (None,),
}
# Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the weights that the adapter is added to.
_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
_REFUSED = "lastword merges plain LoRA only. Merge this adapter with peft (merge_and_unload), and name the result."


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two stored matrices for one weight: A [r, in] and B [out, r]."""

    a: TensorInfo
    b: TensorInfo


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: the pairs of matrices by the name of the weight, without `model.`, and what scales them."""

    folder: Path
    base: str | None  # the model that it was trained on, as its config names it
    pairs: dict[str, _Pair]
    alpha: float
    by_root: bool  # whether the factor is alpha / sqrt(r), as in rsLoRA
    hashes: list[str]  # sha256 of its two files

    def check(self, model: str, tensors: dict[str, TensorInfo]) -> None:
        """Check that a model has every weight that the adapter changes, in a shape that fits.

        Args:
            model: the model's name, for error messages.
            tensors: the model's tensors, by names without `model.`.

        Raises:
            WeightsError: the model lacks a weight, or its shape does not fit.
        """
        where = str(self.folder / ADAPTER_WEIGHTS)
        remedy = "Name the model that the adapter was trained on."
        if absent := self.pairs.keys() - tensors.keys():
            what = f"changes {list_some(absent)}, which {model} does not have"
            raise WeightsError(where, what, got=self._trained_on(), remedy=remedy)
        for name, pair in self.pairs.items():
            shape = (pair.b.shape[0], pair.a.shape[1])
            if tensors[name].shape != shape:
                raise WeightsError(
                    f"{where}: {name}",
                    f"does not fit {model}",
                    got=str(list(shape)),
                    expected=str(list(tensors[name].shape)),
                    remedy=remedy,
                )

    def _trained_on(self) -> str | None:
        return None if self.base is None else f"an adapter of {self.base}"

    def update(self, name: str) -> "Update | None":
        """Read the matrices of one weight, r · (in + out) numbers; None if the adapter does not change the weight."""
        if name not in self.pairs:
            return None
        pair = self.pairs[name]
        a, b = (map_tensor(info, name).float() for info in (pair.a, pair.b))
        rank = len(a)
        return Update(a, b, self.alpha / (math.sqrt(rank) if self.by_root else rank))


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to one weight: factor · B · A, with A [r, in] and B [out, r] in fp32."""

    a: Tensor
    b: Tensor
    factor: float

    @property
    def width(self) -> int:
        """The number of elements of a row of the weight."""
        return self.a.shape[1]

    def add_to(self, values: Tensor, place: slice) -> Tensor:
        """Add the update to the elements of whole rows of the weight, which are at `place`; the result is in fp32."""
        rows = slice(place.start // self.width, place.stop // self.width)
        weight = values.view(-1, self.width).float()
        return torch.addmm(weight, self.b[rows], self.a, alpha=self.factor).flatten()


def read_adapter(folder: Path) -> Adapter:
    """Read and check a LoRA adapter, without loading its matrices.

    Args:
        folder: has `adapter_config.json` and `adapter_model.safetensors`, as PEFT and sentence-transformers save them.

    Raises:
        InputError: the folder or one of the two files does not exist.
        ConfigError: the adapter is of another kind than plain LoRA, or a setting would change the result.
        WeightsError: the weights are damaged, or are not pairs of matrices.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not has_file(folder / name):
            pickled = name == ADAPTER_WEIGHTS and has_file(folder / ADAPTER_PICKLE)
            got = ADAPTER_PICKLE if pickled else None
            expected = "a LoRA adapter saved by peft, as safetensors"
            raise InputError(str(folder), f"has no {name}", got=got, expected=expected)
    place = folder / ADAPTER_CONFIG
    fields = Fields(read_object(place), str(place))
    alpha, by_root = _read_settings(fields)
    pairs = _pairs(folder, read_header(folder / ADAPTER_WEIGHTS))
    _check_ranks(fields, pairs, folder)
    hashes = [hash_file(folder / name, folder).sha256 for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return Adapter(folder, fields.text("base_model_name_or_path"), pairs, alpha, by_root, hashes)


def _read_settings(fields: Fields) -> tuple[float, bool]:
    """Return alpha, and whether the factor is alpha / sqrt(r); refuse every setting with another effect."""
    if fields.text("peft_type") != "LORA":
        fields.fail("peft_type", '"LORA"', _REFUSED)
    for key, off in _MUST_BE_OFF.items():
        fields.only(key, *off, remedy=_REFUSED)
    fields.only("init_lora_weights", *_BEGINNINGS, remedy=_REFUSED)
    own = {"peft_type", "r", "rank_pattern", "lora_alpha", "use_rslora", "init_lora_weights"}
    fields.refuse_unknown(own | _WITHOUT_EFFECT | _MUST_BE_OFF.keys(), _REFUSED)
    return fields.number("lora_alpha"), fields.boolean("use_rslora", default=False)


def _check_ranks(fields: Fields, pairs: dict[str, _Pair], folder: Path) -> None:
    """Check that the matrices have the ranks that the config states: they scale the update, so a wrong one matters."""
    ranks = [fields.integer("r"), *(fields.object("rank_pattern") or {}).values()]
    for weight, pair in pairs.items():
        if pair.a.shape[0] not in ranks:
            raise WeightsError(
                f"{folder / ADAPTER_WEIGHTS}: {weight}",
                f"the rank is not one that {ADAPTER_CONFIG} states",
                got=str(pair.a.shape[0]),
                expected=f"r or a value of rank_pattern: {show_value(ranks)}",
                remedy="Both files must come from the same training: save or download the adapter again.",
            )


def _pairs(folder: Path, header: dict[str, TensorInfo]) -> dict[str, _Pair]:
    """Pair the matrices A and B of each weight, and check their dtypes and shapes."""
    where = str(folder / ADAPTER_WEIGHTS)
    found: dict[str, dict[str, TensorInfo]] = {}
    for key, info in header.items():
        match = _KEY.fullmatch(key)
        if match is None:
            expected = "names like base_model.model.layers.0.mlp.up_proj.lora_A.weight"
            what = f"has the tensor {key}, which is not one of a pair of LoRA matrices"
            raise WeightsError(where, what, expected=expected, remedy=_REFUSED)
        if info.dtype not in WEIGHT_DTYPES or len(info.shape) != 2 or not all(info.shape):
            raise WeightsError(
                f"{where}: tensor {key}",
                "wrong dtype or shape",
                got=f"{info.dtype} {list(info.shape)}",
                expected="F32, BF16 or F16 in two dimensions",
            )
        weight = f"{match['module'].removeprefix(PREFIX)}.weight"
        sides = found.setdefault(weight, {})
        if match["side"] in sides:
            what = f"has two matrices {match['side']} for {weight}"
            raise WeightsError(where, what, expected="names with or without model., not both")
        sides[match["side"]] = info
    if not found:
        raise WeightsError(where, "holds no matrices", expected="a trained adapter")
    if LM_HEAD in found:
        what = "changes lm_head.weight, which embeddings do not use"
        raise WeightsError(where, what, remedy=_REFUSED)
    pairs = {}
    for weight, sides in found.items():
        if len(sides) != 2:
            what = f"has only one of the two matrices of {weight}"
            raise WeightsError(where, what, remedy="Save or download the adapter again.")
        a, b = sides["A"], sides["B"]
        if a.shape[0] != b.shape[1]:
            got = f"A {list(a.shape)} and B {list(b.shape)}"
            what = f"the ranks of the matrices of {weight} differ"
            raise WeightsError(where, what, got=got, expected="A [r, in] and B [out, r]")
        pairs[weight] = _Pair(a, b)
    return pairs
