"""Score models on mteb's benchmarks: mteb provides tasks, instructions and metrics, lastword computes the vectors.

An entry point: it uses the public `Embedder` only. mteb is imported only when `evaluate` runs.
"""

from lastword.evaluate.evaluation import BenchmarkScore, Evaluation, evaluate

__all__ = ["BenchmarkScore", "Evaluation", "evaluate"]
