"""mteb's tasks with a Reranker: the scores of sentence-transformers' CrossEncoder, instructions, results kept apart."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.messages import refusal
from helpers.small_models import change_file, make_reranker, save_reranker
from torch.nn import Identity

from lastword import ConfigError, Reranker
from lastword.cli.main import main
from lastword.evaluate import evaluate, evaluation

mteb = pytest.importorskip("mteb", reason="the eval extra is not installed")

from datasets import Dataset  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models.models_protocols import CrossEncoderProtocol  # noqa: E402

from lastword.evaluate.cross_encoder import LastwordCrossEncoder  # noqa: E402

NOTES = (Path(__file__).resolve().parents[3] / "examples/notes.txt").read_text("utf-8").splitlines()
INSTRUCTION = "Find the note with these words"
QUERIES = [" ".join(note.split()[2:7]) for note in NOTES[:6]]


def metadata(name: str, kind: str, score: str, prompt) -> TaskMetadata:
    return TaskMetadata(
        name=name, type=kind, main_score=score, description="Shipped text.", prompt=prompt,
        dataset={"path": "lastword/notes", "revision": "1"}, eval_splits=["test"],
        eval_langs=["eng-Latn"],
    )  # fmt: skip


class NotesReranking(AbsTaskRetrieval):
    """Sort the notes by a few words of one of them."""

    metadata = metadata("NotesReranking", "Reranking", "map_at_1000", {"query": INSTRUCTION})
    own_instructions: tuple[str, ...] = ()

    def load_data(self, num_proc=None, **kwargs) -> None:
        ids = [str(i) for i in range(len(NOTES))]
        corpus = Dataset.from_dict({"id": ids, "title": [""] * len(ids), "text": NOTES})
        names = [f"q{i}" for i in range(len(QUERIES))]
        columns = {"id": names, "text": QUERIES}
        if self.own_instructions:
            columns["instruction"] = list(self.own_instructions)
        split = RetrievalSplitData(
            corpus=corpus, queries=Dataset.from_dict(columns),
            relevant_docs={name: {str(i): 1} for i, name in enumerate(names)},
            top_ranked={name: ids[i : i + 12] for i, name in enumerate(names)},
        )  # fmt: skip
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


class Wanting(NotesReranking):
    """The same, with an instruction for each query."""

    metadata = metadata("Wanting", "Reranking", "map_at_1000", INSTRUCTION)
    own_instructions = tuple(f"Find number {i // 2}" for i in range(len(QUERIES)))


class AlikeNotes(AbsTaskSTS):
    """A task that a cross-encoder cannot do."""

    metadata = metadata("AlikeNotes", "STS", "cosine_spearman", "Find notes that are alike")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("evaluate") / "reranker", seed=3)


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    return Reranker(folder, device="cpu")


def predicted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, int]]:
    """Instruction and number of pairs of every call of `Reranker.predict` from now on."""
    calls, true = [], Reranker.predict

    def noted(self, pairs, **options):
        calls.append((options["instruction"], len(pairs)))
        return true(self, pairs, **options)

    monkeypatch.setattr(Reranker, "predict", noted)
    return calls


def test_the_same_scores_as_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    saved = save_reranker(tmp_path / "saved", folder)
    prompts = {"prompts": {"web": INSTRUCTION}, "default_prompt_name": "web"}
    change_file(saved, "config_sentence_transformers.json", prompts)
    theirs = mteb.evaluate(
        CrossEncoder(str(saved), device="cpu"), [NotesReranking()], cache=None, co2_tracker=False,
        show_progress_bar=False,
    )  # fmt: skip
    done = evaluate(saved, tasks=[NotesReranking()], results=tmp_path / "results", device="cpu")
    (expected,) = theirs.task_results
    assert 0 < expected.get_score() < 1
    assert done.scores == {"NotesReranking": pytest.approx(100 * expected.get_score(), abs=1e-3)}
    (path,) = (tmp_path / "results").rglob("NotesReranking.json")
    (ours,) = json.loads(path.read_text(encoding="utf-8"))["scores"]["test"]
    (their,) = json.loads(expected.model_dump_json())["scores"]["test"]
    for name, value in their.items():
        if isinstance(value, float):
            assert ours[name] == pytest.approx(value, abs=1e-4), name


def test_scores_are_those_of_predict(reranker: Reranker) -> None:
    encoder = LastwordCrossEncoder(reranker, "a/b")
    assert isinstance(encoder, CrossEncoderProtocol)
    where = {"task_metadata": NotesReranking.metadata, "hf_split": "", "hf_subset": ""}
    texts = [{"text": QUERIES[:2]}, {"text": QUERIES[2:3]}]
    found = encoder.predict(texts, [{"text": NOTES[:3]}], **where)
    pairs = list(zip(QUERIES, NOTES[:3], strict=False))
    expected = reranker.predict(pairs, convert_to_numpy=True, instruction=INSTRUCTION)
    assert np.abs(found - expected).max() <= 1e-5
    assert encoder.predict([], [], **where).shape == (0,)
    with pytest.raises(ValueError, match="shorter"):
        encoder.predict(texts, [{"text": NOTES[:2]}], **where)


def test_instructions_of_tasks_and_of_queries(reranker: Reranker, monkeypatch, tmp_path) -> None:
    encoder = LastwordCrossEncoder(reranker, "a/b")
    calls = predicted(monkeypatch)
    quiet = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    mteb.evaluate(encoder, [NotesReranking()], **quiet)
    assert calls == [(INSTRUCTION, 72)], "the documents of all queries in one call"
    calls.clear()
    mteb.evaluate(encoder, [Wanting()], **quiet)
    assert calls == [(f"Find number {i}", 24) for i in range(3)]
    none = NotesReranking.metadata.model_copy(update={"prompt": None})
    assert encoder.instruction(none) is None
    batch = {"text": ["q why", "q"], "query": ["q", "q"], "instruction": ["why", None]}
    calls.clear()
    found = encoder.predict(
        [batch], [{"text": ["d", "d"]}], task_metadata=none, hf_split="", hf_subset=""
    )
    assert calls == [("why", 1), (None, 1)]
    for score, each in zip(found, ("why", None), strict=True):
        alone = reranker.predict(("q", "d"), instruction=each)
        assert score == pytest.approx(float(alone), abs=1e-5)


def test_results_are_kept_apart(folder: Path, tmp_path: Path, monkeypatch) -> None:
    calls = predicted(monkeypatch)
    tasks, options = [NotesReranking()], {"results": tmp_path, "device": "cpu"}
    first = evaluate(folder, tasks=tasks, **options)
    assert (first.model, len(calls)) == ("local/reranker", 1)
    assert evaluate(folder, tasks=tasks, **options).scores == first.scores
    assert len(calls) == 1, "found again"
    evaluate(folder, tasks=tasks, max_length=160, **options)
    other = make_reranker(tmp_path / "other" / "reranker", "untied", seed=3)
    evaluate(other, tasks=tasks, **options)
    assert len(calls) == 3
    plain = LastwordCrossEncoder(Reranker(folder, device="cpu"), "a/b").mteb_model_meta
    other = LastwordCrossEncoder(Reranker(folder, device="cpu", activation_fn=Identity()), "a/b")
    assert other.mteb_model_meta.experiment_name != plain.experiment_name


def test_metadata(reranker: Reranker) -> None:
    known = LastwordCrossEncoder(reranker, "Qwen/Qwen3-Reranker-0.6B").mteb_model_meta
    local = LastwordCrossEncoder(reranker, "some/folder/here").mteb_model_meta
    assert (known.name, local.name) == ("Qwen/Qwen3-Reranker-0.6B", "local/here")
    assert known.is_cross_encoder
    assert local.is_cross_encoder
    assert known.revision == local.revision == reranker.info.identity()
    settings = "activation_sigmoid__dtype_float32__engine_lastword__max_length_4096"
    assert local.experiment_name == f"{settings}__run_{reranker.info.run_fingerprint()}"


def test_from_the_shell(folder: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """A task that needs vectors fails by name, and does not stop the other."""
    tasks = [AlikeNotes(), NotesReranking()]
    monkeypatch.setattr(AlikeNotes, "load_data", lambda self, **_: None)
    monkeypatch.setattr(evaluation, "get_tasks", lambda names, benchmarks: (tasks, []))
    monkeypatch.setattr(evaluation, "check_reachable", lambda _: None)
    words = ["eval", str(folder), "--tasks", "both", "--results", str(tmp_path), "--json"]
    assert main(words) == 1
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["scores"].keys() == {"NotesReranking"}
    assert found["failed"].keys() == {"AlikeNotes"}
    assert "does not support CrossEncoders" in err
    assert main([*words, "--dim", "8"]) == 2
    assert "--dim: is for embedding models only; got 8" in capfd.readouterr().err
    with refusal(ConfigError, where="truncate_dim", got="8"):
        evaluate(folder, tasks=tasks, truncate_dim=8)
