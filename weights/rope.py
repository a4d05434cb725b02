"""Read the rotary settings of config.json, in either of the two formats that transformers writes.

transformers 4 writes `rope_theta` and `rope_scaling` at the top level; transformers 5 writes one object,
`rope_parameters`. A reader of only one format would silently use the default theta of 10,000 or ignore yarn, so both
are read and checked here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lastword.errors import ConfigError, list_some
from lastword.weights.json_fields import Fields, show_value

_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_YARN = _COMMON | {
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
}
_LAYER_KINDS = frozenset({"full_attention", "sliding_attention"})
PARTIAL_ROTATION = "Partially rotated heads are not supported. Name another model."


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary settings with every default resolved; `attention_factor` multiplies cos and sin.

    All fields except `theta` and `kind` belong to yarn. If `kind` is "default", they have no effect.
    """

    theta: float
    kind: str  # "default" or "yarn"
    factor: float
    original_max_position_embeddings: int  # 0 if `kind` is "default"
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


def _merge_formats(config: Fields) -> dict[str, Any]:
    """Merge both formats into one object without nulls; an inner theta overrides the top-level one."""
    old, new = config.object("rope_scaling"), config.object("rope_parameters")
    if old and new and old != new:
        what = "rope_scaling and rope_parameters disagree"
        raise ConfigError(config.where, what, remedy="Remove the wrong one from the file.")
    found = dict(new or old or {})
    if found and found.keys() <= _LAYER_KINDS:
        found = Fields(found, f"{config.where}: rope_parameters").object("full_attention") or {}
    given = {key: value for key, value in found.items() if value is not None}
    theta = config.values.get("rope_theta")
    return given if theta is None else {"rope_theta": theta} | given


def read_rope(values: Mapping[str, Any], where: str, max_positions: int) -> RopeConfig:
    """Read the rotary settings.

    Args:
        values: the whole object of config.json.
        where: the beginning of each error message.
        max_positions: `max_position_embeddings`, on which yarn's defaults depend.

    Raises:
        ConfigError: theta is missing, rope_type is neither default nor yarn, a setting is unknown or out of range, or
            the two formats disagree.
    """
    merged = _merge_formats(Fields(values, where))
    rope = Fields(merged, f"{where}: rotary settings")
    if merged.get("partial_rotary_factor", 1) != 1:
        rope.fail("partial_rotary_factor", "1", PARTIAL_ROTATION)
    kind = rope.text("rope_type") or rope.text("type") or "default"
    if kind not in ("default", "yarn"):
        raise ConfigError(
            f"{rope.where}: rope_type",
            "not supported",
            got=show_value(kind),
            expected="default or yarn",
            remedy="Name a model with one of these.",
        )
    unknown = merged.keys() - (_YARN if kind == "yarn" else _COMMON)
    if unknown:
        what = f"unknown settings for rope_type {kind}: {list_some(unknown)}"
        remedy = "They are not supported. Correct rope_type, or remove them from the file."
        raise ConfigError(rope.where, what, remedy=remedy)
    theta = rope.number("rope_theta", above=1.0)
    if kind == "default":
        return RopeConfig(theta, kind, 1.0, 0, 1.0, 32.0, 1.0, True)
    return _yarn(rope, theta, max_positions)


def _yarn(rope: Fields, theta: float, max_positions: int) -> RopeConfig:
    original = max_positions
    if "original_max_position_embeddings" in rope.values:
        original = rope.integer("original_max_position_embeddings")
    elif "factor" not in rope.values:
        rope.fail("factor", "a number of at least 1")
    factor = rope.number("factor", max_positions / original)
    if factor < 1 or (factor == 1 and "factor" not in rope.values):
        stretch = f"State it, or raise max_position_embeddings, which is {max_positions}, above {original}."
        remedy = None if "factor" in rope.values else stretch
        rope.fail("factor", "a number of at least 1", remedy)
    beta_fast, beta_slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
    if beta_fast < beta_slow:
        rope.fail("beta_fast", f"at least beta_slow, which is {beta_slow:g}")
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=_attention_factor(rope, factor),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=rope.boolean("truncate", default=True),
    )


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(rope: Fields, factor: float) -> float:
    """Return the factor of cos and sin: the stated one, else computed from the two mscales, else 0.1·ln(factor) + 1."""
    if "attention_factor" in rope.values:
        return rope.number("attention_factor")
    mscale = rope.number("mscale", 0.0, above=-1e-9)
    mscale_all_dim = rope.number("mscale_all_dim", 0.0, above=-1e-9)
    if mscale and mscale_all_dim:
        return _mscale(factor, mscale) / _mscale(factor, mscale_all_dim)
    return _mscale(factor)
