"""Make random checkpoints with the same files as real ones, for tests and benchmarks.

    python -m lastword.bench.checkpoint OUT --like 0.6B --layers 4

The weights are random, but every file has the same format as in a real Qwen3 embedding model, and the activations have
about the same magnitude as in a trained model. So numerics, speed and file handling can be checked without a download.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel, TemplateProcessing
from tokenizers.processors import Sequence as Processors

from lastword.bench.models.workloads import WORDS
from lastword.bench.options import positive
from lastword.bench.shapes import SIZES, VOCABULARY, sizes_of
from lastword.errors import ConfigError
from lastword.text.split_points import QWEN_WORDS
from lastword.weights import dtype_name
from lastword.weights.config import CLASSIFIER, ModelConfig, parse_config
from lastword.weights.files.shards import INDEX, SINGLE
from lastword.weights.files.writer import TensorSpec, stream_safetensors
from lastword.weights.tensor_names import LM_HEAD, PREFIX, SCORE, expected_shapes

END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>")
QUERY_PROMPT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
_CLASSIFIER = {
    "architectures": [CLASSIFIER],
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
}
# A vocabulary size that is never reached: merging ends when every word of WORDS and of the prompts is one token.
_ENOUGH = 8192
_LOG_ODDS = 2.0  # about the standard deviation of a random reranker's log-odds
_TEXTS = (
    QUERY_PROMPT,
    "What is the capital of China? The capital of China is Beijing.",
    "Explain gravity: gravity is a force that attracts two bodies towards each other.",
    "It gives weight to physical objects and is responsible for the movement of planets.",
    "How many texts does the model read in a second, and how long may each of them be?",
    "Der Zug fährt morgen früh um sieben Uhr ab. Où se trouve la gare la plus proche ?",
    "今天的天气怎么样？ 明日は雨が降る。 Сегодня хорошая погода.",
    "def add(a, b):\n    return a + b\n\n# 1,234.5 + 6 = 1240.5\n",
)


def make_tokenizer(
    texts: Iterable[str] = _TEXTS, vocab_size: int = 512, *, end_token: bool = True
) -> Tokenizer:
    """Train a small byte-level BPE tokenizer with Qwen's pipeline.

    Args:
        texts: texts from which the merges are learned.
        vocab_size: maximum number of tokens, including the 256 bytes and the special tokens.
        end_token: whether to append `<|endoftext|>` to each text; embedding models do so, base models do not.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    level = ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    end = TemplateProcessing(
        single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    tokenizer.post_processor = Processors([level, end]) if end_token else level
    return tokenizer


def word_tokenizer(texts: Iterable[str] = (QUERY_PROMPT,), *, end_token: bool = True) -> Tokenizer:
    """Train a tokenizer for which, as for Qwen's, each of `WORDS` is one token, with or without a space before it.

    With it, the benchmarks' texts have as many tokens as `bench/models/workloads.py` says.

    Args:
        texts: other texts, such as prompts, whose words become one token each too.
        end_token: as for `make_tokenizer`.
    """
    words = [*WORDS, *(f" {word}" for word in WORDS)]
    return make_tokenizer([*words, *texts], _ENOUGH, end_token=end_token)


def make_checkpoint(
    folder: str | Path,
    *,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 4,
    num_key_value_heads: int = 2,
    head_dim: int = 32,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
    seed: int = 0,
    prefix: str = "",
    shards: int = 1,
    attention_bias: bool = False,
    rope_theta: float = 1e6,
    rope_scaling: Mapping[str, Any] | None = None,
    config_format: str = "v4",
    tokenizer: str | Path | Tokenizer | None = None,
    sentence_transformers: bool = True,
    max_position_embeddings: int = 4096,
    weights: bool = True,
    classifier: bool = False,
) -> Path:
    """Write a model folder and return it; the random weights depend only on sizes, `attention_bias`, dtype and seed.

    Sizes and other settings are named as in config.json; `vocab_size` None means the number of the tokenizer's tokens.
    `prefix`, the prefix of the tensor names, is `""` or `model.`. If it is `model.` and `tied` is False, there is also
    an `lm_head.weight`. `shards` is the number of weights files; several files get an index. `config_format` is `v4` or
    `v5`, for transformers 4 or 5. `tokenizer` is a Tokenizer, or the path of a tokenizer.json; None trains a small one.
    `weights=False` writes all files but the weights. `classifier=True` makes a reranker with one label.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = _opened(tokenizer)
    rows = made.get_vocab_size() if vocab_size is None else vocab_size
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "vocab_size": rows,
        "attention_bias": attention_bias,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": tied,
    }
    values = _config(sizes, dtype, rope_theta, rope_scaling, config_format)
    values |= _CLASSIFIER | {"pad_token_id": made.token_to_id(END)} if classifier else {}
    config = parse_config(values, f"{folder}/config.json", reranker=classifier)
    write_json(folder / "config.json", values)
    _write_tokenizer(folder, made, max_position_embeddings)
    if sentence_transformers:
        write_modules(folder, hidden_size)
    if weights:
        head, score = not tied and prefix == PREFIX, (1, hidden_size) if classifier else None
        _write_weights(folder, config, dtype, seed, prefix, shards, score, head=head)
    return folder


def _opened(tokenizer: str | Path | Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        return make_tokenizer()
    return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_file(str(tokenizer))


def _config(
    sizes: Mapping[str, Any],
    dtype: torch.dtype,
    rope_theta: float,
    rope_scaling: Mapping[str, Any] | None,
    config_format: str,
) -> dict[str, Any]:
    """Compose config.json in the format of transformers 4 or 5."""
    name = dtype_name(dtype)
    values: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": sizes["num_hidden_layers"],
        "model_type": "qwen3",
        "rms_norm_eps": 1e-06,
        "sliding_window": None,
        "use_cache": True,
        "use_sliding_window": False,
        **sizes,
    }
    if config_format == "v4":
        scaling = dict(rope_scaling) if rope_scaling else None
        values |= {"rope_theta": rope_theta, "rope_scaling": scaling, "torch_dtype": name}
        return values | {"transformers_version": "4.51.3"}
    if config_format == "v5":
        parameters = {"rope_type": "default", **(rope_scaling or {}), "rope_theta": rope_theta}
        kinds = ["full_attention"] * sizes["num_hidden_layers"]
        values |= {"rope_parameters": parameters, "layer_types": kinds, "dtype": name}
        return values | {"transformers_version": "5.23.0", "pad_token_id": None}
    raise ConfigError("config_format", "unknown", got=repr(config_format), expected="'v4' or 'v5'")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with the indentation and encoding of published models' files."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": END,
        "pad_token": END,
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_modules(folder: Path, hidden_size: int, query_prompt: str = QUERY_PROMPT) -> None:
    """Write the sentence-transformers files of a published embedding model.

    Args:
        folder: the model folder.
        hidden_size: the vectors' dimension.
        query_prompt: the prompt with the name `query`; the prompt `document` is always empty.
    """
    chain = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(chain)
    ]
    write_json(folder / "modules.json", modules)
    off = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
    pooling = {
        "word_embedding_dimension": hidden_size,
        **{f"pooling_mode_{mode}": False for mode in off},
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    prompts = {
        "prompts": {"query": query_prompt, "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", prompts)


def _random(
    name: str, shape: tuple[int, ...], number: int, dtype: torch.dtype, seed: int
) -> torch.Tensor:
    """Make one tensor from its own generator, so that it does not depend on the number of shards."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        noise = noise.mul_(0.1).add_(1.0)
    elif name.endswith(".bias"):
        noise.mul_(0.1)
    elif name.endswith("_proj.weight"):
        noise.div_(math.sqrt(shape[-1]))
    elif name == SCORE:
        noise.mul_(_LOG_ODDS / math.sqrt(shape[-1]))
    else:
        noise.mul_(0.5)
    return noise.to(dtype)


def _write_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    seed: int,
    prefix: str,
    shards: int,
    score: tuple[int, int] | None,
    *,
    head: bool,
) -> None:
    """Write one file, or shards with about the same number of tensors each; only one tensor is in memory at a time."""
    shapes = expected_shapes(config)
    stored = {prefix + name: name for name in shapes}
    if score is not None:
        stored[SCORE], shapes = SCORE, {**shapes, SCORE: score}
    numbers = {name: number for number, name in enumerate(shapes)}
    if head:
        stored[LM_HEAD] = "embed_tokens.weight"
    specs = {key: TensorSpec(dtype, shapes[name]) for key, name in stored.items()}

    def read(key: str) -> torch.Tensor:
        name = stored[key]
        return _random(name, shapes[name], numbers[name], dtype, seed)

    for stale in (*folder.glob("model*.safetensors"), *folder.glob(INDEX)):
        stale.unlink()
    keys = list(specs)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = keys[i * len(keys) // shards : (i + 1) * len(keys) // shards]
        file = SINGLE if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        stream_safetensors(folder / file, {k: specs[k] for k in part}, read, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        size = sum(spec.num_bytes for spec in specs.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a checkpoint and print its folder."""
    parser = argparse.ArgumentParser(
        "python -m lastword.bench.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to write; model files in it are replaced")
    parser.add_argument(
        "--like",
        choices=sorted(SIZES),
        default="tiny",
        help="model whose sizes are used; by default tiny",
    )
    parser.add_argument("--layers", type=positive, help="number of layers; by default all")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the weights; by default float32",
    )
    parser.add_argument(
        "--shards", type=positive, default=1, help="number of files for the weights; by default 1"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random weights; by default 0"
    )
    options = parser.parse_args(arguments)
    try:
        folder = make_checkpoint(
            options.out,
            **sizes_of(options.like, options.layers),
            vocab_size=None if options.like == "tiny" else VOCABULARY,
            dtype=getattr(torch, options.dtype),
            shards=options.shards,
            seed=options.seed,
            tokenizer=word_tokenizer(),
            max_position_embeddings=4096 if options.like == "tiny" else 32768,
        )
    except OSError as error:
        parser.error(f"{error.filename or options.out}: {error.strerror or error}")
    print(folder)


if __name__ == "__main__":
    main()
