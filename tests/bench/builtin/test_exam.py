"""The scores of models with known results."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lastword.bench.builtin.exam import (
    QUESTIONS,
    Exam,
    agreement,
    embed_exam,
    markdown,
    read_exam,
    scores,
)


class Known:
    """Embeds a text by its number: "3" is unit vector 3; "3/5" is closer to 5 than to 3."""

    def encode_document(self, texts: list[str]) -> Tensor:
        table = torch.zeros(len(texts), 16)
        for row, text in zip(table, texts, strict=True):
            for weight, number in enumerate(text.split("/"), 1):
                row[int(number)] = weight
        return table

    encode_query = encode_document


def exam(summaries: list[str]) -> Exam:
    numbers = [str(i) for i in range(12)]
    return Exam(summaries, numbers, numbers, ["0", "1/2"], ["0", "1"])


def test_retrieval_and_questions() -> None:
    summaries = [str(i) for i in range(12)]
    right = scores(embed_exam(Known(), exam(summaries)), torch.eye(12))
    assert right["ndcg@10"] == right["recall@1"] == 1
    summaries[4] = "4/7"  # second place
    found = scores(embed_exam(Known(), exam(summaries)), torch.eye(12))
    assert found["recall@1"] == pytest.approx(11 / 12)
    assert found["ndcg@10"] == pytest.approx((11 + 1 / math.log2(3)) / 12)
    assert found["questions@1"] == 1  # passage 2 is not in the pool
    assert scores(embed_exam(Known(), exam(summaries)), torch.eye(12), width=4)["recall@1"] < 1


def test_a_rank_beyond_ten_gains_nothing() -> None:
    summaries = ["0/1/2/3/4/5/6/7/8/9/10", *(str(i) for i in range(1, 12))]
    assert scores(embed_exam(Known(), exam(summaries)), torch.eye(12))["ndcg@10"] == pytest.approx(
        11 / 12
    )


def test_agreement() -> None:
    generator = torch.Generator().manual_seed(1)
    a, other = torch.randn(2, 200, 32, generator=generator)
    assert agreement(a, 3 * a) == pytest.approx(1)
    assert abs(agreement(a, other)) < 0.1
    spearmanr = pytest.importorskip("scipy.stats").spearmanr
    pairs = torch.randint(200, (2, 200_000), generator=torch.Generator().manual_seed(4))
    kept = pairs[:, pairs[0] != pairs[1]]
    mixed = a + other
    cosines = [
        (v[kept[0]] * v[kept[1]]).sum(1) for v in map(torch.nn.functional.normalize, (a, mixed))
    ]
    assert agreement(a, mixed) == pytest.approx(spearmanr(*cosines).statistic, abs=1e-4)


def test_markdown() -> None:
    table = {"teacher": {"a": 0.5, "b": 1.0}, "ours": {"a": 0.25, "b": 0.1}}
    assert markdown(table).splitlines()[2:] == [
        "| teacher | 0.500 | 1.000 |",
        "| ours | 0.250 | 0.100 |",
    ]


def test_the_questions(tmp_path: Path) -> None:
    (tmp_path / "heldout.json").write_text(
        json.dumps({"functions": [{"query": "q", "text": "t"}], "sentences": ["s"]})
    )
    held = read_exam(tmp_path)
    assert len(held.questions) == len(set(held.questions)) == len(set(held.answers)) == 100
    topics = {json.loads(line)["topic"] for line in QUESTIONS.read_text().splitlines()}
    assert len(topics) >= 15
