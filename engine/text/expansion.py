"""How much a tokenizer's normaliser can lengthen a text.

A few rules that each double the text make gigabytes of a few letters, so the rules are looked at before any text is.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

from lastword.errors import ConfigError

# Real tokenizers replace a space by one or two characters, or begin a text with one.
_MOST = 64
# Unicode's compatibility forms and lower case make up to this many characters of one, in common scripts.
_FORMS = {"NFKC": 4, "NFKD": 4, "NFD": 4, "BertNormalizer": 1, "ByteLevel": 4}


def most_characters(normalizer: Any, where: str) -> int:
    """Return how many characters a normaliser makes of one, at most; 1 without a normaliser.

    Args:
        normalizer: a normaliser of the tokenizers library, or None.
        where: the file, for the error.

    Raises:
        ConfigError: it makes more than is accepted.
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
        # A pattern may match between any two characters.
        return max(1, len(rule["content"])) if text else 1 + len(rule["content"])
    if kind == "Prepend":
        return 1 + len(rule["prepend"])
    if kind == "Precompiled":
        return max(map(len, base64.b64decode(rule["precompiled_charsmap"]).split(b"\0")))
    return _FORMS.get(str(kind), 1)
