"""Collect the token ids, hidden states and vectors of every text, from lastword and from transformers.

This module only collects; `findings.py` compares.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.embedder import Embedder
from lastword.errors import ConfigError, InputError, count
from lastword.model_info import OpenedModel
from lastword.verify.bounds import Bounds, bounds_of, reference_dtype
from lastword.verify.probes import Probe
from lastword.verify.transformers_reference import (
    ReferenceStates,
    ReferenceText,
    compute_reference_states,
)

MAX_TEXTS = 1000
MAX_TOKENS = (
    65_536  # of all texts together; the hidden states of all are in memory between two layers
)
CUT = 12  # the max_length at which truncation is checked

T = TypeVar("T")


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, slots=True)
class Alternate:
    """A typical mistake with prompts or templates: n probes of one kind, computed by transformers with the mistake."""

    check: str  # name of the check that the mistake makes fail
    name: str  # the wrong prompt or template in words, for messages
    kind: str  # kind of the probes
    index: list[int]  # where the n probes are in `Evidence.probes`
    ids: list[list[int]]  # their token ids with the mistake
    states: Tensor = field(default_factory=_nothing)  # [n, C] fp64, after the final norm


@dataclass(frozen=True, slots=True)
class Ours:
    """The results of lastword."""

    ids: list[list[int]]
    cut_ids: list[list[int]]  # token ids of the texts in `Evidence.cut`
    states: Tensor  # [N, L + 1, C]
    vectors: Tensor  # [N, dim]
    alone: Tensor  # [n, dim], vectors of the probes with `alone` set, each computed in its own call


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(ABC):
    """What lastword and transformers computed for the probes.

    All tensors are on the CPU, with one row per probe in the order of `probes`. Tensors from transformers are fp64. For
    a reranker (`PairEvidence`), scores are treated as vectors of width 1.
    """

    noun: ClassVar[str]  # "vector" or "score": what the model computes for a text, for messages

    probes: list[Probe]
    ids: list[list[int]]  # token ids of the probes, by transformers' tokenizer
    cut: list[str]  # texts that are cut at a small max_length
    cut_ids: list[list[int]]  # token ids of the texts in `cut`, by transformers' tokenizer
    reference: ReferenceStates  # by transformers in the reference dtype
    theirs: ReferenceStates  # by transformers in lastword's dtype and quantisation mode
    alternates: list[Alternate]
    ours: Ours
    bounds: Bounds

    @abstractmethod
    def postprocess(self, states: Tensor) -> Tensor:
        """Turn final hidden states [n, C] into vectors [n, dim], or scores [n, 1]."""

    @property
    def reference_vectors(self) -> Tensor:
        """The reference vectors [N, dim]."""
        return self.postprocess(self.reference.states[:, -1])

    @property
    def their_vectors(self) -> Tensor:
        """The vectors [N, dim] that transformers computes in lastword's dtype, with 8-bit matmuls if lastword's are."""
        return self.postprocess(self.theirs.states[:, -1])

    @property
    def their_difference(self) -> float:
        """Largest absolute difference of `their_vectors` from the reference."""
        return float((self.reference_vectors - self.their_vectors).abs().max())

    @property
    def vector_limit(self) -> float:
        """Largest absolute difference from the reference that lastword's vectors may have."""
        return self.bounds.vector_limit(self.their_difference)

    def label(self, index: int) -> str:
        """Return a short description of a text for messages."""
        probe = self.probes[index]
        texts = [probe.query, probe.text] if probe.kind == "pair" else [probe.text]
        shown = ", ".join(repr(text if len(text) <= 40 else text[:39] + "…") for text in texts)
        return f"{probe.kind} {index} {shown}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvidence(Evidence):
    """The results of lastword and transformers for an embedding model."""

    noun: ClassVar[str] = "vector"

    text: ReferenceText
    prompts: dict[str, str]  # lastword's prompts, by name
    dim: int  # width of the vectors

    def postprocess(self, states: Tensor) -> Tensor:
        """Turn final hidden states into vectors: keep `dim` dimensions; normalise if the model does or if C > dim."""
        vectors = states[:, : self.dim].double()
        cut = self.dim < states.shape[1]
        return F.normalize(vectors, dim=1) if self.text.normalize or cut else vectors


def gather(
    embedder: Embedder, probes: Sequence[Probe], advance: Callable[[int], None]
) -> TextEvidence:
    """Embed the probes with lastword and with transformers.

    Args:
        embedder: lastword's model.
        probes: texts to embed.
        advance: called with 1 after each layer that transformers computes, 2·L times in all.

    Raises:
        InputError: there are too many texts or tokens.
        ConfigError: transformers' tokenizer gives ids that the model does not have.
    """
    info = embedder.info
    text = ReferenceText(info.files.folder)
    probes, ids = _with_tokens(text, probes, info.max_length)
    cut = long_texts(probes)
    mistakes = _prompt_mistakes(text, probes, info.max_length)
    reference, theirs, alternates = compute_references(info, ids, mistakes, advance)
    return TextEvidence(
        probes=probes,
        text=text,
        ids=ids,
        cut=cut,
        cut_ids=text.ids(cut, CUT),
        reference=reference,
        theirs=theirs,
        alternates=alternates,
        ours=_measure(embedder, probes, cut),
        prompts=dict(embedder.prompts),
        dim=info.dim,
        bounds=bounds_of(info.dtype, info.quantize),
    )


def long_texts(probes: Sequence[Probe]) -> list[str]:
    """Return the texts on which truncation is checked: those with more than 8 characters per token of `CUT`."""
    return [probe.text for probe in probes if len(probe.text) > 8 * CUT]


def compute_references(
    info: OpenedModel,
    ids: list[list[int]],
    mistakes: list[Alternate],
    advance: Callable[[int], None],
) -> tuple[ReferenceStates, ReferenceStates, list[Alternate]]:
    """Compute transformers' hidden states: in the reference dtype, with and without mistakes, and in lastword's dtype.

    Args:
        info: the model, opened by lastword.
        ids: token ids of the N probes.
        mistakes: the mistakes, without their states.
        advance: called with 1 after each layer, 2·L times in all.

    Returns:
        The states in the reference dtype, those in lastword's dtype, and the mistakes with their states.

    Raises:
        InputError: there are too many texts or tokens.
        ConfigError: there is no embedding for a token id.
    """
    folder = info.files.folder
    _check_size(ids)
    _check_ids(folder, ids, info.config.vocab_size)
    every = [*ids, *(each for mistake in mistakes for each in mistake.ids)]
    exact = reference_dtype(info.dtype)
    whole = compute_reference_states(folder, every, exact, info.device, advance)
    theirs = compute_reference_states(folder, ids, info.dtype, info.device, advance, info.quantize)
    torch.cuda.empty_cache()  # frees transformers' GPU memory for lastword's batches
    parts = (getattr(whole, name)[: len(ids)] for name in ReferenceStates.__slots__)
    alternates = _with_states(mistakes, whole.states[len(ids) :, -1])
    return ReferenceStates(*parts), theirs, alternates


def _measure(embedder: Embedder, probes: list[Probe], cut: list[str]) -> Ours:
    """Compute lastword's results with its public methods: one call for all queries, one for all documents."""
    vectors = _by_kind(probes, lambda kind, texts: list(_vectors(embedder, kind, texts)))
    states = _by_kind(probes, lambda kind, texts: list(_states(embedder, kind, texts)))
    return Ours(
        ids=_by_kind(probes, lambda kind, texts: _token_ids(embedder, kind, texts)),
        cut_ids=_cut_ids(embedder, cut),
        states=torch.stack(states),
        vectors=torch.stack(vectors),
        alone=torch.cat([_vectors(embedder, p.kind, [p.text]) for p in probes if p.alone]),
    )


def _check_size(ids: list[list[int]]) -> None:
    tokens = sum(map(len, ids))
    if tokens > MAX_TOKENS or len(ids) > MAX_TEXTS:
        raise InputError(
            "texts",
            "too many",
            got=f"{count(len(ids), 'text')} with {tokens:,} tokens",
            expected=f"at most {MAX_TEXTS:,} texts with {MAX_TOKENS:,} tokens in total",
            remedy="Verify a sample of the texts.",
        )


def _check_ids(folder: Path, ids: list[list[int]], vocab_size: int) -> None:
    highest = max(max(each) for each in ids)
    if highest >= vocab_size:
        raise ConfigError(
            f"{folder}: transformers' tokenizer",
            "token ids go beyond the embedding table",
            got=f"id {highest}",
            expected=f"below {vocab_size}",
            remedy="Name the tokenizer's class and special tokens in tokenizer_config.json.",
        )


def _with_tokens(
    text: ReferenceText, probes: Sequence[Probe], max_length: int
) -> tuple[list[Probe], list[list[int]]]:
    """Tokenise the probes, and leave out those without tokens, such as "" if the tokenizer adds no end token."""
    ids = text.ids([text.prompt(probe.kind) + probe.text for probe in probes], max_length)
    kept = [(probe, each) for probe, each in zip(probes, ids, strict=True) if each]
    return [probe for probe, _ in kept], [each for _, each in kept]


def _prompt_mistakes(
    text: ReferenceText, probes: Sequence[Probe], max_length: int
) -> list[Alternate]:
    """Build the typical prompt mistakes: no prompt, an extra space, the query prompt on documents.

    The mistakes come without hidden states; `_with_states` adds them later.
    """
    query = text.prompt("query")
    mistakes = (
        ("no prompt", "query", ""),
        ("a space after the prompt", "query", query + " "),
        ("the query prompt", "document", query),
    )
    found = []
    for name, kind, prompt in mistakes if query else ():
        index = [i for i, p in enumerate(probes) if p.kind == kind and 0 < len(p.text) < 100][:12]
        ids = text.ids([prompt + probes[i].text for i in index], max_length)
        found.append(Alternate("prompt text", name, kind, index, ids))
    return found


def _with_states(mistakes: list[Alternate], states: Tensor) -> list[Alternate]:
    sizes = [len(mistake.ids) for mistake in mistakes]
    parts = states.split(sizes)  # type: ignore[no-untyped-call]
    return [replace(mistake, states=part) for mistake, part in zip(mistakes, parts, strict=True)]


def _by_kind(probes: Sequence[Probe], compute: Callable[[str, list[str]], list[T]]) -> list[T]:
    """Call `compute` once with all queries and once with all documents; return the results in the probes' order."""
    results: dict[int, T] = {}
    for kind in ("query", "document"):
        index = [i for i, probe in enumerate(probes) if probe.kind == kind]
        done = compute(kind, [probes[i].text for i in index])
        results |= dict(zip(index, done, strict=True))
    return [results[i] for i in range(len(probes))]


def _token_ids(embedder: Embedder, kind: str, texts: list[str]) -> list[list[int]]:
    return embedder.token_ids(texts, prompt=_prompt(embedder, kind))


def _states(embedder: Embedder, kind: str, texts: list[str]) -> Tensor:
    return embedder.hidden_states(texts, prompt=_prompt(embedder, kind))


def _prompt(embedder: Embedder, kind: str) -> str:
    return embedder.resolve_prompt(None, None, "query" if kind == "query" else "document")


def _vectors(embedder: Embedder, kind: str, texts: list[str]) -> Tensor:
    encode = embedder.encode_query if kind == "query" else embedder.encode_document
    vectors: Tensor = encode(texts, show_progress_bar=False)
    return vectors


def _cut_ids(embedder: Embedder, texts: list[str]) -> list[list[int]]:
    before, embedder.max_length = embedder.max_length, CUT
    try:
        return embedder.token_ids(texts, prompt="")  # the reference uses no default prompt
    finally:
        embedder.max_length = before
