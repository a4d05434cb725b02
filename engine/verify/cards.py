"""The scores that model cards print for their example: two queries, two documents, cosine, float32.

The figures are in `cards.json`; this file finds a model's and compares.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

import torch

from lastword.embedder import Embedder
from lastword.errors import ConfigError, some


@dataclass(frozen=True, slots=True)
class Card:
    """One model's example: `scores[i][j]` is the cosine of query i and document j."""

    model: str
    queries: list[str]
    documents: list[str]
    scores: list[list[float]]
    tolerance: float


def find_card(model: str) -> Card:
    """Find the card of a hub id, or of a folder that bears a model's name.

    Raises:   ConfigError where no card is known.
    """
    known = _known()
    for name, card in known.items():
        if (
            model.lower() == name.lower()
            or PurePath(model).name.lower() == name.lower().split("/")[1]
        ):
            return card
    raise ConfigError(
        f"scores: no model card is known for {model!r}; expected one of: {some(known)}. "
        "Name it where MODEL does not say it."
    )


def _known() -> dict[str, Card]:
    path = resources.files("lastword.verify").joinpath("cards.json")
    held = json.loads(path.read_text(encoding="utf-8"))
    example = held["queries"], held["documents"]
    return {
        name: Card(name, *example, scores, held["tolerance"])
        for name, scores in held["scores"].items()
    }


def card_problem(embedder: Embedder, card: Card) -> tuple[str | None, str]:
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
