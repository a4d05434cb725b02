"""Run vLLM in its own interpreter, as the child process of a `Child` (`child.py`).

    PYTHON vllm_child.py FOLDER DTYPE LONGEST TASK OVERRIDES BLOCK

LONGEST is the number of tokens of the longest text, TASK is embed or score, OVERRIDES is vLLM's hf_overrides as JSON,
and BLOCK is the number of tokens of a block of the prefix cache, or 0 for vLLM's default. This script imports only vLLM
and the standard library, because lastword is not installed in that interpreter.
"""

import array
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any


def _peak() -> int:
    """Return the sum of the peak resident bytes of all processes in this process's group."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getpgid(int(status.parent.name)) != os.getpgrp():
                continue
            lines = status.read_text(errors="replace").splitlines()
        except OSError:  # the process has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return total


def _run(model: Any, order: dict[str, Any]) -> dict[str, Any]:
    import vllm

    load = json.loads(Path(order["texts"]).read_text())
    skip = {"skip_reading_prefix_cache": not order["cache"]}
    if load["kind"] == "pair":
        params = vllm.PoolingParams(use_activation=False, **skip)
        start = perf_counter()
        outputs = model.score(*load["parts"], pooling_params=params, use_tqdm=False)
    else:
        texts = [load["prompt"] + text for text in load["texts"]]
        calls = [[text] for text in texts] if load["one_by_one"] else [texts]
        params = vllm.PoolingParams(**skip)
        start = perf_counter()
        several = (model.embed(call, pooling_params=params, use_tqdm=False) for call in calls)
        outputs = [each for call in several for each in call]
    seconds = perf_counter() - start
    # A run that skips the cache still writes to it, and the next run may have the same texts.
    if not order["cache"]:
        model.reset_prefix_cache()
    if order["save"]:
        rows = (array.array("f", _numbers(each.outputs)).tobytes() for each in outputs)
        Path(order["save"]).write_bytes(b"".join(rows))
    return {"seconds": seconds, "cached_tokens": sum(each.num_cached_tokens for each in outputs)}


def _numbers(output: Any) -> list[float]:
    """Return the numbers of one output: a vector's numbers, or a single score."""
    return [output.score] if hasattr(output, "score") else output.embedding


def _serve(folder: str, dtype: str, longest: str, task: str, overrides: str, block: str) -> None:
    # vLLM and its processes print on stdout, so their stdout becomes stderr, and only answers go to the real stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        import vllm

        model = vllm.LLM(
            model=folder,
            runner="pooling",
            dtype=dtype,
            max_model_len=int(longest),
            enable_prefix_caching=True,
            **({} if block == "0" else {"block_size": int(block)}),
            **({} if task == "embed" else {"hf_overrides": json.loads(overrides)}),
        )
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        raise
    answer({})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer({"bytes": _peak()} if order["do"] == "peak" else _run(model, order))
        except Exception as error:  # noqa: BLE001 - the other end prints it
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    _serve(*sys.argv[1:])
