"""Check lastword's vectors of a model against transformers, in named checks.

An entry point: it uses the public `Embedder`, and computes the reference with transformers, with one layer of the model
in memory at a time. transformers is imported only when `verify` runs.
"""

from lastword.verify.verdict import Check, LayerError, Verdict
from lastword.verify.verification import verify

__all__ = ["Check", "LayerError", "Verdict", "verify"]
