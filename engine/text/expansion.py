"""How much a tokenizer's normaliser can lengthen a text.

A chain of rules that each double the text could turn a few letters into gigabytes, so the rules are checked before any
text is normalised.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

from lastword.errors import ConfigError

# Largest accepted number of characters made from one. Real tokenizers replace a space by one or two characters, or put
# one character before a text.
_MOST = 64
# Largest number of characters that each normaliser makes from one character, in common scripts.
_FORMS = {"NFKC": 4, "NFKD": 4, "NFD": 4, "BertNormalizer": 1, "ByteLevel": 4}


def most_characters(normalizer: Any, where: str) -> int:
    """Return the largest number of characters that a normaliser can make from one character; 1 without a normaliser.

    Args:
        normalizer: a normaliser of the tokenizers library, or None.
        where: the file that the normaliser is from, for the error message.

    Raises:
        ConfigError: the number is larger than 64.
    """
    if normalizer is None:
        return 1
    factor = _factor(json.loads(normalizer.__getstate__()))
    if factor > _MOST:
        raise ConfigError(
            where,
            "its normaliser makes texts too long",
            got=f"up to {min(factor, 10**9):,} characters for one",
            expected=f"at most {_MOST}",
            remedy="Use the tokenizer that belongs to these weights.",
        )
    return factor


def _factor(rule: Mapping[str, Any]) -> int:
    kind = rule.get("type")
    if kind == "Sequence":
        product = 1
        for each in rule["normalizers"]:
            product = min(product * _factor(each), 10**9)
        return product
    if kind == "Replace":
        text = rule["pattern"].get("String")
        # A regular expression may match the empty string between any two characters.
        return max(1, len(rule["content"])) if text else 1 + len(rule["content"])
    if kind == "Prepend":
        return 1 + len(rule["prepend"])
    if kind == "Precompiled":
        return max(map(len, base64.b64decode(rule["precompiled_charsmap"]).split(b"\0")))
    return _FORMS.get(str(kind), 1)
