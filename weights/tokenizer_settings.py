"""Read what tokenizer_config.json, special_tokens_map.json and added_tokens.json say about tokens.

lastword takes its tokens from tokenizer.json alone. transformers also follows these other files, so it may add tokens,
split texts differently, or cut them at a different length. So each setting is either applied, or ignored because it
cannot change a token, or refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from lastword.errors import ConfigError, list_some
from lastword.weights.files.reading import has_file
from lastword.weights.json_fields import MAX_INT, Fields, read_optional_object, show_value

if TYPE_CHECKING:
    from tokenizers import AddedToken

# The classes for which transformers uses tokenizer.json, or builds an equal tokenizer from it. Other classes split
# texts in their own ways.
TOKENIZER_CLASSES = (
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "PreTrainedTokenizerFast",
    "PreTrainedTokenizer",
    "TokenizersBackend",
    None,
)
_REBUILT = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
# Keyword arguments that say where the files are and how they are fetched.
LOADING = frozenset(
    "cache_dir code_revision force_download local_files_only proxies revision subfolder token trust_remote_code "
    "use_auth_token".split()
)
_HARMLESS = LOADING | frozenset(
    # Decoding, and the format of chats.
    "chat_control_tokens chat_template clean_up_tokenization_spaces errors response_schema response_template "
    "spaces_between_special_tokens "
    # Padding, which lastword does not use.
    "pad_to_multiple_of pad_token_type_id padding_side "
    # Read by the tokenizers of other models only.
    "do_basic_tokenize do_lower_case legacy never_split sp_model_kwargs strip_accents tokenize_chinese_chars "
    "use_default_system_prompt "
    # Settings of single calls, and notes of transformers to itself.
    "backend device_map dtype files_loaded from_slow is_local max_length stride torch_dtype truncation_strategy "
    "use_fast verbose".split()
)
# Ignored in a file beside a tokenizer.json, but not among keyword arguments.
_HARMLESS_IN_FILE = frozenset(
    "add_bos_token add_eos_token merges_file name_or_path special_tokens_map_file tokenizer_file vocab_file".split()
)
_READ = frozenset(
    "added_tokens_decoder additional_special_tokens extra_special_tokens max_len model_max_length "
    "model_specific_special_tokens truncation_side".split()
)
# Settings accepted only with the values listed here: with any other value, transformers would behave differently.
_ONLY: dict[str, tuple[object, ...]] = {
    "add_prefix_space": (False, None),
    "auto_map": (None, {}),
    "fast_tokenizer_files": (None, []),
    "fix_mistral_regex": (False, None),
    "init_inputs": (None, []),
    "model_input_names": (
        ["input_ids", "attention_mask"],
        ["input_ids", "token_type_ids", "attention_mask"],
    ),
    "processor_class": (None,),
    "split_special_tokens": (False,),
    "tokenizer_class": TOKENIZER_CLASSES,
}
_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
# The properties of a token that determine where it is found in a text.
_PROPERTIES = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True, slots=True)
class DeclaredToken:
    """A token that a file beside tokenizer.json names; tokenizer.json must have it too."""

    where: str  # the file and key that name the token, for error messages
    content: str
    number: int | None  # the token's id, if the file states it
    properties: Mapping[str, object]  # those of `_PROPERTIES` that the file states


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """The settings of the files beside tokenizer.json.

    Args:
        limit: maximum tokens per text according to the keyword arguments, or None; it overrides every other limit.
        model_max_length: maximum tokens per text according to tokenizer_config.json, or None.
        truncation_side: the end at which a text that is too long is cut; None means as tokenizer.json says.
        tokens: every token that one of the files names.
        complete: the file and key, for error messages, of a list of all added tokens; None if there is no such list.
        rebuilt: the file and key, for error messages, of the setting that makes transformers use Qwen's normaliser
            and word pattern, whatever tokenizer.json says; None if there is no such setting.
    """

    limit: int | None
    model_max_length: int | None
    truncation_side: Literal["right", "left"] | None
    tokens: tuple[DeclaredToken, ...]
    complete: str | None
    rebuilt: str | None


def read_tokenizer_settings(folder: Path, keywords: Fields) -> TokenizerSettings:
    """Read the tokenizer's settings.

    Args:
        folder: the model's folder.
        keywords: the keyword arguments for the tokenizer in sentence_bert_config.json; they override the files.

    Raises:
        WeightsError: a file cannot be read.
        ConfigError: a setting is not supported.
    """
    path = folder / "tokenizer_config.json"
    config = Fields(read_optional_object(path) or {}, str(path))
    tokens = []
    for fields, ignored in ((config, _HARMLESS_IN_FILE), (keywords, frozenset[str]())):
        special = {key for key in fields.values if _names_token(key)}
        fields.refuse_unknown(_HARMLESS | ignored | _READ | _ONLY.keys() | special)
        for key, allowed in _ONLY.items():
            fields.only(key, *allowed)
        tokens += [*_special_tokens(fields), *_decoder_tokens(fields)]
    tokens += [*_map_tokens(folder), *_added_tokens(folder)]
    return TokenizerSettings(
        limit=_length(keywords),
        model_max_length=_length(config),
        truncation_side=_side(keywords) or _side(config),
        tokens=tuple(tokens),
        complete=f"{path}: added_tokens_decoder"
        if "added_tokens_decoder" in config.values
        else None,
        rebuilt=_reason_for_rebuild(folder, config),
    )


def _reason_for_rebuild(folder: Path, config: Fields) -> str | None:
    """Return the file and key of a class that makes transformers build Qwen's tokenizer; None for any other class.

    If no class is stated, the default is such a class, and the result has no key.
    """
    if not has_file(Path(config.where)):
        return None
    model = folder / "config.json"
    for fields in (config, Fields(read_optional_object(model) or {}, str(model))):
        name = fields.values.get("tokenizer_class")
        if name is not None:
            return f"{fields.where}: tokenizer_class" if name in _REBUILT else None
    return config.where  # if no class is stated, the model type selects Qwen2Tokenizer


def check_pipeline(settings: TokenizerSettings, *, qwen: bool) -> None:
    """Refuse a tokenizer.json whose normaliser and word pattern transformers would replace by Qwen's.

    Args:
        settings: from `read_tokenizer_settings`.
        qwen: whether tokenizer.json normalises texts and splits them into words as Qwen's tokenizers do.

    Raises:
        ConfigError: transformers would normalise and split texts differently.
    """
    if settings.rebuilt is not None and not qwen:
        raise ConfigError(
            settings.rebuilt,
            "contradicts tokenizer.json",
            got="Qwen2Tokenizer, by name or by default",
            expected="a tokenizer.json with Qwen's normaliser and word pattern",
            remedy='If tokenizer.json is right, set tokenizer_class to "PreTrainedTokenizerFast".',
        )


def _names_token(key: str) -> bool:
    return key.endswith("_token") and key not in (
        "add_bos_token",
        "add_eos_token",
        "use_auth_token",
    )


def _length(fields: Fields) -> int | None:
    """Return the maximum tokens per text, or None; about 1e30, transformers' "no limit", becomes `MAX_INT`."""
    key = "model_max_length" if "model_max_length" in fields.values else "max_len"
    if fields.values.get(key) is None:
        return None
    return int(min(fields.number(key, above=1.0), MAX_INT))


def _side(fields: Fields) -> Literal["right", "left"] | None:
    fields.only("truncation_side", "right", "left")
    side: Literal["right", "left"] | None = fields.values.get("truncation_side")
    return side


def _special_tokens(fields: Fields) -> list[DeclaredToken]:
    """Return the tokens that are named by keys such as `eos_token` and by the lists of special tokens."""
    found = [
        (f"{fields.where}: {key}", value)
        for key, value in fields.values.items()
        if _names_token(key)
    ]
    for key in _LISTS:
        value = fields.values.get(key)
        if value is not None and not isinstance(value, list | dict):
            fields.fail(key, "a list or an object of tokens")
        values = list(value.values()) if isinstance(value, dict) else value or []
        found += [(f"{fields.where}: {key}", each) for each in values]
    return [_token(where, value) for where, value in found if value not in (None, "")]


def _decoder_tokens(fields: Fields) -> list[DeclaredToken]:
    where = f"{fields.where}: added_tokens_decoder"
    decoder = fields.object("added_tokens_decoder") or {}
    return [_token(f"{where}: {key}", value, _number(where, key)) for key, value in decoder.items()]


def _map_tokens(folder: Path) -> list[DeclaredToken]:
    """Read special_tokens_map.json; keys that do not name tokens are refused, because transformers uses every key."""
    path = folder / "special_tokens_map.json"
    fields = Fields(read_optional_object(path) or {}, str(path))
    fields.refuse_unknown({key for key in fields.values if _names_token(key)} | set(_LISTS))
    return _special_tokens(fields)


def _added_tokens(folder: Path) -> list[DeclaredToken]:
    """Read added_tokens.json, which maps tokens to ids."""
    path = folder / "added_tokens.json"
    values = read_optional_object(path) or {}
    return [_token(str(path), content, _number(str(path), n)) for content, n in values.items()]


def _number(where: str, value: object) -> int:
    """Check a token's id and return it; a string of digits is accepted too, because JSON keys are strings."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 11:
        return int(value)
    if type(value) is not int:
        raise ConfigError(where, "wrong content", got=show_value(value), expected="a token's id")
    return value


def _token(where: str, value: object, number: int | None = None) -> DeclaredToken:
    """Read a token that is stated as a string, or as an object with its properties."""
    properties = value if isinstance(value, dict) else {}
    content = properties.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        expected = "a token: a string, or an object with its content"
        raise ConfigError(where, "wrong content", got=show_value(value), expected=expected)
    stated = {name: properties[name] for name in _PROPERTIES if name in properties}
    return DeclaredToken(where, content, number, stated)


def check_tokens(settings: TokenizerSettings, added: Mapping[int, "AddedToken"]) -> None:
    """Check that tokenizer.json has every token that the other files declare, with the same id and properties.

    Args:
        settings: from `read_tokenizer_settings`.
        added: the added tokens of tokenizer.json by their ids.

    Raises:
        ConfigError: tokenizer.json lacks a declared token, or its id or properties differ; or a list of all added
            tokens lacks one that tokenizer.json has.
    """
    known = {token.content: (number, token) for number, token in added.items()}
    for declared in settings.tokens:
        if declared.content not in known:
            _contradiction(declared.where, show_value(declared.content), "an added token")
        number, token = known[declared.content]
        if declared.number not in (None, number):
            _contradiction(declared.where, f"id {declared.number}", f"id {number}")
        for name, value in declared.properties.items():
            if value is not getattr(token, name):
                got, expected = f"{name} {show_value(value)}", show_value(getattr(token, name))
                _contradiction(declared.where, got, f"{name} {expected}")
    if settings.complete is not None:
        missing = known.keys() - {declared.content for declared in settings.tokens}
        if missing:
            got, expected = f"a list without {list_some(missing)}", "every added token"
            _contradiction(settings.complete, got, expected)


def _contradiction(where: str, got: str, expected: str) -> NoReturn:
    raise ConfigError(
        where,
        "contradicts tokenizer.json",
        got=got,
        expected=f"{expected}, as in tokenizer.json",
        remedy="Save the tokenizer again with transformers, or correct the entry.",
    )
