"""Turn a request's texts into items for the queue: prompts, token ids, limits."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import get_args

from lastword.embedder import Embedder
from lastword.errors import LastwordError, count, lone_surrogate
from lastword.model.postprocess import VectorFormat
from lastword.serve.errors import ServeError, bad_request, from_lastword
from lastword.serve.settings import Settings
from lastword.text.tokenizer import TextTokenizer, TruncationSide

# The words that the protocols use for queries and for documents.
_QUERY = {"query", "search_query", "retrieval.query"}
_DOCUMENT = {"document", "passage", "search_document", "retrieval.passage", "retrieval.document"}


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """A request for vectors, in whichever protocol it came.

    Args:
        inputs: the texts, or the token ids of each text.
        prompt_name: name of one of the model's prompts.
        prompt: the prompt itself. At most one of `prompt`, `prompt_name` and `kind` is given.
        kind: the protocol's `input_type` or `task`: a word for query or document, or the name of a prompt.
        dim: number of leading dimensions to keep; None keeps all.
        normalize: scale vectors to length 1 even if the model does not.
        refuse_unnormalized: whether to refuse the request if its vectors would have length 1, because it asks for
            vectors that are not scaled.
        truncate: whether to cut texts that are too long; None for the server's setting.
        side: the end to cut off, "left" or "right"; None for the tokenizer's setting.
        max_tokens: most tokens per text; None for no limit but the model's own, which always applies.
        field: the protocol's name for the inputs, for messages.
    """

    inputs: Sequence[str] | Sequence[Sequence[int]]
    prompt_name: str | None = None
    prompt: str | None = None
    kind: str | None = None
    dim: int | None = None
    normalize: bool = False
    refuse_unnormalized: bool = False
    truncate: bool | None = None
    side: TruncationSide | None = None
    max_tokens: int | None = None
    field: str = "input"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The texts of one request as token ids; for a reranker, a text is a whole pair.

    Args:
        ids: the token ids of each text, with prompt and template.
        cut: for each text, whether it was cut.
        unknown: number of texts with words or characters that the tokenizer does not know.
        prompt: token ids of the prompt, if the model may keep the prompt's keys and values, else ().
        format: the format of the results; its precision is always float32.
    """

    ids: list[tuple[int, ...]]
    cut: list[bool]
    unknown: int
    prompt: tuple[int, ...]
    format: VectorFormat

    @property
    def tokens(self) -> int:
        """Number of tokens in all texts."""
        return sum(map(len, self.ids))

    @property
    def cut_places(self) -> list[int]:
        """The indices of the texts that were cut."""
        return [index for index, cut in enumerate(self.cut) if cut]

    def headers(self, computed: int) -> dict[str, str]:
        """Return headers that list the cut texts, and count tokens, computed tokens and texts with unknown words."""
        cut = self.cut_places
        listed = ",".join(map(str, cut[:100])) + (",..." if len(cut) > 100 else "")
        return {
            "x-lastword-truncated": str(len(cut)),
            **({"x-lastword-truncated-inputs": listed} if cut else {}),
            "x-lastword-unknown": str(self.unknown),
            "x-lastword-tokens": str(self.tokens),
            "x-lastword-computed-tokens": str(computed),
        }


class Preparer:
    """Checks and tokenises the texts of requests for one model."""

    def __init__(self, embedder: Embedder, settings: Settings) -> None:
        self._embedder, self._settings = embedder, settings
        self._tokenizers: dict[str, TextTokenizer] = {}
        for side in get_args(TruncationSide):
            tokenizer = copy(embedder.info.tokenizer)  # the copy shares the underlying tokenizer
            tokenizer.truncation_side = side
            self._tokenizers[side] = tokenizer

    def prepare(self, call: EmbedCall) -> Prepared:
        """Check the texts of a request against the limits, and tokenise them.

        Raises:
            ServeError: the request cannot be answered.
        """
        info, limits = self._embedder.info, self._settings.limits
        check_inputs(call.inputs, call.field, limits.max_inputs, limits.max_characters)
        try:
            wanted = info.vector_format(call.dim, normalize_embeddings=call.normalize)
        except LastwordError as error:
            # A request calls it `dimensions`.
            error.where = error.where.replace("truncate_dim", "dimensions")
            raise from_lastword(error, "dimensions") from None
        if call.refuse_unnormalized and wanted.normalize:
            said = "normalize: false is not possible: this model's vectors have length 1."
            raise bad_request(said, "normalize")
        prompt = self.prompt(call)
        most = min(call.max_tokens or info.max_length, info.max_length)
        least = info.tokenizer.num_template_tokens + 1
        if most < least:
            raise bad_request(f"max_tokens: too small; got {most}, expected {least} or more.")
        if call.inputs and not isinstance(call.inputs[0], str):
            ids, cut = self._from_ids(call, prompt, most)
        else:
            ids, cut = self._from_texts(call, prompt, most)
        self._check_cut(call, cut, prompt, most)
        kept = info.tokenizer.prompt_ids(prompt, self._embedder.loop.runner.max_prompt_tokens)
        unknown = self._unknown(call, ids, prompt)
        done = Prepared([tuple(each) for each in ids], cut, unknown, kept, wanted)
        check_tokens(done, call.field, limits.max_request_tokens)
        return done

    def _unknown(self, call: EmbedCall, ids: list[list[int]], prompt: str) -> int:
        """Return the number of inputs with words or characters that the tokenizer does not know."""
        tokenizer = self._embedder.info.tokenizer
        return sum(
            tokenizer.is_unknown(each, its, prompt=prompt)
            if isinstance(each, str)
            else tokenizer.has_unknown(its)
            for each, its in zip(call.inputs, ids, strict=True)
        )

    def prompt(self, call: EmbedCall) -> str:
        """Return the prompt to put before each text.

        Raises:
            ServeError: there is no such prompt, or the request names it in more than one way.
        """
        given = [each for each in (call.prompt_name, call.prompt, call.kind) if each is not None]
        if len(given) > 1:
            raise bad_request("prompt: give only one of prompt, prompt_name, input_type and task.")
        info = self._embedder.info
        try:
            if call.kind in _QUERY:
                return info.resolve_prompt(kind="query")
            if call.kind in _DOCUMENT:
                return info.resolve_prompt(kind="document")
            return info.resolve_prompt(call.kind or call.prompt_name, call.prompt)
        except LastwordError as error:
            raise from_lastword(error, "prompt") from None

    def _from_texts(
        self, call: EmbedCall, prompt: str, most: int
    ) -> tuple[list[list[int]], list[bool]]:
        texts = [each for each in call.inputs if isinstance(each, str)]
        tokenizer = self._tokenizers.get(call.side or "", self._embedder.info.tokenizer)
        try:
            tokens = tokenizer.encode(texts, most, prompt=prompt)
        except LastwordError as error:
            error.where = error.where.replace("text ", f"{call.field} ", 1)
            raise from_lastword(error, call.field) from None
        return tokens.ids, tokens.cut

    def _from_ids(
        self, call: EmbedCall, prompt: str, most: int
    ) -> tuple[list[list[int]], list[bool]]:
        """Add the prompt's and the template's ids to those of each input, and cut inputs as texts are cut."""
        if not self._settings.accept_token_ids:
            raise bad_request(
                f"{call.field}: token ids are not accepted, since ids from another tokenizer would give wrong vectors "
                "without an error. Send texts; in langchain-openai set check_embedding_ctx_length=False. If the ids "
                "come from this model's tokenizer, start the server with --accept-token-ids.",
                call.field,
                "token_ids",
            )
        tokenizer = self._embedder.info.tokenizer
        before, after = tokenizer.before, tokenizer.after
        room = most - len(before) - len(after)
        core = tokenizer.encode([prompt], 1 << 30).ids[0] if prompt else [*before, *after]
        start = core[len(before) : len(core) - len(after)]
        ids, cut = [], []
        for number, each in enumerate(call.inputs):
            inner = [*start, *(one for one in each if isinstance(one, int))]
            if not inner and not before and not after:
                raise bad_request(f"{call.field} {number}: has no tokens.", call.field)
            if max(inner, default=0) >= tokenizer.vocab_size or min(inner, default=0) < 0:
                expected = f"0 to {tokenizer.vocab_size - 1}"
                raise bad_request(
                    f"{call.field} {number}: unknown token id; expected {expected}.", call.field
                )
            left = (call.side or tokenizer.truncation_side) == "left"
            kept = inner[max(0, len(inner) - room) :] if left else inner[:room]
            ids.append([*before, *kept, *after])
            cut.append(len(kept) < len(inner))
        return ids, cut

    def _check_cut(self, call: EmbedCall, cut: list[bool], prompt: str, most: int) -> None:
        """Raise ServeError for a text that was cut, unless the request or the server allows cutting."""
        truncate = self._settings.truncate if call.truncate is None else call.truncate
        if truncate or True not in cut:
            return
        number = cut.index(True)
        tokenizer, one = self._embedder.info.tokenizer, call.inputs[number]
        length = tokenizer.count(prompt + one) if isinstance(one, str) else len(one)
        length += tokenizer.num_template_tokens
        raise ServeError(
            413,
            f"{call.field} {number}: too long; got {count(length, 'token')}, {length - most:,} too many, expected at "
            f"most {most:,}. Shorten it, ask for it to be cut with truncate, or start the server with --truncate.",
            param=call.field,
            code="context_length_exceeded",
        )


def as_inputs(value: object, field: str) -> list[str] | list[list[int]]:
    """Return the inputs of a body as a list of texts, or as the token ids of each text.

    Raises:
        ServeError: `value` is an empty list, or none of these: a text, a list of texts, token ids, a list of lists of
            token ids.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and not value:
        raise bad_request(f"{field}: empty; expected at least one text.", field, "empty")
    if isinstance(value, list):
        if all(isinstance(each, str) for each in value):
            return value
        if all(type(each) is int for each in value):
            return [value]
        if all(isinstance(each, list) and all(type(i) is int for i in each) for each in value):
            return value
    expected = "a text, a list of texts, token ids, or a list of lists of token ids"
    raise bad_request(f"{field}: wrong type; expected {expected}.", field)


def check_tokens(prepared: Prepared, field: str, most: int) -> None:
    """Raise ServeError if a request has more than `most` tokens."""
    if prepared.tokens > most:
        raise ServeError(
            413,
            f"{field}: too many tokens in one request; got {prepared.tokens:,}, expected at most {most:,}. "
            "Send fewer texts at once.",
            param=field,
        )


def check_inputs(
    inputs: Sequence[str] | Sequence[Sequence[int]], field: str, most: int, characters: int
) -> None:
    """Check the inputs against the limits that need no tokenizer.

    Args:
        inputs: the texts, or the token ids of each text.
        field: the protocol's name for the inputs, for messages.
        most: largest number of inputs.
        characters: largest number of characters, or of token ids, in one input.

    Raises:
        ServeError: there is no input, a limit is exceeded, or a text is not valid Unicode.
    """
    if not inputs:
        raise bad_request(f"{field}: empty; expected at least one text.", field, "empty")
    if len(inputs) > most:
        said = f"{field}: too many; got {len(inputs):,}, expected at most {most:,}."
        raise ServeError(413, said, param=field)
    for number, each in enumerate(inputs):
        if len(each) > characters:
            what = "characters" if isinstance(each, str) else "token ids"
            said = f"{field} {number}: too long; got {len(each):,} {what}, expected at most {characters:,}."
            raise ServeError(413, said, param=field)
        if isinstance(each, str) and lone_surrogate(each) is not None:
            raise bad_request(f"{field} {number}: not valid Unicode.", field)
