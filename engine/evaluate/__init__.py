"""Score models on mteb's benchmarks. mteb provides tasks, instructions and metrics; lastword, vectors and scores.

This package is an entry point: it runs models only through the public `Embedder` and `Reranker`. mteb is imported only
when `evaluate` runs.
"""

from lastword.evaluate.evaluation import BenchmarkScore, Evaluation, evaluate

__all__ = ["BenchmarkScore", "Evaluation", "evaluate"]
