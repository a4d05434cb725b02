"""Training batches: token ids of similarly long texts and of the queries that they answer, and the teacher's vectors.

The same seed gives the same batches, and a run can start at any batch.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import Tensor

from lastword.bench.builtin.student import MAX_LENGTH, QUERY_PROMPT

# A text counts as at least this many tokens, so that a batch of short texts does not have too many texts.
TEXT_TOKENS = 19.2
SORTED_ITEMS = 16_384  # number of items that are sorted by length together
PROMPTED = 0.25  # share of the short texts without a query that get the query prompt
SHORT = 30  # most tokens of a short text


@dataclass(frozen=True)
class Data:
    """Token ids of texts, queries, the query prompt and the end token; the teacher's vectors, fp16 [n, 384]."""

    texts: list[list[int]]
    queries: list[list[int]]
    query_of: list[int]  # the index of each text's query, or -1
    text_vectors: Tensor
    query_vectors: Tensor
    prompt: list[int]
    end: list[int]


@dataclass(frozen=True)
class TrainingBatch:
    """Texts and queries as token ids with prompts and end tokens, and the teacher's vectors, the training targets."""

    texts: list[list[int]]
    queries: list[list[int]]
    answers: list[int]  # index of the text that answers each query
    text_vectors: Tensor
    query_vectors: Tensor


def read_data(
    items: Sequence[dict[str, str]], texts: Tensor, queries: Tensor, tokenizer: Tokenizer
) -> Data:
    """Tokenise the first items, as many as have teacher's vectors.

    Args:
        items: objects with `text` and, in some, `query`.
        texts: the teacher's vectors of the texts of the first items.
        queries: the teacher's vectors of these items' queries, in the same order.
        tokenizer: the student's tokenizer.
    """
    items = items[: len(texts)]
    asked = [item["query"] for item in items if "query" in item]
    query_of, count = list[int](), 0
    for item in items:
        query_of.append(count if "query" in item else -1)
        count += "query" in item

    def ids(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return Data(
        texts=ids([item["text"] for item in items]),
        queries=ids(asked),
        query_of=query_of,
        text_vectors=texts,
        query_vectors=queries[:count],
        prompt=ids([QUERY_PROMPT])[0],
        end=tokenizer.encode("", add_special_tokens=True).ids,
    )


def training_batches(
    data: Data, chosen: Sequence[int], tokens: int, seed: int, first: int = 0
) -> Iterator[TrainingBatch]:
    """Yield batches of the chosen items endlessly, from number `first` on.

    Args:
        data: the data of all items.
        chosen: indices of the items to use.
        tokens: largest number of tokens of a batch's texts, including padding; the queries do not count.
        seed: seed of the order of the items.
        first: number of the batch to start with.
    """
    number, epoch = 0, 0
    while True:
        rng = random.Random(f"{seed} {epoch}")
        for rows in _epoch(data, chosen, tokens, rng):
            prompted = [rng.random() < PROMPTED for _ in rows]
            if number >= first:
                yield _batch(data, rows, prompted)
            number += 1
        epoch += 1


def _epoch(data: Data, chosen: Sequence[int], tokens: int, rng: random.Random) -> list[list[int]]:
    order = list(chosen)
    rng.shuffle(order)
    cut = list[list[int]]()
    for start in range(0, len(order), SORTED_ITEMS):
        rows = sorted(order[start : start + SORTED_ITEMS], key=lambda row: len(data.texts[row]))
        here = list[list[int]]()
        for row in reversed(
            rows
        ):  # longest first; the first text of a batch determines the batch's width
            width = min(len(data.texts[here[-1][0]]) if here else 0, MAX_LENGTH) + 1
            if not here or len(here[-1]) >= int(tokens // max(width, TEXT_TOKENS)):
                here.append([])
            here[-1].append(row)
        rng.shuffle(here)
        cut += here
    return cut


def _batch(data: Data, rows: list[int], prompted: list[bool]) -> TrainingBatch:
    texts, queries, asked, answers = list[list[int]](), list[list[int]](), list[int](), list[int]()
    for place, (row, as_query) in enumerate(zip(rows, prompted, strict=True)):
        query = data.query_of[row]
        prompt = data.prompt if as_query and query < 0 and len(data.texts[row]) <= SHORT else []
        texts.append(_truncate_with_end(prompt + data.texts[row], data.end))
        if query >= 0:
            queries.append(_truncate_with_end(data.prompt + data.queries[query], data.end))
            asked.append(query)
            answers.append(place)
    text_vectors, query_vectors = data.text_vectors[rows].float(), data.query_vectors[asked].float()
    return TrainingBatch(texts, queries, answers, text_vectors, query_vectors)


def _truncate_with_end(ids: list[int], end: list[int]) -> list[int]:
    return ids[: MAX_LENGTH - len(end)] + end
