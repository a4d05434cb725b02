"""A second opinion on models that were accepted although a file was changed: sentence-transformers'."""

import logging
from contextlib import suppress

import torch
from fuzz.cases import SMALL, TEXTS, Case, Seeds
from fuzz.readers import Misbehaved
from torch.nn.functional import normalize

EVERY = 10  # of the cases with an odd change whose vectors are those of the unmutated model
CLOSE = 1e-4
WIDTH = SMALL["hidden_size"]


def compare(case: Case, seeds: Seeds) -> None:
    """Fail if sentence-transformers opens the model too and its vectors are others.

    A model that it cannot open has no second opinion, nor has one without modules.json, where its default is the mean.
    """
    if not (case.folder / "model" / "modules.json").exists():
        return
    same = all(_close(case.vectors[name], seeds.vectors[name]) for name in seeds.vectors)
    if same and not case.plausible and case.number % EVERY:
        return
    theirs = None
    with suppress(Exception):
        theirs = _encode(case)
    for name, matrix in (theirs or {}).items():
        ours = case.vectors[name]
        # lastword scales to length 1 after truncation, as its README says.
        matrix = normalize(matrix) if ours.shape[1] < WIDTH else matrix
        if not _close(ours, matrix):
            alike = ours.shape == matrix.shape
            said = f"{(ours - matrix).abs().max():.1e}" if alike else f"{tuple(matrix.shape)} there"
            changed = [
                part.partition(" = ")[0] for part in case.what.partition(" ->")[0].split("; ")
            ]
            raise Misbehaved(f"not the {name} vectors of sentence-transformers: {changed} ({said})")


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() < CLOSE)


def _encode(case: Case) -> dict[str, torch.Tensor]:
    from sentence_transformers import SentenceTransformer

    logging.disable()
    model = SentenceTransformer(
        str(case.folder / "model"),
        device="cpu",
        local_files_only=True,
        model_kwargs={"dtype": torch.float32},  # as lastword computes on a CPU
    )
    found = {"text": model.encode(TEXTS), "query": model.encode_query(TEXTS)}
    return {name: torch.from_numpy(matrix).float() for name, matrix in found.items()}
