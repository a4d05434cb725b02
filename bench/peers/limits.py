"""Compute the least time of a workload on this machine, from the rates of the best matmul and of reading weights.

Both rates are measured in the run. A call reads every weight once, so reading limits a call with few rows, and matmuls
limit a call with many rows.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from lastword.bench.measure import matmul_rate, read_rate
from lastword.bench.models.flops import Work, needed_flops, work
from lastword.bench.models.workloads import Workload
from lastword.bench.peers.libraries import Setup
from lastword.weights import ModelConfig
from lastword.weights.tensor_names import EMBEDDING, expected_shapes

BYTES = {"fp32": 4, "bf16": 2, "8bit": 1}  # bytes of one weight
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": torch.int8}


@dataclass(slots=True)
class Rates:
    """The best rates of the run: operations per second by precision, and bytes read per second."""

    flops_per_s: dict[str, float]
    read_bytes_per_s: float

    @staticmethod
    def measure(precisions: list[str], device: torch.device) -> "Rates":
        """Measure every rate once."""
        rates = Rates({}, read_rate(device))
        for precision in precisions:
            rates.improve(precision, device)
        return rates

    def improve(self, precision: str, device: torch.device) -> None:
        """Measure the matmul of a precision once more; keep the new rate if it is better."""
        rate, _ = matmul_rate(device, _DTYPES[precision])
        self.flops_per_s[precision] = max(self.flops_per_s.get(precision, 0.0), rate)


@dataclass(frozen=True, slots=True)
class WorkloadCost:
    """What a workload needs: the tokens of its texts, the tokens to compute, and the FLOPs of each call."""

    tokens_requested: int
    tokens: int
    call_flops: list[int]


def workload_cost(setup: Setup, load: Workload) -> WorkloadCost:
    """Count what a workload needs; the prompt counts only in `tokens_requested`, as if kept from an earlier call."""
    ids = setup.tokenize(load.texts, load.kind)
    prompt = setup.prompt_ids(load.kind)
    groups = [[one] for one in ids] if load.one_by_one else [ids]
    calls = [_work_after_prompt(prompt, group) for group in groups]
    return WorkloadCost(
        sum(map(len, ids)),
        sum(call.tokens for call in calls),
        [needed_flops(setup.config, call) for call in calls],
    )


def _work_after_prompt(prompt: list[int], ids: list[list[int]]) -> Work:
    """Count the work of texts without the work that their prompt alone would need."""
    if not prompt:
        return work(ids)
    both, alone = work([prompt, *ids]), work([prompt])
    return Work(
        sum(map(len, ids)),
        both.tokens - alone.tokens,
        both.finals - alone.finals,
        both.pairs - alone.pairs,
        both.final_pairs - alone.final_pairs,
    )


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Return the bytes of all weight matrices, without the embedding table, of which a call reads only a few rows."""
    shapes = expected_shapes(config)
    numbers = sum(
        prod(shape) for name, shape in shapes.items() if len(shape) > 1 and name != EMBEDDING
    )
    return numbers * BYTES[precision]


def limit(
    amount: WorkloadCost, config: ModelConfig, precision: str, rates: Rates
) -> tuple[float, Literal["matmul", "weights"]]:
    """Return a workload's shortest possible time in seconds, and whether matmuls or reading the weights take longer."""
    read_s = weight_bytes(config, precision) / rates.read_bytes_per_s
    matmuls_s = [flops / rates.flops_per_s[precision] for flops in amount.call_flops]
    seconds = sum(max(matmul_s, read_s) for matmul_s in matmuls_s)
    return seconds, "matmul" if sum(matmuls_s) >= read_s * len(matmuls_s) else "weights"
