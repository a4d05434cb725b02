"""lastword on mteb's benchmarks: mteb brings tasks, instructions and metrics, lastword the vectors.

A door: it calls `Embedder`. Everything that needs mteb is imported when `evaluate` runs.
"""

from lastword.evaluate.run import BenchmarkScore, Evaluation, evaluate

__all__ = ["BenchmarkScore", "Evaluation", "evaluate"]
