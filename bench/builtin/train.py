"""Distillation: train the student so that its vectors match the teacher's.

A `TrainingRun` has the settings of a run. Its state is saved every few steps, and a stopped run continues from the last
save.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.bench.builtin.batches import Data, TrainingBatch, training_batches
from lastword.bench.builtin.student import MATRYOSHKA

MATRIX_WEIGHT = 20.0
ANSWER_WEIGHT = 0.1
TEMPERATURE = 0.05
WARMUP = 50
SAVE_EVERY = 25
CHECK_EVERY = 100

Check = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class TrainingRun:
    """The settings of one training run."""

    name: str
    chosen: Sequence[int]  # indices of the items to train on
    steps: int
    tokens: int  # tokens of the texts of one batch, which is one step
    seed: int
    rate: float  # the highest learning rate
    horizon: int | None = None  # step at which the learning rate is lowest; None: the last step
    end: float = 0.02  # the lowest rate, as a share of `rate`


def basis(vectors: Tensor, width: int) -> Tensor:
    """Return the first principal directions of the teacher's vectors (not centred).

    Args:
        vectors: the teacher's vectors, [N, 384].
        width: number of directions.

    Returns:
        [384, width] fp32, orthonormal, in order of decreasing second moment.
    """
    vectors = vectors.double()
    directions: Tensor = torch.linalg.eigh(vectors.T @ vectors)[1]
    return directions.flip(1)[:, :width].float()


def train(
    run: TrainingRun, model: Any, data: Data, directions: Tensor, folder: Path, check: Check
) -> None:
    """Train `model` in place; write the log to `folder/<name>.jsonl` and the state to `folder/<name>.pt`.

    Args:
        run: the run's settings.
        model: a Qwen3Model of transformers.
        data: token ids and the teacher's vectors of all items.
        directions: principal directions of the teacher's vectors, from `basis`.
        folder: the folder with the logs and states of all runs.
        check: a function that scores the model, called every `CHECK_EVERY` steps for the log.
    """
    state, log = folder / f"{run.name}.pt", folder / f"{run.name}.jsonl"
    optimizer = _optimizer(model)
    step = _load(state, model, optimizer)
    began, tokens, sums = time.perf_counter(), 0, dict[str, float]()
    endless = training_batches(data, run.chosen, run.tokens, run.seed, step)
    for batch in itertools.islice(endless, run.steps - step):
        for group in optimizer.param_groups:
            group["lr"] = _rate(run, step)
        loss, parts = _loss(model, batch, directions)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        tokens += sum(map(len, batch.texts + batch.queries))
        for key, value in parts.items():
            sums[key] = sums.get(key, 0.0) + value / SAVE_EVERY
        last = step == run.steps
        if step % SAVE_EVERY == 0 or last:
            seconds = time.perf_counter() - began
            scores = check(model) if step % CHECK_EVERY == 0 or last else {}
            rate = {"tokens_per_second": tokens / seconds, "seconds": seconds}
            _write(log, {"run": run.name, "step": step, "of": run.steps} | sums | scores | rate)
            _save(state, model, optimizer, step)
            began, tokens, sums = time.perf_counter(), 0, {}


def embed(model: Any, texts: Sequence[Sequence[int]]) -> Tensor:
    """Run the student on token ids; return the final state of each text's last token, fp32 [N, C], not normalised.

    Texts are padded on the right without a mask, because attention is causal and no real token attends to padding. In
    the last layer only the last tokens go through the MLP, which saves a sixth of the work.
    """
    ends = torch.tensor([len(ids) - 1 for ids in texts])
    width = int(ends.max()) + 1
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts])
    last, mlp = (torch.arange(len(ids)), ends), model.layers[-1].mlp
    take = mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0][last],))
    give = mlp.register_forward_hook(
        lambda _, __, out: out.new_zeros(*ids.shape, out.shape[-1]).index_put(last, out)
    )
    with take, give, torch.autocast("cpu", torch.bfloat16):
        states: Tensor = model(input_ids=ids, attention_mask=None).last_hidden_state
    return states[last].float()


def _loss(model: Any, batch: TrainingBatch, directions: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss, and its parts for the log; each part is a mean over the Matryoshka widths k.

    Direction: 1 - cosine between the vector and the teacher's vector in the first k principal directions.
    Matrix:    mean squared difference between the cosines of all pairs in the batch and the teacher's cosines.
    Answer:    cross-entropy of each query over the batch's texts; the target is half the teacher's softmax and half
               the text that answers the query.
    """
    states, goal = embed(model, batch.texts), batch.text_vectors
    if batch.queries:
        states = torch.cat([states, embed(model, batch.queries)])
        goal = torch.cat([goal, batch.query_vectors])
    cosines, reduced = goal @ goal.T, goal @ directions
    n = len(batch.texts)
    off = ~torch.eye(len(goal), dtype=torch.bool)
    pairs = max(1, len(goal) * (len(goal) - 1))  # a batch may have only one text
    answers = F.one_hot(torch.tensor(batch.answers, dtype=torch.long), n).float()
    wanted = 0.5 * answers + 0.5 * (cosines[n:, :n] / TEMPERATURE).softmax(-1)
    direction = matrix = answer = torch.zeros(())
    for k in MATRYOSHKA:
        unit = F.normalize(states[:, :k], dim=-1)
        direction = direction + (1 - (unit * F.normalize(reduced[:, :k], dim=-1)).sum(-1)).mean()
        own = unit @ unit.T
        matrix = matrix + (own - cosines)[off].square().sum() / pairs
        if batch.queries:
            answer = answer + F.cross_entropy(own[n:, :n] / TEMPERATURE, wanted)
    parts = [part / len(MATRYOSHKA) for part in (direction, matrix, answer)]
    loss = parts[0] + MATRIX_WEIGHT * parts[1] + ANSWER_WEIGHT * parts[2]
    names = ("direction", "matrix", "answer", "loss")
    return loss, {k: float(v.detach()) for k, v in zip(names, (*parts, loss), strict=True)}


def _optimizer(model: Any) -> torch.optim.AdamW:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _rate(run: TrainingRun, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a period of a cosine down to the lowest rate."""
    if step < WARMUP:
        return run.rate * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, (run.horizon or run.steps) - WARMUP)
    return run.rate * (run.end + (1 - run.end) * 0.5 * (1 + math.cos(math.pi * done)))


def _load(path: Path, model: Any, optimizer: torch.optim.AdamW) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _save(path: Path, model: Any, optimizer: torch.optim.AdamW, step: int) -> None:
    part = path.with_suffix(".part")
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(saved, part)
    part.rename(path)


def _write(log: Path, values: dict[str, Any]) -> None:
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print("train:", line, flush=True)
