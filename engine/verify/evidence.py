"""Collect the token ids, hidden states and vectors of lastword and of transformers, for every text.

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
MAX_TOKENS = 65_536  # of all texts together: their hidden states are in memory between two layers
CUT = 12  # the max_length at which truncation is checked

T = TypeVar("T")


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, slots=True)
class Alternate:
    """What transformers computes for n probes of one kind with a wrong prompt, to recognise that mistake by."""

    check: str  # the check that this mistake fails
    name: str  # the wrong prompt in words, for messages
    kind: str  # that of the probes
    index: list[int]  # of the n probes in `Evidence.probes`
    ids: list[list[int]]  # their token ids with the wrong prompt
    states: Tensor = field(default_factory=_nothing)  # [n, C] fp64, after the final norm


@dataclass(frozen=True, slots=True)
class Ours:
    """The results of lastword."""

    ids: list[list[int]]
    cut_ids: list[list[int]]  # of the texts in `Evidence.cut`
    states: Tensor  # [N, L + 1, C]
    vectors: Tensor  # [N, dim]
    alone: Tensor  # [n, dim], of the probes with `alone` set, each embedded in its own call


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(ABC):
    """What lastword and transformers computed for the probes.

    All tensors are on the CPU, with rows in the order of `probes`; those of transformers are stored in fp64.
    """

    noun: ClassVar[str]  # what the model makes of a text, for messages

    probes: list[Probe]
    ids: list[list[int]]  # of transformers
    cut: list[str]  # texts that are cut at a small max_length
    cut_ids: list[list[int]]  # their token ids, of transformers
    reference: ReferenceStates  # of transformers in the reference dtype
    theirs: ReferenceStates  # of transformers in lastword's dtype and quantisation mode
    alternates: list[Alternate]
    ours: Ours
    bounds: Bounds

    @abstractmethod
    def postprocess(self, states: Tensor) -> Tensor:
        """Turn final hidden states [n, C] into what the model makes of them, vectors [n, dim]."""

    @property
    def reference_vectors(self) -> Tensor:
        """The reference vectors [N, dim]."""
        return self.postprocess(self.reference.states[:, -1])

    @property
    def their_vectors(self) -> Tensor:
        """Transformers' vectors [N, dim], computed in lastword's dtype, with matmuls in 8 bits if lastword's are."""
        return self.postprocess(self.theirs.states[:, -1])

    @property
    def their_difference(self) -> float:
        """Largest difference of transformers' vectors from the reference."""
        return float((self.reference_vectors - self.their_vectors).abs().max())

    @property
    def vector_limit(self) -> float:
        """Allowed largest difference of a vector from the reference."""
        return self.bounds.vector_limit(self.their_difference)

    def label(self, index: int) -> str:
        """Return a short description of a text for messages."""
        probe = self.probes[index]
        texts = [probe.query, probe.text] if probe.kind == "pair" else [probe.text]
        shown = ", ".join(repr(text if len(text) <= 40 else text[:39] + "…") for text in texts)
        return f"{probe.kind} {index} {shown}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvidence(Evidence):
    """The results of both engines for an embedding model."""

    noun: ClassVar[str] = "vector"

    text: ReferenceText
    prompts: dict[str, str]  # of lastword, by name
    dim: int  # width of the vectors

    def postprocess(self, states: Tensor) -> Tensor:
        """Turn final hidden states into vectors as sentence-transformers does; truncated ones are always normalised."""
        vectors = states[:, : self.dim].double()
        cut = self.dim < states.shape[1]
        return F.normalize(vectors, dim=1) if self.text.normalize or cut else vectors


def gather(
    embedder: Embedder, probes: Sequence[Probe], advance: Callable[[int], None]
) -> TextEvidence:
    """Embed the probes with both engines.

    Args:
        embedder: lastword's model.
        probes: texts to embed.
        advance: called with 1 after each layer that transformers computes; 2·L calls in total.

    Raises:
        InputError: there are too many texts.
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
    """Return the texts on which truncation is checked."""
    return [probe.text for probe in probes if len(probe.text) > 8 * CUT]


def compute_references(
    info: OpenedModel,
    ids: list[list[int]],
    mistakes: list[Alternate],
    advance: Callable[[int], None],
) -> tuple[ReferenceStates, ReferenceStates, list[Alternate]]:
    """Compute the token lists with transformers, in the reference dtype and in lastword's, and the mistakes' states.

    Raises:
        InputError: there are too many tokens.
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
    """Compute all results of lastword through its public methods, one call each for queries and documents."""
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
            "too many to verify with",
            got=f"{count(len(ids), 'text')} with {tokens:,} tokens",
            expected=f"at most {MAX_TEXTS:,} texts with {MAX_TOKENS:,} tokens in total",
            remedy="Verify with a sample of the texts.",
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
    """Leave out texts without tokens, such as the empty text if the tokenizer adds no end token."""
    ids = text.ids([text.prompt(probe.kind) + probe.text for probe in probes], max_length)
    kept = [(probe, each) for probe, each in zip(probes, ids, strict=True) if each]
    return [probe for probe, _ in kept], [each for _, each in kept]


def _prompt_mistakes(
    text: ReferenceText, probes: Sequence[Probe], max_length: int
) -> list[Alternate]:
    """Build the typical prompt mistakes: no prompt, an extra space, the query prompt on documents.

    `_with_states` fills in their states.
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
    """Compute queries and documents in one call each; return the results in the order of the probes."""
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
