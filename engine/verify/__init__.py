"""Check lastword's vectors, or a reranker's scores, against those of transformers, in named checks.

This package is an entry point: it uses the public `Embedder` and `Reranker`. transformers computes the reference, with
one layer of the model in memory at a time, and is imported only when `verify` runs.
"""

from lastword.verify.verdict import Check, LayerError, Verdict
from lastword.verify.verification import verify

__all__ = ["Check", "LayerError", "Verdict", "verify"]
