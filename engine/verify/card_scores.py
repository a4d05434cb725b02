"""The scores that model cards print for their example: two queries, two documents, cosine, float32.

The figures are in `card_scores.json`; this file reads and compares them.
"""

import json
from dataclasses import dataclass
from importlib import resources

import torch

from lastword.embedder import Embedder


@dataclass(frozen=True, slots=True)
class CardScores:
    """One model card's example: `scores[i][j]` is the cosine of query i and document j."""

    model: str
    queries: list[str]
    documents: list[str]
    scores: list[list[float]]
    tolerance: float


def known_card_scores() -> dict[str, CardScores]:
    """The examples of all cards that are known, by hub id."""
    path = resources.files("lastword.verify").joinpath("card_scores.json")
    held = json.loads(path.read_text(encoding="utf-8"))
    example = held["queries"], held["documents"]
    return {
        name: CardScores(name, *example, scores, held["tolerance"])
        for name, scores in held["scores"].items()
    }


def card_scores_problem(embedder: Embedder, card: CardScores) -> tuple[str | None, str]:
    """Compute the card's example; say what is wrong, if anything, and what came out."""
    queries = embedder.encode_query(card.queries, show_progress_bar=False)
    documents = embedder.encode_document(card.documents, show_progress_bar=False)
    ours = embedder.similarity(queries, documents)
    apart = float((ours - torch.tensor(card.scores)).abs().max())
    shown = "[" + ", ".join("[" + ", ".join(f"{x:.4f}" for x in row) + "]" for row in ours) + "]"
    detail = f"{shown}; card of {card.model}: {card.scores}; largest difference {apart:.4f}"
    if not apart <= card.tolerance:
        return f"{detail}, allowed {card.tolerance}", detail
    return None, detail
