"""Read sentence_bert_config.json: how sentence-transformers opens the model and its tokenizer, and where it cuts texts.

It got its keys in three steps: first `max_seq_length` and `do_lower_case`; then also `model_args`, `tokenizer_args` and
`config_args`; and since version 5.4 of sentence-transformers `model_kwargs`, `processor_kwargs`, `config_kwargs` and
the settings of modalities such as images.
"""

from dataclasses import dataclass
from pathlib import Path

from lastword.weights.json_fields import NOT_SUPPORTED, Fields, read_optional_object
from lastword.weights.tokenizer_settings import LOADING

# sentence-transformers reads the first of these files that exists and is not empty.
_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_LOGITS = {"method": "forward", "method_output_name": "logits"}
_MODALITIES = (
    {"text": _LOGITS},
    {"text": _LOGITS, "message": _LOGITS},
    {"text": _LOGITS, "message": {**_LOGITS, "format": "flat"}},
)
# Settings that could change how texts are processed, each with the values with which it changes nothing.
_ONLY: dict[str, tuple[object, ...]] = {
    "do_lower_case": (False, None),
    "document_length": (None,),
    "query_expansion": (None,),
    "query_length": (None,),
    "tokenizer_name_or_path": (None,),
}
# The keys that hold keyword arguments: the new name and the old name of each.
_KEYWORDS = {
    "model_kwargs": "model_args",
    "processor_kwargs": "tokenizer_args",
    "config_kwargs": "config_args",
}
# These settings choose the library that computes, and whether it pads texts. They change vectors only by rounding.
_HARMLESS = frozenset({"backend", "unpad_inputs"})
_READ = frozenset({"max_seq_length", "modality_config"})
_TASK = frozenset({"module_output_name", "processing_kwargs", "transformer_task"})
# Rerankers only: the chat template for pairs does not use this setting.
_PROCESSING = tuple({"chat_template": {"add_generation_prompt": each}} for each in (True, False))
_KNOWN = _HARMLESS | _READ | _TASK | _ONLY.keys() | {*_KEYWORDS, *_KEYWORDS.values()}
# Arguments that place files or weights, select one of several equal computations, or set a dtype, which is ignored.
_COMPUTE = LOADING | {"attn_implementation", "dtype", "torch_dtype"}
_MODEL = _COMPUTE | frozenset(
    "device_map low_cpu_mem_usage max_memory offload_buffers offload_folder offload_state_dict use_safetensors".split()
)
_CONFIG = _COMPUTE | {"use_cache"}


@dataclass(frozen=True, slots=True)
class TransformerTask:
    """A task of the Transformer module: its name, the name of its output, and the allowed `modality_config` values."""

    name: str
    output: str
    modalities: tuple[object, ...]


STATES = TransformerTask("feature-extraction", "token_embeddings", (_TEXT_ONLY,))
CAUSAL_LOGITS = TransformerTask("text-generation", "causal_logits", _MODALITIES)
LABELS = TransformerTask("sequence-classification", "scores", _MODALITIES)


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """The Transformer module's settings: maximum tokens per text, if set, and keyword arguments for the tokenizer."""

    max_seq_length: int | None
    tokenizer: Fields


def read_transformer_settings(folder: Path, task: TransformerTask = STATES) -> TransformerSettings:
    """Read the settings of the Transformer module from its file in `folder`; without a file, nothing is set.

    Raises:
        WeightsError: the file cannot be read.
        ConfigError: a setting is not supported, or the module is set up for a task other than `task`.
    """
    path, values = folder / _FILES[0], None
    for name in _FILES:
        if not values:
            path = folder / name
            values = read_optional_object(path)
    fields = Fields(values or {}, str(path if values else folder / _FILES[0]))
    fields.refuse_unknown(_KNOWN)
    for key, allowed in _ONLY.items():
        fields.only(key, *allowed)
    fields.only("transformer_task", task.name)
    fields.only("module_output_name", task.output, None)
    fields.only("processing_kwargs", None, {}, *(() if task is STATES else _PROCESSING))
    if fields.values.get("modality_config", task.modalities[0]) not in task.modalities:
        output = "last_hidden_state" if task is STATES else "logits"
        expected = f'only "text", by the method "forward" and its "{output}"'
        fields.fail("modality_config", expected, NOT_SUPPORTED)
    length = None
    if fields.values.get("max_seq_length") is not None:
        length = fields.integer("max_seq_length", low=2)
    _keywords(fields, "model_kwargs").refuse_unknown(_MODEL)
    remedy = "Write these settings into config.json instead."
    _keywords(fields, "config_kwargs").refuse_unknown(_CONFIG, remedy)
    return TransformerSettings(length, _keywords(fields, "processor_kwargs"))


def _keywords(fields: Fields, key: str) -> Fields:
    """Return the keyword arguments under `key` or its old name; if the file has both, those under the old name."""
    key = _KEYWORDS[key] if _KEYWORDS[key] in fields.values else key
    return Fields(fields.object(key) or {}, f"{fields.where}: {key}")
