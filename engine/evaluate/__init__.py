"""Score models on mteb's benchmarks: mteb gives tasks, instructions and metrics, lastword vectors and scores.

An entry point: it uses the public `Embedder` and `Reranker` only. mteb is imported only when `evaluate` runs.
"""

from lastword.evaluate.evaluation import BenchmarkScore, Evaluation, evaluate

__all__ = ["BenchmarkScore", "Evaluation", "evaluate"]
