"""Compare lastword with the example scores on model cards: cosines of two queries and two documents, in float32.

The scores are stored in `card_scores.json`.
"""

import json
from dataclasses import dataclass
from importlib import resources

import torch

from lastword.embedder import Embedder


@dataclass(frozen=True, slots=True)
class CardScores:
    """The example of one model card: `scores[i][j]` is the cosine of query i and document j."""

    model: str
    queries: list[str]
    documents: list[str]
    scores: list[list[float]]
    tolerance: float  # largest allowed difference of a score


def known_card_scores() -> dict[str, CardScores]:
    """Return the examples of all known model cards, by Hugging Face id."""
    path = resources.files("lastword.verify").joinpath("card_scores.json")
    held = json.loads(path.read_text(encoding="utf-8"))
    example = held["queries"], held["documents"]
    return {
        name: CardScores(name, *example, scores, held["tolerance"])
        for name, scores in held["scores"].items()
    }


def card_scores_problem(embedder: Embedder, card: CardScores) -> tuple[str | None, str]:
    """Run a model card's example; return the problem (None if the scores agree) and the details for the check."""
    queries = embedder.encode_query(card.queries, show_progress_bar=False)
    documents = embedder.encode_document(card.documents, show_progress_bar=False)
    ours = embedder.similarity(queries, documents)
    difference = float(
        (ours - torch.tensor(card.scores, dtype=ours.dtype, device=ours.device)).abs().max()
    )
    shown = "[" + ", ".join("[" + ", ".join(f"{x:.4f}" for x in row) + "]" for row in ours) + "]"
    detail = (
        f"scores {shown}; card of {card.model}: {card.scores}; largest difference {difference:.4f}"
    )
    if not difference <= card.tolerance:
        return f"{detail}, allowed {card.tolerance}", detail
    return None, detail
