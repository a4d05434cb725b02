"""Read a reranker's settings: the row of weights that makes its score, its template, instructions and limits.

The score is the dot product of that row with the final hidden state of the last token. Three kinds of checkpoints are
supported:

* A causal model. The score's row is the row of the token "yes" minus the row of the token "no". Both rows come from
  `lm_head`, or from the token embeddings if config.json ties `lm_head` to them.
* A causal model with sentence-transformers' LogitScore, which names the two tokens in place of "yes" and "no". If
  LogitScore names only the first token, nothing is subtracted.
* A sequence classification model with one label. The row is `score.weight`.

Any other kind is refused with an error that names it. Code in a checkpoint is never run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lastword.errors import ConfigError, WeightsError
from lastword.weights.checkpoint import Checkpoint
from lastword.weights.config import ACTIVATION_KEYS, CLASSIFIER, ModelConfig
from lastword.weights.embedding_spec import read_default_prompt, read_prompts, read_settings
from lastword.weights.files.reading import has_file, read_bytes
from lastword.weights.json_fields import Fields, read_object, read_optional_object, show_value
from lastword.weights.module_list import MODULES, read_reranker_modules
from lastword.weights.tensor_names import EMBEDDING, LM_HEAD, SCORE
from lastword.weights.tokenizer_settings import TokenizerSettings, read_tokenizer_settings
from lastword.weights.transformer_settings import CAUSAL_LOGITS, LABELS, read_transformer_settings

CHAT_TEMPLATE = "chat_template.jinja"
# The limit that Qwen3-Reranker's model card states; the model was not trained on longer pairs.
MAX_LENGTH = 8192
_KEYS = frozenset({"activation_fn", "keep_in_fp32_modules"})
_ACTIVATIONS = {
    "torch.nn.modules.activation.Sigmoid": True,
    "torch.nn.modules.linear.Identity": False,
    # Aliases, for files written by hand.
    "torch.nn.Sigmoid": True,
    "torch.nn.Identity": False,
}


@dataclass(frozen=True, slots=True)
class ScoreTokens:
    """The ids of the tokens whose logits make the score: `true`'s logit, minus `false`'s if there is such a token."""

    true: int
    false: int | None


@dataclass(frozen=True, slots=True)
class RerankerSpec:
    """A checkpoint's settings for scoring pairs of a query and a document.

    Args:
        classifier: whether the score comes from `score.weight` rather than from the logits of tokens.
        tied: whether `lm_head` and the token embeddings are the same tensor.
        tokens: the tokens that LogitScore names. None if the checkpoint has no LogitScore: a causal model then uses
            "yes" and "no".
        chat_template: the text of the checkpoint's chat template, not yet parsed; None if there is none.
        prompts: instructions by name.
        default_prompt_name: name of the instruction for calls that give no instruction, or None.
        max_length: maximum tokens per pair.
        sigmoid: whether a score is by default a probability (the sigmoid of the log-odds) rather than the log-odds.
        tokenizer: the settings of the tokenizer.
    """

    classifier: bool
    tied: bool
    tokens: ScoreTokens | None
    chat_template: str | None
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    max_length: int
    sigmoid: bool
    tokenizer: TokenizerSettings


def read_reranker_spec(folder: Path, config: ModelConfig) -> RerankerSpec:
    """Read modules.json, if there is one, and the other files that say how the score is made.

    Raises:
        WeightsError: a file that modules.json names is missing, or a file cannot be read.
        ConfigError: a module, activation or setting is not supported.
    """
    folder = Path(folder)
    own = Fields(read_object(folder / "config.json"), str(folder / "config.json"))
    classifier = own.values.get("architectures") == [CLASSIFIER]
    sigmoid = _config_uses_sigmoid(own)
    tokens, keywords, limit = None, Fields({}, str(folder)), None
    prompts: dict[str, str] = {}
    default = None
    if has_file(folder / MODULES):
        place = read_reranker_modules(folder)
        if classifier == (place is not None):
            wanted = "Transformer alone" if classifier else "Transformer and LogitScore"
            what = "do not fit the model's class"
            got = "LogitScore" if classifier else "no LogitScore"
            raise ConfigError(f"{folder / MODULES}: modules", what, got=got, expected=wanted)
        tokens = None if place is None else _read_logit_score(place / "config.json", config)
        transformer = read_transformer_settings(folder, LABELS if classifier else CAUSAL_LOGITS)
        keywords, limit = transformer.tokenizer, transformer.max_seq_length
        fields = read_settings(folder, "CrossEncoder", _KEYS)
        prompts = read_prompts(fields)
        default = read_default_prompt(fields, prompts)
        sigmoid = _uses_sigmoid(fields, "activation_fn", default=sigmoid)
    tokenizer = read_tokenizer_settings(folder, keywords)
    _refuse_left_truncation(folder, tokenizer)
    limits = (tokenizer.limit or limit, tokenizer.model_max_length, MAX_LENGTH)
    positions = config.max_position_embeddings
    return RerankerSpec(
        classifier=classifier,
        tied=own.boolean("tie_word_embeddings", default=False),
        tokens=tokens,
        chat_template=read_chat_template(folder),
        prompts=prompts,
        default_prompt_name=default,
        max_length=min(positions, *(each for each in limits if each is not None)),
        sigmoid=sigmoid,
        tokenizer=tokenizer,
    )


def read_score_row(checkpoint: Checkpoint, spec: RerankerSpec, tokens: ScoreTokens) -> Tensor:
    """Return the row of weights, [C] fp32, whose dot product with the last token's final hidden state is the score.

    Args:
        checkpoint: the weights, opened with `reranker=True`.
        spec: the checkpoint's settings.
        tokens: the tokens whose logits make the score; not used for a classifier.

    Raises:
        WeightsError: the head that has the row is missing, has the wrong shape or dtype, or differs from the token
            embeddings although `tie_word_embeddings` is true.

    Numerics:
        The stored rows are converted to fp32, then subtracted.
    """
    folder, config = checkpoint.folder, checkpoint.config
    if spec.classifier:
        row = checkpoint.head_rows(SCORE, [0], 1)
        if row is None:
            raise WeightsError(
                str(folder),
                f"{SCORE} is missing",
                expected=f"the head of {CLASSIFIER}, with one label",
                remedy="Without it there is no score. Fetch or convert the model again.",
            )
        return row[0]
    wanted = [tokens.true] if tokens.false is None else [tokens.true, tokens.false]
    rows = checkpoint.head_rows(LM_HEAD, wanted, config.vocab_size)
    if spec.tied:
        shared = checkpoint.embedding()[wanted].float()
        if rows is not None and not torch.equal(rows, shared):
            raise WeightsError(
                str(folder),
                f"{LM_HEAD} and {EMBEDDING} differ, although config.json ties them",
                expected="tie_word_embeddings false, or equal tensors",
                remedy="Correct tie_word_embeddings in config.json.",
            )
        rows = shared
    if rows is None:
        raise WeightsError(
            str(folder),
            f"{LM_HEAD} is missing",
            expected="the head of a causal model, since config.json does not tie it to the token embeddings",
            remedy="Without it there is no score. Fetch or convert the model again.",
        )
    return rows[0] if tokens.false is None else rows[0] - rows[1]


def _read_logit_score(path: Path, config: ModelConfig) -> ScoreTokens:
    fields = Fields(read_object(path, WeightsError), str(path))
    fields.refuse_unknown({"true_token_id", "false_token_id", "module_input_name"})
    fields.only("module_input_name", "causal_logits")
    last = config.vocab_size - 1
    true = fields.integer("true_token_id", low=0, high=last)
    if fields.values.get("false_token_id") is None:
        return ScoreTokens(true, None)
    return ScoreTokens(true, fields.integer("false_token_id", low=0, high=last))


def _config_uses_sigmoid(own: Fields) -> bool:
    """Return whether config.json asks for the sigmoid, which is the default.

    sentence-transformers before 5.4 stated the activation there.
    """
    old, new = sorted(ACTIVATION_KEYS)
    found = Fields(own.object(new) or {}, f"{own.where}: {new}")
    found.refuse_unknown({"activation_fn", "version"})
    return _uses_sigmoid(found, "activation_fn", default=_uses_sigmoid(own, old, default=True))


def _uses_sigmoid(fields: Fields, key: str, *, default: bool) -> bool:
    """Return True if `key` names the sigmoid, False if it names the identity, and `default` if it is absent."""
    name = fields.text(key)
    if name is None:
        return default
    if name not in _ACTIVATIONS:
        remedy = "Other activations are not supported, and code in a checkpoint is never run. Name another model."
        fields.fail(key, " or ".join(list(_ACTIVATIONS)[:2]), remedy)
    return _ACTIVATIONS[name]


def _refuse_left_truncation(folder: Path, tokenizer: TokenizerSettings) -> None:
    """Refuse truncation on the left, which would cut off the instruction and the query of a long pair."""
    if tokenizer.truncation_side == "left":
        raise ConfigError(
            f"{folder / 'tokenizer_config.json'}: truncation_side",
            "not supported for a reranker",
            got='"left"',
            expected='"right"',
            remedy="It would cut off the query. Remove the setting.",
        )


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template's text, from its own file or else from tokenizer_config.json; None if there is none.

    Raises:
        WeightsError: the file cannot be read.
        ConfigError: the file is not UTF-8, or does not hold a template.
    """
    path = folder / CHAT_TEMPLATE
    if has_file(path):
        try:
            return read_bytes(path, markup=True).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ConfigError(str(path), f"not UTF-8 at byte {problem.start}") from None
    settings = folder / "tokenizer_config.json"
    fields = Fields(read_optional_object(settings) or {}, str(settings))
    found = fields.values.get("chat_template")
    if found is None or isinstance(found, str):
        return found
    if isinstance(found, list):  # several named templates; "default" is the one to use
        for each in found:
            if isinstance(each, dict) and each.get("name") == "default":
                return Fields(each, f"{settings}: chat_template").text("template")
        return None
    raise ConfigError(
        f"{settings}: chat_template", "wrong content", got=show_value(found), expected="a template"
    )
