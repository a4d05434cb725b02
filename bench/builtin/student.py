"""The student before training: its word pieces, its sizes and its initial weights, which take the mean of word vectors.

The token table starts as the teacher's vectors of the word pieces, in a basis of principal directions (`train.basis`).
The value and output projections of the first layers start as the identity, so at first the end token's vector is the
mean of the vectors of the text's word pieces.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from lastword.bench.checkpoint import write_json, write_modules
from lastword.weights import dtype_name, write_safetensors

END, UNKNOWN = "[END]", "[UNK]"
QUERY_PROMPT = "query: "
VOCABULARY = 18_432
MAX_LENGTH = 256
MATRYOSHKA = (64, 128, 256)
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
NORM_EPS = 1e-6
ROPE_THETA = 10_000.0
# Scale of the value and output projections together. With 1, the state of a text of one word keeps the norm of 16 that
# RMSNorm gives to the word's vector.
_VALUE_SCALE = 1.0

# Initial weight of the query norm. It is small, because small queries make attention nearly uniform over the words.
_EVEN = 0.25
# A word piece that makes up this share of the texts' tokens has half weight in the initial mean.
_RARITY = 3e-4


def make_tokenizer(teacher: Path, texts: Iterable[str]) -> Tokenizer:
    """Make a tokenizer with the VOCABULARY most useful of the teacher's word pieces; it appends the end token to texts.

    The tokenizer keeps all single Latin characters, so that any Latin word can be spelt, and then the pieces that are
    most frequent in `texts`. Among rare pieces the teacher's own order decides, which is by frequency in far more text.
    """
    whole = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    whole.no_truncation()
    whole.no_padding()
    counts = Counter[int]()
    for encoding in whole.encode_batch_fast(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    pieces = {piece: i for piece, i in whole.get_vocab().items() if not piece.startswith("[")}
    latin = {piece: i for piece, i in pieces.items() if all(ord(c) < 0x250 for c in piece)}

    def worth(piece: str) -> float:
        spelling = len(piece.removeprefix("##")) == 1
        return float("inf") if spelling else counts[pieces[piece]] + 30_000 / (100 + pieces[piece])

    kept = sorted(latin, key=lambda piece: (-worth(piece), latin[piece]))[: VOCABULARY - 2]
    vocabulary = {piece: i for i, piece in enumerate([END, UNKNOWN, *kept])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([END, UNKNOWN])
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return tokenizer


def token_rows(vectors: Tensor, shares: Tensor) -> Tensor:
    """Make the initial token table: unit rows in which the direction of a frequent piece has less weight.

        w = a / (a + share);  row = (w e, sqrt(1 - w^2)),  e the centred direction of the piece's vector

    RMSNorm keeps only a row's direction, so the direction has to express the weight w (smooth inverse frequency). The
    last column of `vectors` is dropped, and sqrt(1 - w^2) takes its place, which makes the row a unit vector. The
    initial value projections do not read this last dimension. The constant a is `_RARITY`.

    Args:
        vectors: [V, C], the pieces' vectors in the basis.
        shares: [V], the pieces' shares of the training texts' tokens.

    Returns:
        [V, C].
    """
    weights = (_RARITY / (_RARITY + shares))[:, None]
    centred = torch.nn.functional.normalize((vectors - vectors.mean(0))[:, :-1], dim=-1)
    return torch.cat([weights * centred, (1 - weights.square()).sqrt()], dim=1)


def make_student(rows: Tensor, seed: int) -> Any:
    """Create transformers' Qwen3Model in fp32 with its initial weights.

    Args:
        rows: [V, C] from `token_rows`; row 0, the end token's, is replaced by a small random vector.
        seed: seed of the other initial weights.
    """
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(rows),
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        attn_implementation="eager",  # a third faster than PyTorch's own attention on short texts
        rms_norm_eps=NORM_EPS,
        **SIZES,
    )
    model = Qwen3Model(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif name.endswith("_proj.weight"):
                weight.normal_(std=weight.shape[1] ** -0.5)
        model.embed_tokens.weight.copy_(rows)
        end = torch.nn.functional.normalize(torch.randn(rows.shape[1]), dim=0)
        model.embed_tokens.weight[0] = 0.05 * end
        _average(model)
    return model


def _average(model: Any) -> None:
    """Make the first layers add the mean of the token rows to each state; each layer adds a part of the dimensions."""
    config = model.config
    width, size = config.hidden_size, config.head_dim
    kept, group = (
        config.num_key_value_heads * size,
        config.num_attention_heads // config.num_key_value_heads,
    )
    eye = torch.eye(width)
    eye[-1] = 0
    copies = torch.eye(kept).view(-1, 1, size, kept).expand(-1, group, -1, -1).reshape(-1, kept)
    for i in range(width // kept):
        attention = model.layers[i].self_attn
        attention.q_norm.weight.fill_(_EVEN)
        attention.v_proj.weight.copy_(eye[i * kept : (i + 1) * kept])
        attention.o_proj.weight[i * kept : (i + 1) * kept] = copies.T * (_VALUE_SCALE / group)


def compile_layers(model: Any) -> None:
    """Compile the layers, so that PyTorch fuses small operations and a training step takes two thirds of the time.

    This needs a C++ compiler, and the first step takes minutes. The last layer's MLP is not compiled, because
    `train.embed` changes which rows the MLP gets.
    """
    last = model.layers[-1]
    for module in (*model.layers[:-1], last.input_layernorm, last.self_attn):
        module.compile(dynamic=True)


def write_checkpoint(model: Any, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype) -> None:
    """Write the student as a model folder with all files of a published embedding model, except the README."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        **SIZES,
        "rms_norm_eps": NORM_EPS,
        "vocab_size": model.config.vocab_size,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "torch_dtype": dtype_name(dtype),
    }
    write_json(folder / "config.json", config)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_LENGTH,
            "eos_token": END,
            "pad_token": END,
            "unk_token": UNKNOWN,
        },
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH})
    write_modules(folder, SIZES["hidden_size"], QUERY_PROMPT)
