"""mteb's tasks with lastword: the scores of sentence-transformers, the right instructions, runs that continue."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.messages import bars_of, refusal

from lastword import ConfigError, Embedder
from lastword.cli.main import main
from lastword.evaluate import evaluate, evaluation

mteb = pytest.importorskip("mteb", reason="the eval extra is not installed")

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from lastword.evaluate.encoder import LastwordEncoder  # noqa: E402

NOTES = (Path(__file__).resolve().parents[3] / "examples/notes.txt").read_text("utf-8").splitlines()
BOOM = "ICT-TIME-and-Querit/BOOM_4B_v1"
ICT = "ICT-TIME-and-Querit/ICT-TIME-and-Querit-embedding-v1"


def metadata(name: str, kind: str, score: str, prompt) -> TaskMetadata:
    return TaskMetadata(
        name=name, type=kind, main_score=score, description="Shipped text.", prompt=prompt,
        dataset={"path": "lastword/notes", "revision": "1"}, eval_splits=["test"],
        eval_langs=["eng-Latn"],
    )  # fmt: skip


class NotesRetrieval(AbsTaskRetrieval):
    """Find each note by a few words of it."""

    metadata = metadata(
        "NotesRetrieval", "Retrieval", "ndcg_at_10", "Find the note with these words"
    )

    def load_data(self, num_proc=None, **kwargs) -> None:
        ids = [str(i) for i in range(len(NOTES))]
        corpus = Dataset.from_dict({"id": ids, "title": [""] * len(ids), "text": NOTES})
        words = [" ".join(note.split()[2:7]) for note in NOTES]
        queries = Dataset.from_dict({"id": [f"q{i}" for i in ids], "text": words})
        relevant = {f"q{i}": {i: 1} for i in ids}
        split = RetrievalSplitData(
            corpus=corpus, queries=queries, relevant_docs=relevant, top_ranked=None
        )
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


class NotesSTS(AbsTaskSTS):
    """Compare notes; the score of a pair is the share of words they have in common."""

    metadata = metadata("NotesSTS", "STS", "cosine_spearman", "Find notes that are alike")
    min_score, max_score = 0, 1

    def load_data(self, num_proc=None, **kwargs) -> None:
        pairs = [(a, b) for a in NOTES[:12] for b in NOTES[12:20]]
        scores = [
            len({*a.split()} & {*b.split()}) / len({*a.split(), *b.split()}) for a, b in pairs
        ]
        columns = {
            "sentence1": [a for a, _ in pairs],
            "sentence2": [b for _, b in pairs],
            "score": scores,
        }
        self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_dict(columns)), True


@pytest.fixture
def both_tasks() -> list:
    return [NotesRetrieval(), NotesSTS()]


def test_the_same_scores_as_sentence_transformers(
    both_tasks, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel

    def template(instruction: str, prompt_type=None) -> str:
        return f"Instruct: {instruction}\nQuery:" if instruction else ""

    theirs = InstructSentenceTransformerModel(
        str(tiny_checkpoint), None, device="cpu", instruction_template=template,
        apply_instruction_to_passages=False,
    )  # fmt: skip
    expected = mteb.evaluate(
        theirs, [NotesRetrieval(), NotesSTS()], cache=None, co2_tracker=False,
        show_progress_bar=False,
    )  # fmt: skip
    done = evaluate(tiny_checkpoint, tasks=both_tasks, results=tmp_path, device="cpu")
    assert done.scores.keys() == {"NotesRetrieval", "NotesSTS"}
    for result in expected.task_results:
        assert done.scores[result.task_name] == pytest.approx(100 * result.get_score(), abs=1e-2)
        for ours, their in zip(
            read_saved(tmp_path, result.task_name)["scores"]["test"],
            json.loads(result.model_dump_json())["scores"]["test"],
            strict=True,
        ):
            for name, value in their.items():
                if isinstance(value, float):
                    assert ours[name] == pytest.approx(value, abs=1e-4), name


def read_saved(folder: Path, task: str) -> dict:
    (path,) = folder.rglob(f"{task}.json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_an_interrupted_run_continues(
    both_tasks, tiny_checkpoint: Path, tmp_path: Path, monkeypatch
):
    first = evaluate(tiny_checkpoint, tasks=both_tasks[:1], results=tmp_path, device="cpu")
    encoded = []
    true = LastwordEncoder.encode

    def counted(self, inputs, *, task_metadata, **options):
        encoded.append(task_metadata.name)
        return true(self, inputs, task_metadata=task_metadata, **options)

    monkeypatch.setattr(LastwordEncoder, "encode", counted)
    second = evaluate(tiny_checkpoint, tasks=both_tasks, results=tmp_path, device="cpu")
    assert set(encoded) == {"NotesSTS"}
    assert second.scores["NotesRetrieval"] == first.scores["NotesRetrieval"]
    evaluate(tiny_checkpoint, tasks=both_tasks[:1], results=tmp_path, device="cpu", truncate_dim=8)
    assert "NotesRetrieval" in encoded, "another width is another result"


@pytest.mark.parametrize(
    "modes", [(None, "int8"), ("int8", None)], ids=["plain first", "int8 first"]
)
def test_quantised_results_are_kept_apart(modes, both_tasks, tiny_checkpoint, tmp_path) -> None:
    task = both_tasks[1:]
    found = []
    for mode in (*modes, modes[0]):
        done = evaluate(tiny_checkpoint, tasks=task, results=tmp_path, device="cpu", quantize=mode)
        found.append(done.scores["NotesSTS"])
    # How far int8 moves a score depends on the CPU: its activations have fewer codes without VNNI.
    assert found[1] != pytest.approx(found[0], abs=1e-3)
    assert found[2] == pytest.approx(found[0], abs=1e-3), "found again"
    assert len([*tmp_path.rglob("NotesSTS.json")]) == 2


def test_a_task_that_fails_does_not_stop_the_others(
    both_tasks, tiny_checkpoint: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    def broken(self, **options) -> None:
        raise KeyError("no such split\nand more")

    monkeypatch.setattr(NotesRetrieval, "load_data", broken)
    monkeypatch.setattr(evaluation, "get_tasks", lambda names, benchmarks: (both_tasks, []))
    monkeypatch.setattr(evaluation, "check_reachable", lambda _: None)
    words = ["eval", str(tiny_checkpoint), "--tasks", "both", "--results", str(tmp_path), "--json"]
    assert main(words) == 1
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["failed"].keys() == {"NotesRetrieval"}
    assert found["scores"].keys() == {"NotesSTS"}
    assert "lastword: NotesRetrieval: failed; KeyError: " in err


# Instructions before texts.


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("known_as", "task", "kind", "expected"),
    [
        ("a/b", "STS12", None, "Instruct: Retrieve semantically similar text.\nQuery:"),
        ("a/b", "SciFact", PromptType.document, ""),
        ("Qwen/Qwen3-Embedding-0.6B", "SciFact", PromptType.query, None),
        (BOOM, "SciFact", PromptType.document, ""),
        (BOOM, "Banking77Classification", None, None),
        (BOOM, "CQADupstackGamingRetrieval", PromptType.query, None),
        (BOOM, "CQADupstackGamingRetrieval", PromptType.document, ""),
    ],
)
def test_instructions_come_from_mteb(embedder, known_as: str, task: str, kind, expected) -> None:
    encoder = LastwordEncoder(embedder, known_as)
    prompt = encoder.prompt(mteb.get_task(task).metadata, kind)
    if expected is None:
        theirs = encoder.get_instruction(mteb.get_task(task).metadata, kind)
        assert len(theirs) > 10
        expected = f"Instruct: {theirs}\nQuery:"
    assert prompt == expected


def test_a_models_own_instructions_come_first(embedder: Embedder) -> None:
    task = mteb.get_task("Banking77Classification").metadata
    own, plain = (LastwordEncoder(embedder, name).prompt(task, None) for name in (BOOM, "a/b"))
    assert own != plain


def test_results_are_kept_apart(embedder: Embedder, tiny_checkpoint: Path) -> None:
    names = (BOOM, str(tiny_checkpoint), "a/b")
    known, local, other = (LastwordEncoder(embedder, name).mteb_model_meta for name in names)
    assert (known.name, local.name) == (BOOM, "local/model")
    assert known.revision == local.revision == embedder.info.space_fingerprint()
    settings = "dim_64__dtype_float32__engine_lastword__max_length_4096"
    assert local.experiment_name == f"{settings}__run_{embedder.info.run_fingerprint()}"
    assert known.experiment_name != local.experiment_name == other.experiment_name, "instructions"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of an empty cache
def test_cached_vectors_are_kept_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """mteb's cache of vectors goes by the experiment only, not by name and revision."""
    from mteb._create_dataloaders import create_dataloader
    from mteb.models.cache_wrappers import CachedEmbeddingWrapper

    task = NotesSTS.metadata

    def cached(embedder: Embedder, **options) -> np.ndarray:
        wrapped = CachedEmbeddingWrapper(LastwordEncoder(embedder, "a/b"), tmp_path)
        inputs = create_dataloader(Dataset.from_dict({"text": NOTES[:3]}), task_metadata=task)
        return wrapped.encode(inputs, task_metadata=task, hf_split="", hf_subset="", **options)

    def expected(embedder: Embedder, **options) -> np.ndarray:
        prompt = LastwordEncoder(embedder, "a/b").prompt(task, None)
        return embedder.encode(NOTES[:3], prompt=prompt, convert_to_numpy=True, **options)

    embedder = Embedder(tiny_checkpoint, device="cpu")
    assert np.array_equal(cached(embedder), expected(embedder))
    assert np.array_equal(cached(embedder, precision="int8"), expected(embedder, precision="int8"))
    for name, value in {"max_length": 14, "truncate_dim": 16}.items():
        setattr(embedder, name, value)
        assert np.array_equal(cached(embedder), expected(embedder)), name
    with refusal(ConfigError, where="precision", got="'binary'"):
        cached(embedder, precision="binary")


def test_the_experiment_of_a_wrapper_is_kept(embedder: Embedder) -> None:
    from mteb.models.compression_wrappers import CompressionWrapper
    from mteb.types import OutputDType

    encoder = LastwordEncoder(embedder, "a/b")
    before = encoder.mteb_model_meta.experiment_kwargs
    wrapped = CompressionWrapper(encoder, OutputDType.INT8)
    assert wrapped.mteb_model_meta.experiment_kwargs == {**before, "output_dtypes": "int8"}


# The command.


@pytest.mark.parametrize("by", ["option", "folder"])
def test_the_card_scores_are_printed(by: str, tiny_checkpoint: Path, tmp_path: Path, capfd) -> None:
    folder = tmp_path / ICT.split("/")[1]
    folder.symlink_to(tiny_checkpoint)
    model = [str(folder)] if by == "folder" else [str(tiny_checkpoint), "--as", ICT]
    assert main(["eval", *model, "--card", "--results", str(tmp_path / "results")]) == 0
    out, _ = capfd.readouterr()
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["MTEB(eng, v2)"][-5:] == ["-", "70.12", "0", "of", "41"]
    assert lines["RTEB(beta)"][-4] == "67.72"
    assert len([line for line in out.splitlines() if " of " in line]) == 9


def test_with_stderr_closed(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    done = evaluate(tiny_checkpoint, card=True, known_as=ICT, results=tmp_path, device="cpu")
    assert len(done.benchmarks) == 9


def test_no_progress_bar_if_disabled(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """Nor does the loading of the model show one."""
    shown = bars_of(evaluation, monkeypatch)
    options = {"known_as": ICT, "results": tmp_path, "device": "cpu"}
    done = evaluate(tiny_checkpoint, card=True, show_progress_bar=False, **options)
    assert len(done.benchmarks) == 9
    assert shown == [False]


def test_a_folder_named_like_a_known_model_is_that_model(
    both_tasks, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ICT.split("/")[1]
    folder.symlink_to(tiny_checkpoint)
    done = evaluate(folder, tasks=both_tasks[1:], results=tmp_path / "results", device="cpu")
    assert done.model == ICT, "whether or not card=True"


def test_a_benchmark_is_scored_by_its_own_rule(embedder: Embedder, tmp_path: Path) -> None:
    from mteb.cache import ResultCache
    from mteb.results import TaskResult

    cache, meta = ResultCache(tmp_path), LastwordEncoder(embedder, "a/b").mteb_model_meta
    benchmark = mteb.get_benchmark("MTEB(Law, v1)")
    for task, score in zip(benchmark.tasks[:2], (0.5, 0.7), strict=False):
        scores = {
            split: {subset: {"main_score": score} for subset in task.hf_subsets}
            for split in task.eval_splits
        }
        cache.save_to_cache(TaskResult.from_task_results(task, scores, 1.0, None), meta)
    found = evaluation.benchmark_score("MTEB(Law, v1)", benchmark, 62.23, meta, cache)
    assert found.ours == pytest.approx(60.0)
    assert (found.done, found.tasks, found.card) == (2, 8, 62.23)
