"""Make the texts of the benchmarks from common words, with a fixed seed.

After a space a common word is one token in Qwen's tokenizer, and in the one that random checkpoints get
(`word_tokenizer`). So the word counts below are token counts without the end token.
"""

import math
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lastword.errors import count

WORDS = """
the of and to in is that for it was on are as with they at be this from have or by one had not but
what all were when we there can an your which their said if will each about how up out them then she
many some so these would other into has more her two like him see time could no make than first been
its who now people my made over did down only way find use may water long little very after words
called just where most know get through back much before go good new write our used me man too any
day same right look think also around another came come work three word must because does part even
place well such here take why things help put years different away again off went old number great
tell men say small every found still between name should home big give air line set own under read
last never us left end along while might next sound below saw something thought both few those
always looked show large often together asked house world going want school important until form
food keep children feet land side without boy once animals life enough took four head above kind
began almost live page got earth need far hand high year mother light parts country father let night
following picture being study second eyes soon times story boys since white days ever paper hard
near sentence better best across during today others however sure means knew try told young miles
sun ways thing whole hear example heard several change answer room sea against top turned learn
point city play
""".split()


# Numbers of documents, of short queries in one call, and of queries with one call each.
FULL, QUICK = (512, 2000, 48), (64, 200, 16)


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts to embed or pairs to score, of one kind; with `one_by_one`, each is computed in a separate call."""

    name: str
    title: str
    texts: list[Any]  # str, or (query, document)
    kind: Literal["query", "document", "pair"]
    one_by_one: bool = False


def workloads(documents: int, queries: int, singles: int, turn: int = 0) -> list[Workload]:
    """Make the workloads of documents, of short queries in one call, and of queries with one call each.

    Args:
        documents: number of documents.
        queries: number of short queries.
        singles: number of queries with one call each.
        turn: a different number gives different texts of the same kind.
    """
    rng = random.Random(20_261_123 + turn)  # noqa: S311 - texts, not secrets
    lengths = [_document_words(rng) for _ in range(documents)]
    return [
        Workload("a", "documents", [_text(rng, words) for words in lengths], "document"),
        Workload("b", "short queries", [_query(rng) for _ in range(queries)], "query"),
        Workload("c", "one query per call", [_query(rng) for _ in range(singles)], "query", True),
    ]


def pair_workload(queries: int, documents: int, turn: int = 0) -> Workload:
    """Make pairs for a reranker: each short query with `documents` documents; lengths are drawn as in `workloads`."""
    rng = random.Random(20_261_130 + turn)  # noqa: S311 - texts, not secrets
    pairs = []
    for _ in range(queries):
        query = _query(rng)
        lengths = (_document_words(rng) for _ in range(documents))
        pairs += [(query, _text(rng, words)) for words in lengths]
    title = f"{count(queries, 'query', 'queries')} with {count(documents, 'document')} each"
    return Workload("r", title, pairs, "pair")


def long_workloads(turn: int = 0) -> list[Workload]:
    """Make two workloads of texts of equal length, which need no padding: 4 of 4,000 tokens, and 16 of 500."""
    return [
        Workload("d", "4,000 tokens each", texts_of(4, 3999, turn), "document"),
        Workload("e", "500 tokens each", texts_of(16, 499, turn), "document"),
    ]


def real_tokenizer() -> Path | None:
    """Return the folder with Qwen's tokenizer.json under LASTWORD_TEST_DATA; None if this variable is not set."""
    data = os.environ.get("LASTWORD_TEST_DATA")
    return Path(data, "tokenizers", "Qwen3-Embedding-0.6B") if data else None


def tokenizer_of(
    folder: Path, prompts: Mapping[str, str]
) -> Callable[[list[str], str], list[list[int]]]:
    """Return a function that tokenises texts of one kind; it adds the kind's prompt and the end token.

    Args:
        folder: the folder with tokenizer.json.
        prompts: prompts by kind, "query" or "document"; texts of a kind that is missing get no prompt.
    """
    # Imported here, because every --help imports this module.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()

    def tokenize(texts: list[str], kind: str) -> list[list[int]]:
        prompted = [prompts.get(kind, "") + text for text in texts]
        return [item.ids for item in tokenizer.encode_batch(prompted)]

    return tokenize


def _document_words(rng: random.Random) -> int:
    """Choose how many words a document has. With the end token it has 16 to 512 tokens, 110 in the median."""
    return min(512, max(16, round(rng.lognormvariate(math.log(110), 0.8)))) - 1


def _query(rng: random.Random) -> str:
    return _text(rng, rng.randint(6, 14))  # about 11 tokens with the end token


def texts_of(count: int, words: int, turn: int = 0) -> list[str]:
    """Make `count` texts of `words` words each; the same arguments give the same texts."""
    rng = random.Random(words + 1_000_003 * turn)  # noqa: S311 - texts, not secrets
    return [_text(rng, words) for _ in range(count)]


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))
