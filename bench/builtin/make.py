"""Make the built-in model: gather texts, compute the teacher's vectors, train, merge, evaluate, write the folder.

    python -m lastword.bench.builtin.make --cache .builtin

This needs an editable install with the `train` extra, on Debian or Ubuntu with a C++ compiler. Each step except `ship`
stores its output in the cache folder and is skipped if the output exists, so a stopped run can be continued. Training
saves its state every 25 steps and continues from the last save. The result is written to `weights/builtin/`.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lastword.bench.builtin.batches import read_data
from lastword.bench.builtin.corpus import build
from lastword.bench.builtin.exam import agreement, read_exam
from lastword.bench.builtin.packages import fetch_teacher, fetch_texts
from lastword.bench.builtin.ship import ship
from lastword.bench.builtin.student import (
    SIZES,
    compile_layers,
    make_student,
    make_tokenizer,
    token_rows,
    write_checkpoint,
)
from lastword.bench.builtin.teacher import SHARD, Teacher, embed_corpus, read_items, read_vectors
from lastword.bench.builtin.train import TrainingRun, basis, embed, train

SEED = 4
START, START_STEPS, START_TOKENS, START_RATE = "start", 1000, 6144, 1e-3
START_HORIZON = 2500  # step at which the rate would be lowest; "start" ends before that step
BAGS = {"bag-1": 0.8, "bag-2": 0.8}  # share of all items that each bag is trained on
BAG_STEPS, BAG_TOKENS, BAG_RATE = 9000, 3072, 8e-4
CHECKED = 500  # number of held-out sentences for the agreement in the log
OUT = Path(__file__).parents[2] / "weights" / "builtin"


STEPS = ("texts", "vectors", START, *BAGS, "ship")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lastword.bench.builtin.make", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--cache", type=Path, default=Path(".builtin"), help="default .builtin")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--step",
        choices=STEPS,
        help="run this step only; the bags can run at the same time, one process per bag",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cache, steps = options.cache.resolve(), STEPS if options.step is None else (options.step,)
    teacher = fetch_teacher(cache)
    if "texts" in steps:
        _texts(cache, teacher)
    if "vectors" in steps:
        embed_corpus(teacher, cache / "corpus", cache / "vectors")
    if trained := [step for step in steps if step in (START, *BAGS)]:
        trainer = _Trainer(cache, teacher)
        for name in trained:
            trainer.run(name)
    if "ship" in steps:
        print(ship(cache, START, BAGS, teacher, options.out))


def _texts(cache: Path, teacher: Path) -> None:
    if (cache / "corpus" / "heldout.json").exists():
        return
    vocabulary = (teacher / "vocab.txt").read_text(encoding="utf-8").split("\n")
    common = {word for word in vocabulary if word.isalpha() and len(word) > 1} | {"a"}
    build(fetch_texts(cache), common, cache / "corpus")


class _Trainer:
    """Trains the model `START`, then one model per bag, each of which continues from it.

    All trainings share the tokenizer, the teacher's vectors, the basis of these vectors, and the held-out sentences for
    the log.
    """

    def __init__(self, cache: Path, teacher: Path) -> None:
        corpus = cache / "corpus"
        self.folder, self.runs = cache / "made", cache / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        items = read_items(corpus)
        self.tokenizer = _tokenizer(cache, teacher, items)
        self.data = read_data(items, *read_vectors(cache / "vectors"), self.tokenizer)
        self.directions = basis(self.data.text_vectors[: 5 * SHARD], SIZES["hidden_size"])
        self.rows, self.sentences, self.agreed = _embed_pieces_and_sentences(
            cache, teacher, self.tokenizer, read_exam(corpus).sentences[:CHECKED]
        )
        self.shares = _shares(self.data.texts, len(self.rows))

    def run(self, name: str) -> None:
        """Train the model `START`, or a bag's model, which continues from it; write the checkpoint in fp32."""
        model = make_student(token_rows(self.rows @ self.directions, self.shares), SEED)
        if name == START:
            chosen: Sequence[int] = range(len(self.data.texts))
            run = TrainingRun(
                name, chosen, START_STEPS, START_TOKENS, SEED, START_RATE, START_HORIZON, end=0.3
            )
        else:
            seed, count = SEED + list(BAGS).index(name) + 1, len(self.data.texts)
            chosen = sorted(random.Random(seed).sample(range(count), int(BAGS[name] * count)))
            run = TrainingRun(name, chosen, BAG_STEPS, BAG_TOKENS, seed, BAG_RATE)
            start = torch.load(self.runs / f"{START}.pt", weights_only=True)
            model.load_state_dict(start["model"])
        compile_layers(model)
        train(run, model, self.data, self.directions, self.runs, self._check)
        write_checkpoint(model, self.tokenizer, self.folder / name, torch.float32)

    def _check(self, model: Any) -> dict[str, float]:
        ids = [e.ids for e in self.tokenizer.encode_batch_fast(self.sentences)]
        with torch.no_grad():
            return {"spearman": agreement(embed(model, ids), self.agreed)}


def _tokenizer(cache: Path, teacher: Path, items: list[dict[str, str]]) -> Tokenizer:
    path = cache / "tokenizer.json"
    if not path.exists():
        make_tokenizer(teacher, [text for item in items for text in item.values()]).save(str(path))
    return Tokenizer.from_file(str(path))


def _embed_pieces_and_sentences(
    cache: Path, teacher: Path, tokenizer: Tokenizer, sentences: list[str]
) -> tuple[Tensor, list[str], Tensor]:
    """Return the teacher's vectors for all word pieces, then the sentences, then its vectors for those sentences.

    The vectors are computed once and stored in the cache folder.
    """
    path = cache / "asked.pt"
    if not path.exists():
        vocabulary = tokenizer.get_vocab()
        pieces = [
            piece.removeprefix("##") for piece in sorted(vocabulary, key=vocabulary.__getitem__)
        ]
        model = Teacher(teacher, torch.bfloat16)
        torch.save({"rows": model.encode(pieces), "agreed": model.encode(sentences)}, path)
    saved = torch.load(path, weights_only=True)
    return saved["rows"], sentences, saved["agreed"]


def _shares(texts: Sequence[list[int]], size: int) -> Tensor:
    """Return each piece's share of the texts' tokens, with half a token added to every count: [V]."""
    counts = torch.full((size,), 0.5)
    for ids in texts:
        counts.index_add_(0, torch.tensor(ids), torch.ones(len(ids)))
    return counts / counts.sum()


if __name__ == "__main__":
    main()
