"""Are an engine's vectors the model's vectors? lastword beside transformers, check by check.

An entry point: it opens `Embedder` as any caller does and computes the truth with transformers, one layer in memory
at a time. Everything that needs transformers is imported when `verify` runs.
"""

from lastword.verify.verdict import Check, LayerError, Verdict
from lastword.verify.verification import verify

__all__ = ["Check", "LayerError", "Verdict", "verify"]
