"""Score models and their teacher on held-out texts.

    python -m lastword.bench.builtin.exam FOLDER... --cache CACHE

There are three parts: finding the text of a function or command by its one-line summary; rank agreement with the
teacher on pairs of sentences; and finding the answers to a hundred everyday questions among a hundred passages
(`questions.jsonl`).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

QUESTIONS = Path(__file__).with_name("questions.jsonl")
PAIRS = 200_000
SEED = 4
TOP = 10


class Encoder(Protocol):
    """A model to evaluate: it turns queries and documents into vectors [N, C]."""

    def encode_query(self, texts: Sequence[str]) -> Tensor: ...

    def encode_document(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Exam:
    """The held-out texts: `passages[i]` belongs to `summaries[i]`, and `answers[i]` to `questions[i]`."""

    summaries: list[str]
    passages: list[str]
    sentences: list[str]
    questions: list[str]
    answers: list[str]


def read_exam(corpus: Path) -> Exam:
    """Read the held-out texts from heldout.json of the corpus, and the questions from the repository."""
    held = json.loads((corpus / "heldout.json").read_text(encoding="utf-8"))
    asked = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return Exam(
        summaries=[function["query"] for function in held["functions"]],
        passages=[function["text"] for function in held["functions"]],
        sentences=held["sentences"],
        questions=[row["question"] for row in asked],
        answers=[row["passage"] for row in asked],
    )


@dataclass(frozen=True)
class ExamVectors:
    """A model's vectors for the texts of an `Exam`, [n, C] for each list of n texts."""

    summaries: Tensor
    passages: Tensor
    sentences: Tensor
    questions: Tensor
    answers: Tensor

    def cut(self, width: int | None) -> "ExamVectors":
        """Return the vectors cut to their first `width` dimensions, normalised; None keeps all dimensions."""
        return ExamVectors(
            *(F.normalize(each.float()[:, :width], dim=-1) for each in vars(self).values())
        )


def embed_exam(model: Encoder, exam: Exam) -> ExamVectors:
    """Embed the held-out texts: summaries and questions as queries, the rest as documents."""
    return ExamVectors(
        summaries=model.encode_query(exam.summaries),
        passages=model.encode_document(exam.passages),
        sentences=model.encode_document(exam.sentences),
        questions=model.encode_query(exam.questions),
        answers=model.encode_document(exam.answers),
    )


def scores(answered: ExamVectors, agreed: Tensor, width: int | None = None) -> dict[str, float]:
    """Score a model on the three parts.

    Args:
        answered: the model's vectors.
        agreed: the teacher's vectors of the sentences, [n, 384].
        width: number of leading dimensions to keep; None for all.

    Returns:
        `ndcg@10` and `recall@1` for the summaries; `spearman` for the pairs of sentences; `questions@1` and
        `questions@3`, the share of questions whose passage is ranked first, or among the first three.
    """
    kept = answered.cut(width)
    ranks = _ranks(kept.summaries, kept.passages)
    asked = _ranks(kept.questions, kept.answers)
    gains = torch.where(ranks < TOP, 1 / torch.log2(ranks + 2.0), 0.0)
    return {
        "ndcg@10": float(gains.mean()),
        "recall@1": float((ranks == 0).float().mean()),
        "spearman": agreement(kept.sentences, agreed),
        "questions@1": float((asked == 0).float().mean()),
        "questions@3": float((asked < 3).float().mean()),
    }


def agreement(vectors: Tensor, reference: Tensor) -> float:
    """Return Spearman's correlation between two models' cosines of the same random pairs of rows (about PAIRS)."""
    generator = torch.Generator().manual_seed(SEED)
    a, b = torch.randint(len(vectors), (2, PAIRS), generator=generator)
    a, b = a[a != b], b[a != b]
    orders = [
        (unit[a] * unit[b]).sum(-1).argsort().argsort().double()
        for unit in (F.normalize(vectors.float(), dim=-1), F.normalize(reference.float(), dim=-1))
    ]
    return float(torch.corrcoef(torch.stack(orders))[0, 1])


def _ranks(queries: Tensor, passages: Tensor) -> Tensor:
    """Return the rank of passage i for each query i, from 0: how many other passages score at least as high."""
    table = queries @ passages.T
    return (table >= table.diagonal()[:, None]).sum(-1) - 1


class TeacherEncoder:
    """The teacher as an `Encoder`; it has no prompts."""

    def __init__(self, folder: Path) -> None:
        from lastword.bench.builtin.teacher import Teacher

        self.encode_query = self.encode_document = Teacher(folder).encode


def evaluate_models(
    folders: Sequence[Path], teacher: Path, cache: Path
) -> dict[str, dict[str, float]]:
    """Score the teacher, and the model of every folder: at its full width, at shorter widths, and in int8.

    Args:
        folders: models to load with lastword.
        teacher: the teacher's folder.
        cache: the cache folder of make.py, where the teacher's vectors are stored.

    Returns:
        Scores by model, the teacher's first.
    """
    from lastword import Embedder

    exam = read_exam(cache / "corpus")
    kept = cache / "teacher-exam.pt"
    if not kept.exists():
        torch.save(vars(embed_exam(TeacherEncoder(teacher), exam)), kept)
    reference = ExamVectors(**torch.load(kept, weights_only=True))
    table = {"teacher": scores(reference, reference.sentences)}
    for folder in folders:
        answered = embed_exam(Embedder(folder, device="cpu"), exam)
        table[folder.name] = scores(answered, reference.sentences)
        for width in (128, 64):
            name = f"{folder.name}, {width} dimensions"
            table[name] = scores(answered, reference.sentences, width)
        quantized = embed_exam(Embedder(folder, device="cpu", quantize="int8"), exam)
        table[f"{folder.name}, int8"] = scores(quantized, reference.sentences)
    return table


def markdown(table: Mapping[str, Mapping[str, float]]) -> str:
    """Format the scores as a Markdown table."""
    names = list(table["teacher"])
    lines = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for model, row in table.items():
        lines.append(f"| {model} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the folders given on the command line and print the table."""
    from lastword.bench.builtin.packages import fetch_teacher

    parser: Any = argparse.ArgumentParser(
        prog="python -m lastword.bench.builtin.exam", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--cache", type=Path, default=Path(".builtin"), help="make.py's cache folder"
    )
    options = parser.parse_args(arguments)
    teacher = fetch_teacher(options.cache)
    print(markdown(evaluate_models(options.folders, teacher, options.cache)))


if __name__ == "__main__":
    main()
