"""Count the least number of floating-point operations that a set of texts needs, from the model's shape alone.

Every distinct prefix counts once. In the last layer, keys and values count for all tokens, and everything else only for
the last token of each distinct text. One multiply-add is two operations. Norms, RoPE and activations (well under 1 %)
are not counted. The count does not depend on how lastword forms batches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol


class Shape(Protocol):
    """The sizes of a model, named as in config.json; `lastword.weights.ModelConfig` has them."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of tokens and attention pairs for a set of texts; except in `tokens_requested`, a prefix counts once."""

    tokens_requested: int  # tokens of all texts
    tokens: int  # tokens to compute: the number of distinct prefixes
    finals: int  # last tokens to compute: the number of distinct texts
    pairs: int  # (query, key) pairs of causal attention over the distinct prefixes
    final_pairs: int  # the number of these pairs whose query is a last token


def work(texts: Iterable[Sequence[int]]) -> Work:
    """Count the tokens and attention pairs of `texts` (token ids); see `Work` for what counts once."""
    # In sorted order, no earlier text shares a longer prefix with a text than the text just before it does.
    requested = tokens = finals = pairs = final_pairs = 0
    previous: tuple[int, ...] = ()
    for text in sorted(tuple(text) for text in texts):
        requested += len(text)
        pairwise = zip(previous, text, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairwise))
        new = text != previous
        tokens += len(text) - shared
        finals += new
        pairs += (len(text) * (len(text) + 1) - shared * (shared + 1)) // 2
        final_pairs += len(text) if new else 0
        previous = text
    return Work(requested, tokens, finals, pairs, final_pairs)


def needed_by_operation(shape: Shape, work: Work) -> dict[str, int]:
    """Return the floating-point operations of each kind of matmul, and of attention, in all layers together."""
    queries = shape.num_attention_heads * shape.head_dim
    keys_values = 2 * shape.num_key_value_heads * shape.head_dim
    C, F = shape.hidden_size, shape.intermediate_size
    full_layers = shape.num_hidden_layers - 1
    pairs = full_layers * work.pairs + work.final_pairs
    rows = full_layers * work.tokens + work.finals  # for everything but keys and values
    return {
        "qkv": 2 * C * (rows * queries + shape.num_hidden_layers * work.tokens * keys_values),
        "attention": pairs * 4 * queries,  # one dot product and one weighted sum per head
        "o": 2 * C * rows * queries,
        "gate_up": 2 * C * rows * 2 * F,
        "down": 2 * C * rows * F,
    }


def needed_flops(shape: Shape, work: Work) -> int:
    """Return the floating-point operations that `work` needs on a model of `shape`."""
    return sum(needed_by_operation(shape, work).values())
