"""lastword on mteb's benchmarks: mteb brings tasks, instructions and metrics, lastword the vectors.

An entry point: it calls `Embedder`. Everything that needs mteb is imported when `evaluate` runs.
"""

from lastword.evaluate.evaluation import BenchmarkScore, Evaluation, evaluate

__all__ = ["BenchmarkScore", "Evaluation", "evaluate"]
