"""The built-in model is an ordinary checkpoint, small, fast, documented, and used when no model is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lastword import Embedder
from lastword.cli.main import main
from lastword.report import Report
from lastword.weights import BUILTIN, BUILTIN_NOTICE, locate, read_config, read_embedding_spec
from lastword.weights.locate import _BUILTIN_FOLDER

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("builtin_vectors.safetensors")
TOLERANCE = 2e-5  # as for every checkpoint: fp32, normalised
TEXTS = [
    "How do I undo a commit?",
    "git revert makes a commit that takes back the changes of another.",
    "Water the tomatoes early in the morning.",
    "What helps against a headache?",
    "Rest in a dark room and drink a glass of water.",
    "the capital of China",
    "Beijing is the capital of China.",
    "Gravity is a force that attracts two bodies towards each other.",
    "a",
    "?!",
    "Straße, naïve, café: accents are stripped.",
    "日本語 and English in one line",
    "UPPER CASE IS READ AS lower case",
    "1,234.5 + 6 = 1240.5",
    "def add(a, b):\n    return a + b",
    "supercalifragilisticexpialidocious",
    "A binary search halves the range at every step, so a million entries need twenty.",
    "The ferry does not sail when the wind is stronger than eight.",
    "No.\tTabs,\r\nnew lines,  and   spaces are one.",
    "word " * 300,
]


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(device="cpu")


@pytest.fixture(scope="module")
def vectors(model: Embedder) -> torch.Tensor:
    return model.encode(TEXTS)


def test_it_is_what_no_name_means(model: Embedder) -> None:
    assert model.name == BUILTIN
    assert model.notices == (BUILTIN_NOTICE,)
    assert locate(None).folder == _BUILTIN_FOLDER
    assert Embedder(_BUILTIN_FOLDER, device="cpu").notices == ()


def test_its_files() -> None:
    files = [path for path in _BUILTIN_FOLDER.rglob("*") if path.is_file()]
    names = {path.relative_to(_BUILTIN_FOLDER).as_posix() for path in files}
    assert names == {
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    stored = load_file(_BUILTIN_FOLDER / "model.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {torch.bfloat16}
    config = json.loads((_BUILTIN_FOLDER / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_its_prompts(model: Embedder) -> None:
    assert model.resolve_prompt(kind="query") == "query: "
    assert model.resolve_prompt(kind="document") == ""
    assert read_embedding_spec(_BUILTIN_FOLDER, read_config(_BUILTIN_FOLDER)).normalize


def test_transformers_gives_the_same(model: Embedder, vectors: torch.Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(_BUILTIN_FOLDER)
    theirs = transformers.AutoModel.from_pretrained(_BUILTIN_FOLDER, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "Qwen3Model"
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
        if (
            ids.shape[1] == model.max_length
        ):  # transformers truncates the end token together with the text
            ids[0, -1] = tokenizer.eos_token_id
        with torch.inference_mode():
            state = theirs(input_ids=ids).last_hidden_state[0, -1]
        expected = torch.nn.functional.normalize(state, dim=-1)
        assert (vector - expected).abs().max() <= TOLERANCE, text


def test_sentence_transformers_gives_the_same(model: Embedder, vectors: torch.Tensor) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(_BUILTIN_FOLDER), device="cpu").float()
    assert theirs.max_seq_length == model.max_length
    documents = theirs.encode(TEXTS[:-1], convert_to_tensor=True)
    assert (documents - vectors[:-1]).abs().max() <= TOLERANCE
    queries = theirs.encode_query(TEXTS[:4], convert_to_tensor=True)
    assert (queries - model.encode_query(TEXTS[:4])).abs().max() <= TOLERANCE


def test_golden_vectors(vectors: torch.Tensor) -> None:
    """Compare twenty recorded vectors; `python tests/weights/test_builtin.py` records them again."""
    assert (vectors - load_file(GOLDEN)["vectors"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("dim", [None, 128, 64])
def test_it_knows_what_belongs_together(model: Embedder, dim: int | None) -> None:
    pairs = [
        ("how do I undo a commit?", "git revert takes back the changes of an earlier commit."),
        ("how do plants make sugar?", "Plants build sugar out of carbon dioxide and water."),
        ("when does the train leave?", "The night train to Vienna leaves at a quarter past ten."),
        ("is the museum open on monday?", "The museum is closed on Mondays."),
    ]
    questions = model.encode_query([question for question, _ in pairs], truncate_dim=dim)
    answers = model.encode_document([answer for _, answer in pairs], truncate_dim=dim)
    assert model.similarity(questions, answers).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.timing
def test_the_first_text_is_quick() -> None:
    """Loading and the first vector take under two seconds on two cores, not counting the import of torch."""
    code = (
        "import time, torch; torch.set_num_threads(2); import lastword.embedder; t = time.process_time(); "
        "lastword.Embedder(device='cpu').encode('first'); print(time.process_time() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2


def test_commands_use_it_and_say_so_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The dog barks.\nStocks fell sharply on Monday.\n")

    def lastword(*words: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("lastword"), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    found = lastword("search", "share prices", "notes.txt", "--top-k", "1")
    assert "Stocks fell" in found.stdout
    assert found.stderr.count(BUILTIN_NOTICE) == 1
    made = lastword("embed", "notes.txt")
    assert len(json.loads(made.stdout.splitlines()[0])["embedding"]) == 256
    assert made.stderr.count(BUILTIN_NOTICE) == 1
    facts = json.loads(lastword("info", "--json", "--full").stdout)
    assert facts["model"] == BUILTIN
    assert "model.safetensors" in [file["file"] for file in facts["files"]]


LONG = "z" * 101
LINKS = [f"see https://a.example/?q={letter * 120} today" for letter in "xy"]


def test_words_that_it_does_not_know_are_counted(model: Embedder) -> None:
    texts = ["a fine text", "z" * 100, LONG, "ab" * 100_000, *LINKS]
    report = Report()
    vectors = model.encode(texts, report=report)
    assert report.unknown == model.plan(texts).unknown == 4
    assert model.plan(TEXTS[:10]).unknown == 0
    torch.testing.assert_close(vectors[4], vectors[5], atol=TOLERANCE, rtol=0)
    card = (_BUILTIN_FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"more than {model.info.tokenizer.longest_word} characters" in card


@pytest.mark.parametrize(
    "words", [("search", "flow", "a.txt"), ("embed", "a.txt"), ("search", LONG, "a.txt")]
)
def test_commands_say_how_many_texts_have_unknown_words(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n".join(["plain", LONG, *LINKS]))
    assert main([*words]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "does not know" in line]
    expected = ["3 of 4 texts"] if LONG not in words else ["1 of 1 query", "3 of 4 texts"]
    assert [line.removeprefix("lastword: ").split(" with")[0] for line in said] == expected
    assert all("no word of more than 100 characters" in line for line in said)


def test_the_card_states_the_scores() -> None:
    card = (_BUILTIN_FOLDER / "README.md").read_text(encoding="utf-8")
    for part in ("| teacher |", "ndcg@10", "spearman", "questions@1", "dict-wn", "debian-handbook"):
        assert part in card


if __name__ == "__main__":
    from lastword.weights import write_safetensors

    write_safetensors(GOLDEN, {"vectors": Embedder(device="cpu").encode(TEXTS)})
