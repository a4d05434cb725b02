"""One complete verification: open the files, check the weights, compare with transformers and the model card."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import InputError, LastwordError, list_some, require_extra
from lastword.model_info import HubOptions, find_published
from lastword.progress import progress_bar
from lastword.reranker import Reranker
from lastword.reranker_info import (
    RerankerInfo,
    is_reranker,
    reranker_options,
)
from lastword.text.tokenizer import TextTokenizer
from lastword.verify.bounds import reference_dtype
from lastword.verify.card_scores import card_scores_problem, known_card_scores
from lastword.verify.evidence import TextEvidence, gather
from lastword.verify.findings import judge
from lastword.verify.pairs import PairEvidence, gather_pairs
from lastword.verify.probes import pair_probes, probes
from lastword.verify.transformers_reference import StoredTensors
from lastword.verify.verdict import Verdict, check_accepted, check_known, requested_checks
from lastword.weights import (
    CHAT_TEMPLATE,
    Checkpoint,
    check_pipeline,
    check_tokens,
    dtype_name,
    locate,
    read_config,
    read_embedding_spec,
)


def verify(
    model: str | os.PathLike[str],
    *,
    texts: Sequence[str] = (),
    scores: bool = False,
    known_as: str | None = None,
    reranker: bool | None = None,
    accept: Sequence[str] = (),
    show_progress_bar: bool | None = None,
    **options: Any,
) -> Verdict:
    """Compare lastword's vectors, or a reranker's scores, with those of transformers.

    The reference is computed by transformers' own layers in float64, or in float32 if the compute dtype is bfloat16.
    With `quantize`, the bounds depend on the error of transformers with its matmuls rounded to 8 bits as lastword
    rounds them, and the quantisation error is checked too. Memory holds lastword's model (one copy per device) and one
    layer of transformers' model.

    Args:
        model: Hugging Face id or folder.
        texts: texts to compare besides the built-in ones, as documents; for a reranker, each with a built-in query.
        scores: also run the model card's example in float32, and compare the scores with the card's.
        known_as: id of the published model whose card is used; by default `model`, or the id for its folder's name.
        reranker: whether the model is a reranker; by default, its files or its name decide.
        accept: names of checks that may fail, provided that all checks run.
        show_progress_bar: whether to show a progress bar; by default only on a terminal.
        options: keyword arguments of `Embedder` or `Reranker`.

    Returns:
        The verdict: `passed`, `cause`, `checks`, `layers`, `figures`.

    Raises:
        ConfigError: a setting is not accepted, or transformers is missing.
        WeightsError: there is no such model.
        InputError: a text cannot be embedded or scored (`index` is its index in `texts`), or there are too many texts.
    """
    check_known(accept)
    card = None
    if scores and not reranker:
        name = known_as or os.fspath(model)
        card = find_published(name, known_card_scores(), "scores", "no model card is known")
    with require_extra("transformers", "verify", "verify"):
        import transformers  # noqa: F401
    where = {key: options[key] for key in HubOptions.__annotations__ if key in options}
    found = locate(model, also=(CHAT_TEMPLATE,), **where)
    if reranker is None:
        reranker = is_reranker(found.folder, found.name)
    requested = requested_checks(options.get("quantize"), scores=scores, reranker=reranker)
    check_accepted(accept, requested, reranker=reranker)
    if reranker:
        options = reranker_options(options, scores=scores)
    verdict = Verdict(found.name, str(found.folder), quantize=options.get("quantize"))
    if _opens(found.folder, verdict, reranker=reranker) and _finite(found.folder, verdict):
        options["show_progress_bar"] = show_progress_bar
        load = Reranker if reranker else Embedder
        _compare(load(model, **options), texts, verdict, show=show_progress_bar)
        if card is not None:  # the embedder above is no longer in memory
            plain = {"dtype": "float32", "quantize": None, "truncate_dim": None}
            verdict.add("scores", *card_scores_problem(Embedder(model, **(options | plain)), card))
    return verdict.close(accept, requested)


def _opens(folder: Path, verdict: Verdict, *, reranker: bool) -> bool:
    """Check that lastword can read the files that it needs from the folder."""
    try:
        parameters = (_open_reranker if reranker else _open_embedder)(folder)
    except LastwordError as error:
        verdict.add("checkpoint", str(error))
        return False
    verdict.add("checkpoint", None, f"{parameters:,} parameters")
    return True


def _open_reranker(folder: Path) -> int:
    return RerankerInfo(folder, device="cpu").checkpoint.num_parameters


def _open_embedder(folder: Path) -> int:
    config = read_config(folder)
    settings = read_embedding_spec(folder, config).tokenizer
    checkpoint = Checkpoint(folder, config)
    tokenizer = TextTokenizer(folder, config.vocab_size)
    check_tokens(settings, tokenizer.added_tokens)
    check_pipeline(settings, qwen=tokenizer.has_qwen_pipeline)
    return checkpoint.num_parameters


def _finite(folder: Path, verdict: Verdict) -> bool:
    damaged = StoredTensors(folder).not_finite()
    problem = f"not finite: {list_some(damaged)}. Download the files again" if damaged else None
    verdict.add("weights", problem, "all finite")
    return not damaged


def _compare(
    model: Embedder | Reranker, texts: Sequence[str], verdict: Verdict, *, show: bool | None
) -> None:
    info = model.info
    verdict.device = ", ".join(map(str, info.devices))
    verdict.dtype = dtype_name(info.dtype)
    verdict.reference = dtype_name(reference_dtype(info.dtype))
    layers = info.config.num_hidden_layers
    # Before anything is computed, raise InputError for a text that cannot be embedded or scored.
    if isinstance(model, Embedder):
        model.plan(texts, prompt=model.resolve_prompt(None, None, "document"))
    else:
        _check_documents(model, texts)
    evidence: TextEvidence | PairEvidence
    with progress_bar(2 * layers, show=show, unit=" layers", what="Verifying") as advance:
        try:
            if isinstance(model, Embedder):
                evidence = gather(model, probes(texts), advance)
            else:
                evidence = gather_pairs(model, pair_probes(texts), advance)
        except InputError as error:
            if error.index is None:
                raise
            verdict.add("vectors" if isinstance(model, Embedder) else "log-odds", str(error))
            return
    verdict.texts = len(evidence.probes)
    verdict.tokens = sum(map(len, evidence.ids))
    judge(evidence, verdict)


def _check_documents(reranker: Reranker, texts: Sequence[str]) -> None:
    try:
        reranker.plan([("", text) for text in texts])
    except InputError as error:
        if error.index is not None:
            error.where = f"text {error.index}"
        raise
