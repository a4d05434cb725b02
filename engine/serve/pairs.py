"""Turn a request's pairs of query and document into items for the queue, and the resulting log-odds into scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lastword.encode_options import PredictKwargs
from lastword.errors import InputError, LastwordError, count
from lastword.reranker import Reranker
from lastword.reranker_info import activate
from lastword.serve.errors import ServeError, bad_request, from_lastword
from lastword.serve.settings import Settings
from lastword.serve.texts import Prepared, check_inputs, check_tokens


@dataclass(frozen=True, slots=True)
class RerankCall:
    """A request for scores, in whichever protocol it came.

    Args:
        pairs: pairs (query, document).
        instruction: says what makes a document relevant; None for the reranker's own instruction.
        truncate: whether to cut documents that are too long; None for the server's setting.
        max_tokens: most tokens of a pair, template and instruction included; None for no limit but the reranker's own,
            which always applies.
        max_document_tokens: number of tokens to keep of each document; None keeps all.
        field: the protocol's name for the documents, for messages.
    """

    pairs: Sequence[tuple[str, str]]
    instruction: str | None = None
    truncate: bool | None = None
    max_tokens: int | None = None
    max_document_tokens: int | None = None
    field: str = "documents"


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one request's pairs, and what the answer reports with them.

    Args:
        scores: [N], fp32, as from `Reranker.predict`.
        log_odds: [N], fp32, the scores before the activation.
        prepared: the pairs as token ids.
        computed: this request's share of the tokens computed, as in `Answer`.
        model: name of the reranker.
    """

    scores: Tensor
    log_odds: Tensor
    prepared: Prepared
    computed: int
    model: str

    def in_order(self, *, raw: bool = False) -> list[float]:
        """Return the scores, or the log-odds if `raw`, in the order of the pairs."""
        found: list[float] = (self.log_odds if raw else self.scores).tolist()
        return found

    def by_relevance(
        self, most: int | None = None, *, raw: bool = False
    ) -> list[tuple[int, float]]:
        """Return (index, score) of the `most` best documents (None: all), best first; ties keep the request's order."""
        values = self.in_order(raw=raw)
        found = (self.log_odds if raw else self.scores).argsort(descending=True, stable=True)
        return [(place, values[place]) for place in found.tolist()[:most]]

    def headers(self) -> dict[str, str]:
        """Return the response headers that are the same in every protocol: those of `Prepared.headers`."""
        return self.prepared.headers(self.computed)


def prepare_pairs(reranker: Reranker, call: RerankCall, settings: Settings) -> Prepared:
    """Check the pairs of a request against the limits, and tokenise them.

    Raises:
        ServeError: the request cannot be answered.
    """
    limits, info = settings.limits, reranker.info
    documents = [document for _, document in call.pairs]
    check_inputs(documents, call.field, limits.max_inputs, limits.max_characters)
    queries = list(dict.fromkeys(query for query, _ in call.pairs))
    check_inputs(queries, "query", limits.max_inputs, limits.max_characters)
    kept, cut = _cut_documents(reranker, documents, call.max_document_tokens)
    pairs = [(query, document) for (query, _), document in zip(call.pairs, kept, strict=True)]
    try:
        options = info.predict_options(PredictKwargs(instruction=call.instruction))
        if call.max_tokens is not None:
            options = replace(options, max_length=min(call.max_tokens, options.max_length))
        texts = list(reranker.pair_texts(pairs, options, call.field))
        tokens = info.tokenizer.encode(texts, options.max_length, prompt=options.prompt)
    except InputError as error:
        error.where = error.where.replace("text ", f"{call.field} ", 1)
        raise from_lastword(error, call.field) from None
    except LastwordError as error:
        raise from_lastword(error, "instruction") from None
    if True in tokens.cut and not (settings.truncate if call.truncate is None else call.truncate):
        place = tokens.cut.index(True)
        length = info.tokenizer.count(options.prompt + texts[place])
        length += info.tokenizer.num_template_tokens
        raise ServeError(
            413,
            f"{call.field} {place}: too long; got {count(length, 'token')} with its query, expected at most "
            f"{options.max_length:,}. Shorten it, ask for it to be cut with truncate, or start the server with "
            "--truncate.",
            param=call.field,
            code="context_length_exceeded",
        )
    cut = [before or after for before, after in zip(cut, tokens.cut, strict=True)]
    ids = [tuple(each) for each in tokens.ids]
    prompt = info.tokenizer.prompt_ids(options.prompt, reranker.loop.runner.max_prompt_tokens)
    unknown = sum(map(info.tokenizer.has_unknown, ids))
    done = Prepared(ids, cut, unknown, prompt, options.format)
    check_tokens(done, call.field, limits.max_request_tokens)
    return done


def _cut_documents(
    reranker: Reranker, documents: list[str], most: int | None
) -> tuple[list[str], list[bool]]:
    """Cut each document to at most `most` tokens; return the documents, and for each whether it was cut."""
    if most is None:
        return documents, [False] * len(documents)
    kept, cut = [], []
    for place, document in enumerate(documents):
        try:
            spans = reranker.info.tokenizer.spans(document)
        except LastwordError as error:
            raise bad_request(f"documents {place}: {error}", "documents") from None
        cut.append(len(spans) > most)
        kept.append(document[: spans[most][2]] if len(spans) > most else document)
    return kept, cut


def scores_of(
    reranker: Reranker, results: Sequence[Tensor], prepared: Prepared, computed: int, model: str
) -> Scores:
    """Make the scores of a request's pairs from `results`, the log-odds of each pair as a scalar tensor."""
    with torch.inference_mode(False):
        log_odds = torch.stack([each.clone() for each in results])
    scores = activate(reranker.activation_fn, log_odds)
    return Scores(scores, log_odds, prepared, computed, model)
