"""A reranker without its weights: files, template, the tokens whose logits make the score, instruction, activation.

A `Reranker` has a `RerankerInfo` as its `info`, as an `Embedder` has a `ModelInfo`. This module runs no model.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from lastword.arguments import short_repr
from lastword.encode_options import (
    EncodeOptions,
    PredictKwargs,
    check_functions,
    check_report,
    check_switches,
)
from lastword.errors import ConfigError, LastwordError, WeightsError, count
from lastword.model.postprocess import VectorFormat
from lastword.model_info import OpenedModel, OpenKwargs, fingerprint
from lastword.runtime.device import quantize_identity
from lastword.text.prompts import check_choice, check_prompt, choose_prompt
from lastword.text.rerank_template import QWEN3_RERANKER, is_named_reranker, parse_template
from lastword.text.tokenizer import TextTokenizer
from lastword.weights import (
    CHAT_TEMPLATE,
    Checkpoint,
    ModelConfig,
    RerankerSpec,
    ScoreTokens,
    read_config,
    read_reranker_spec,
    read_score_row,
    tensor_bytes,
)

Activation = Callable[[Tensor], Tensor]

_NOTICE = (
    "{folder}: has no chat template for pairs, and its name does not say that it is a reranker; "
    "using the template of Qwen3-Reranker"
)


class RerankerInfo(OpenedModel):
    """A reranker's files and the caller's settings, checked against each other.

    `Reranker` describes the arguments, and has others that concern only running the model.

    Raises:
        ConfigError: a setting is not accepted, or the model is not a reranker.
        WeightsError: the checkpoint is incomplete, damaged or inconsistent.
        DeviceError: the device is missing or cannot compute as requested.
    """

    spec: RerankerSpec
    _also = (CHAT_TEMPLATE,)

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        instruction: str | None = None,
        activation_fn: Activation | None = None,
        **kwargs: Unpack[OpenKwargs],
    ) -> None:
        check_functions(activation_fn=activation_fn)
        super().__init__(model, **kwargs)
        self.instruction = instruction
        self.activation_fn = activation_fn
        self.checkpoint = Checkpoint(self.files.folder, self.config, reranker=True)
        self.score_row = read_score_row(self.checkpoint, self.spec, self._score_tokens())

    def _read_settings(self, folder: Path) -> tuple[ModelConfig, RerankerSpec]:
        config = read_config(folder, reranker=True)
        spec = read_reranker_spec(folder, config)
        own = parse_template(spec.chat_template, f"{folder}: chat template")
        self.template = QWEN3_RERANKER if own is None else own
        known = own is not None or is_named_reranker(folder, self.name)
        self.notices = () if known else (_NOTICE.format(folder=folder),)
        return config, spec

    def _open_tokenizer(self) -> TextTokenizer:
        frame = self.template.prefix, self.template.suffix
        folder, size = self.files.folder, self.config.vocab_size
        return TextTokenizer(folder, size, truncation_side="right", frame=frame)

    def _score_tokens(self) -> ScoreTokens:
        """Return the tokens whose logits make the score: those that the checkpoint names, else "yes" and "no".

        A sequence classification model has no such tokens: row 0 of its head gives the score.
        """
        if self.spec.classifier:
            return ScoreTokens(0, None)
        yes, no = (self.tokenizer.token_id(word) for word in ("yes", "no"))
        tokens = self.spec.tokens
        if tokens is not None:
            if self.template is QWEN3_RERANKER and (tokens.true, tokens.false) != (yes, no):
                raise ConfigError(
                    f"{self.files.folder}: chat template",
                    "is not one for pairs, although LogitScore names its own tokens",
                    got=f"true {tokens.true}, false {tokens.false}",
                    expected=f'the tokens "yes" and "no", {yes} and {no}, or a template for pairs',
                    remedy="The text that this model needs for a pair is not known. Name another model.",
                )
            return tokens
        if yes is None or no is None:
            missing = "yes" if yes is None else "no"
            raise WeightsError(
                str(self.tokenizer.path),
                f'has no token "{missing}"',
                expected='the tokens "yes" and "no", whose logits make the score',
                remedy="Name a reranker.",
            )
        return ScoreTokens(yes, no)

    @property
    def instruction(self) -> str | None:
        """The instruction for calls that give none. It can be set; None selects the checkpoint's instruction."""
        return self._instruction

    @instruction.setter
    def instruction(self, instruction: str | None) -> None:
        self._instruction = None if instruction is None else _check_instruction(instruction)

    @property
    def activation_fn(self) -> Activation:
        """The function from log-odds [N, 1] to scores. It can be set; None selects the checkpoint's activation."""
        own: Activation = torch.sigmoid if self.spec.sigmoid else _identity
        return own if self._activation_fn is None else self._activation_fn

    @activation_fn.setter
    def activation_fn(self, activation_fn: Activation | None) -> None:
        check_functions(activation_fn=activation_fn)
        self._activation_fn = activation_fn

    def identity(self) -> str:
        """Hash the model itself, apart from the settings of a run.

        The hashed parts are the weights, the score row, the tokenizer, the template and the config's numeric settings.
        """
        return fingerprint(
            weights=self.checkpoint.fingerprint,
            score=hashlib.sha256(bytes(tensor_bytes(self.score_row))).hexdigest(),
            tokenizer=self.tokenizer.file_hash,
            template=astuple(self.template),
            config=self.config.numeric_settings(),
        )

    def run_fingerprint(self, instruction: str | None = None) -> str:
        """Hash what log-odds depend on, besides the pairs: the model, the instruction and the settings of the run.

        The device, the number of threads and max_batch_tokens are left out, although they may change the rounding.

        Args:
            instruction: the instruction of a call; by default, the one that a call without an instruction uses.
        """
        return fingerprint(
            model=self.identity(),
            instruction=self.resolve_instruction(PredictKwargs(instruction=instruction)),
            dtype=str(self.dtype),
            quantize=quantize_identity(self.quantize, self.device),
            max_length=self.max_length,
        )

    def resolve_instruction(self, kwargs: PredictKwargs) -> str:
        """Return the instruction for one call.

        The first of these that is given: the call's `instruction`; the call's `prompt`; the entry of `prompts` that the
        call's `prompt_name` names; the `instruction` of this object; the entry of `prompts` that `default_prompt_name`
        names; the instruction in the template.

        Raises:
            ConfigError: `prompt_name` is unknown, or the instruction is not valid text.
        """
        name, given = kwargs.get("prompt_name"), kwargs.get("instruction")
        check_choice(name, None)
        given = kwargs.get("prompt") if given is None else given
        if given is not None:
            return _check_instruction(given)
        if name is None and self.instruction is not None:
            return self.instruction
        if name is None and self.default_prompt_name is None:
            return self.template.instruction
        return _check_instruction(choose_prompt(self.prompts, name, self.default_prompt_name, None))

    def predict_options(self, kwargs: PredictKwargs) -> EncodeOptions:
        """Check all settings of one call, and fill in the defaults.

        Raises:
            ConfigError: a setting is not accepted.
        """
        check_report(kwargs.get("report"))
        check_switches(show_progress_bar=kwargs.get("show_progress_bar"))
        check_functions(activation_fn=kwargs.get("activation_fn"))
        prompt = self.template.prompt(self.resolve_instruction(kwargs))
        one = VectorFormat(1, normalize=False)
        return EncodeOptions(prompt, self.max_length, one, kwargs.get("too_long", "cut"))


def is_reranker(folder: Path, name: str) -> bool:
    """Return whether a model is a reranker, according to its files or, if they do not tell, to its name.

    Args:
        folder: the model's folder.
        name: the Hugging Face id or the folder, as the caller gave it.
    """
    try:
        spec = read_reranker_spec(folder, read_config(folder, reranker=True))
        own = parse_template(spec.chat_template, f"{folder}: chat template")
    except LastwordError:  # for example, the modules of an embedding model
        return False
    known = spec.classifier or spec.tokens is not None or own is not None
    return known or is_named_reranker(folder, name)


def reranker_options(options: dict[str, Any], **others: object) -> dict[str, Any]:
    """Check that a reranker accepts keyword arguments of `Embedder`; return them as keyword arguments of `Reranker`.

    Args:
        options: keyword arguments of `Embedder`.
        others: other settings that only embedding models have; a value of None or False means "not given".

    Raises:
        ConfigError: truncate_dim or one of `others` is given.
    """
    refuse_for_reranker({"truncate_dim": options.get("truncate_dim")} | others)
    return {name: value for name, value in options.items() if name != "truncate_dim"}


def refuse_for_reranker(given: Mapping[str, object]) -> None:
    """Raise ConfigError if a setting that only embedding models have is given.

    Args:
        given: the settings by name; a value of None or False means "not given".
    """
    for name, value in given.items():
        if value not in (None, False):
            what, expected = "is for embedding models only", "none, because the model is a reranker"
            raise ConfigError(name, what, got=str(value), expected=expected)


def _check_instruction(instruction: object) -> str:
    if not isinstance(instruction, str):
        raise ConfigError(
            "instruction", "not a string", got=short_repr(instruction), expected="str"
        )
    return check_prompt(instruction)


def _identity(scores: Tensor) -> Tensor:
    return scores


def activate(activation: Activation, scores: Tensor) -> Tensor:
    """Apply an activation function to log-odds [N]; the function gets [N, 1], as in sentence-transformers.

    Returns:
        The scores [N], fp32.

    Raises:
        ConfigError: the activation does not return N numbers.
    """
    result: object = activation(scores[:, None])
    if not isinstance(result, Tensor) or result.numel() != len(scores):
        got = short_repr(result) if not isinstance(result, Tensor) else str(list(result.shape))
        expected = f"a tensor of {count(len(scores), 'number')}"
        raise ConfigError("activation_fn", "returns something else", got=got, expected=expected)
    return result.reshape(len(scores)).float()
