"""From the initial weights to a shipped folder, with a teacher of random vectors and a vocabulary of a few words."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from lastword import Embedder
from lastword.bench.builtin import ship as shipping
from lastword.bench.builtin import student, teacher, train
from lastword.bench.builtin.batches import TEXT_TOKENS, Data, read_data, training_batches
from lastword.bench.builtin.train import TrainingRun, basis, embed

transformers = pytest.importorskip("transformers")

WORDS = "river stone copper garden lantern meadow harbour candle winter thunder velvet marble query :".split()
TEACHER = 384


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("teacher")
    vocabulary = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS, "a", "##s", "\u4e2d"])
    }
    whole = student.Tokenizer(student.models.WordPiece(vocabulary, unk_token="[UNK]"))
    whole.normalizer = student.normalizers.BertNormalizer()
    whole.pre_tokenizer = student.pre_tokenizers.BertPreTokenizer()
    whole.save(str(folder / "tokenizer.json"))
    return student.make_tokenizer(folder, ["Rivers stone", "stone garden"])


@pytest.fixture(scope="module")
def data(tokenizer: Tokenizer) -> Data:
    """Make texts of two to nine words; each word has a vector, and a text's vector is their sum."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(WORDS), TEACHER, generator=generator)
    items, texts, queries = [], [], []
    for i in range(120):
        drawn = torch.randint(12, (2 + i % 8,), generator=generator).tolist()
        item = {"text": " ".join(WORDS[d] for d in drawn)}
        texts.append(vectors[drawn].sum(0))
        if i % 3 == 0:
            item["query"] = WORDS[drawn[0]]
            queries.append(vectors[drawn[0]])
        items.append(item)
    stacks = [torch.nn.functional.normalize(torch.stack(v)).half() for v in (texts, queries)]
    return read_data(items, *stacks, tokenizer)


def model(tokenizer: Tokenizer, seed: int = 1) -> torch.nn.Module:
    size = tokenizer.get_vocab_size()
    vectors = torch.randn(size, 256, generator=torch.Generator().manual_seed(seed))
    rare = torch.full((size,), 1e-7)  # as in a vocabulary of its real size
    return student.make_student(student.token_rows(vectors, rare), seed)


def test_tokenizer(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("Rivers, STONE xyz")
    assert encoding.tokens == ["river", "##s", "[UNK]", "stone", "[UNK]", student.END]
    assert tokenizer.encode("").tokens == [student.END]
    assert "\u4e2d" not in tokenizer.get_vocab()
    assert tokenizer.token_to_id(student.END) == 0


def test_the_start_is_the_mean_of_the_token_rows(tokenizer: Tokenizer) -> None:
    """It is so nearly: the mean includes the end token itself, and attention is only close to even."""
    start = model(tokenizer)
    rows = start.embed_tokens.weight.detach()
    ids = tokenizer.encode("river stone garden lantern").ids
    mean = torch.nn.functional.normalize(rows[ids[:-1]], dim=1)[:, :-1].sum(0)
    vector = embed(start, [ids])[0, :-1]
    assert torch.nn.functional.cosine_similarity(mean, vector, dim=0) > 0.6


def test_padding_changes_nothing(tokenizer: Tokenizer) -> None:
    start = model(tokenizer)
    ids = [tokenizer.encode(text).ids for text in ("river stone", "stone " * 20, "garden")]
    together = embed(start, ids)
    alone = torch.cat([embed(start, [one]) for one in ids])
    assert torch.nn.functional.cosine_similarity(together, alone).min() > 0.999  # bf16 products


def test_batches_repeat_and_resume(data: Data) -> None:
    chosen = range(0, 120, 2)
    first = list(itertools.islice(training_batches(data, chosen, 512, seed=3), 4))
    later = list(itertools.islice(training_batches(data, chosen, 512, seed=3, first=2), 2))
    for one, two in zip(first[2:], later, strict=True):
        assert (one.texts, one.queries, one.answers) == (two.texts, two.queries, two.answers)
        assert torch.equal(one.text_vectors, two.text_vectors)
    other = next(training_batches(data, chosen, 512, seed=4))
    assert other.texts != first[0].texts


def test_batches_hold_the_budget_and_pair_queries_with_texts(data: Data) -> None:
    batch = next(training_batches(data, range(120), 512, seed=1))
    assert len(batch.texts) <= 512 // TEXT_TOKENS
    assert len(batch.texts) * max(map(len, batch.texts)) <= 512 + len(batch.texts) * len(
        data.prompt
    )
    for query, answer in zip(batch.queries, batch.answers, strict=True):
        assert query[: len(data.prompt)] == data.prompt
        assert query[-1:] == data.end
        assert query[len(data.prompt)] == batch.texts[answer][0]
    assert all(text[-1:] == data.end for text in batch.texts)


def test_the_teacher_is_asked_once_per_shard(tmp_path: Path, monkeypatch) -> None:
    items = [{"text": f"text {i}"} | ({"query": "q"} if i % 2 else {}) for i in range(10)]
    lines = "\n".join(json.dumps(item) for item in items)
    (tmp_path / "train.jsonl").write_text(lines, encoding="utf-8")
    asked: list[int] = []

    class Fake:
        def __init__(self, *_: object) -> None:
            pass

        def encode(self, texts: list[str]) -> torch.Tensor:
            asked.append(len(texts))
            return torch.arange(len(texts))[:, None].expand(-1, TEACHER).float()

    monkeypatch.setattr(teacher, "Teacher", Fake)
    monkeypatch.setattr(teacher, "SHARD", 4)
    out = tmp_path / "vectors"
    teacher.embed_corpus(tmp_path, tmp_path, out)
    assert sorted(file.name for file in out.iterdir()) == [f"000{i}.safetensors" for i in range(3)]
    assert asked == [6, 6, 3]
    (out / "0001.safetensors").unlink()
    teacher.embed_corpus(tmp_path, tmp_path, out)
    assert asked == [6, 6, 3, 6]
    texts, queries = teacher.read_vectors(out)
    assert (texts.shape, queries.shape) == ((10, TEACHER), (5, TEACHER))
    assert texts.dtype == queries.dtype == torch.float16
    assert texts[:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert queries[:, 5].tolist() == [4, 5, 4, 5, 2]


def test_basis_is_orthonormal_and_ordered() -> None:
    vectors = torch.randn(500, 24) * torch.linspace(0.1, 2, 24)
    directions = basis(vectors, 8)
    assert torch.allclose(directions.T @ directions, torch.eye(8), atol=1e-5)
    energy = (vectors @ directions).square().sum(0)
    assert bool((energy[:-1] >= energy[1:]).all())


def test_a_batch_of_one_text_has_a_loss(data: Data, tokenizer: Tokenizer) -> None:
    batch = train.TrainingBatch(
        [[5, 6, *data.end]], [], [], data.text_vectors[:1].float(), torch.zeros(0, TEACHER)
    )
    loss, parts = train._loss(model(tokenizer), batch, basis(data.text_vectors, 256))
    assert bool(loss.isfinite())
    assert (parts["matrix"], parts["answer"]) == (0.0, 0.0)


@pytest.fixture(scope="module")
def runs(data: Data, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two short runs of four steps; `cut` is stopped after two and continued."""
    folder = tmp_path_factory.mktemp("cache") / "runs"
    folder.mkdir()
    directions = basis(data.text_vectors, 256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY", 2)
        patch.setattr(train, "WARMUP", 0)
        for name, stops in (("whole", (4,)), ("cut", (2, 4))):
            for steps in stops:
                trained = model(tokenizer)
                run = TrainingRun(name, range(120), steps, 1024, seed=1, rate=1e-3, end=1.0)
                train.train(run, trained, data, directions, folder, lambda _: {"spearman": 0.5})
            student.write_checkpoint(
                trained, tokenizer, folder.parent / "made" / name, torch.float32
            )
    return folder


def test_training_lowers_the_loss(runs: Path) -> None:
    log = [json.loads(line) for line in (runs / "whole.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
    assert log[1]["loss"] < log[0]["loss"]


def test_a_stopped_run_continues_where_it_was(runs: Path) -> None:
    whole, cut = (torch.load(runs / f"{name}.pt")["model"] for name in ("whole", "cut"))
    for name, tensor in whole.items():
        assert torch.allclose(tensor, cut[name], atol=1e-6), name


def test_ship(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, out = runs.parent, tmp_path / "out"
    row = {"ndcg@10": 0.4, "recall@1": 0.3, "spearman": 0.7, "questions@1": 0.8, "questions@3": 0.9}
    better = {**row, "questions@1": 0.9}

    def judge(folders, teacher, corpus):
        assert [folder.name for folder in folders] == ["whole", "cut", "merge"]
        return {"teacher": better, "whole": better, "cut": row, "merge": better}

    facts = dict.fromkeys(
        ["passages", "sentences", "vocabulary", "texts", "gathered", "millions"], 1
    )
    named = {
        "dim": 256,
        "layers": 4,
        "length": 256,
        "prompt": "query: ",
        "bags": 1,
        "shares": "80%",
        "archives": "a.deb",
    }
    monkeypatch.setattr(shipping, "evaluate_models", judge)
    monkeypatch.setattr(shipping, "_facts", lambda *_: facts | named)
    shipping.ship(cache, "whole", {"cut": 0.8}, tmp_path, out)
    card = (out / "README.md").read_text()
    assert "**merge** is shipped" in card
    assert "| questions right | 0.90 | 0.900 | met |" in card
    shipped = Embedder(out, device="cpu")
    assert shipped.dim == 256
    assert shipped.prompts == {"query": "query: ", "document": ""}
    assert shipped.info.checkpoint.dtypes == ("BF16",)
