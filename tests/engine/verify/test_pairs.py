"""`lastword verify` of rerankers: correct ones pass; a broken engine or a damaged checkpoint is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.messages import refusal
from helpers.small_models import (
    KINDS,
    PREFIX,
    SUFFIX,
    TEMPLATE,
    change_file,
    make_reranker,
    save_reranker,
)
from safetensors.torch import load_file, save_file

from lastword import ConfigError, InputError, Reranker
from lastword import reranker_info as reranker_module
from lastword.cli.main import main
from lastword.model.qwen3 import Model
from lastword.reranker_info import is_reranker
from lastword.runtime import loop
from lastword.text.rerank_template import QWEN3_RERANKER, RerankTemplate
from lastword.text.tokenizer import TextTokenizer
from lastword.verify import verify

CHECKS = [
    "checkpoint", "weights", "template", "tokens", "pooled row", "final norm", "head", "order", "neighbours",
    "layers", "log-odds",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("rerankers")
    return {kind: make_reranker(place / f"{kind}-reranker", kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_correct_engine_passes(kind: str, made) -> None:
    verdict = verify(made[kind], texts=["one more document"])
    assert verdict.passed, verdict.cause
    assert [check.name for check in verdict.checks] == CHECKS
    assert {check.status for check in verdict.checks} == {"ok"}
    assert [each.layer for each in verdict.layers] == [0, 1, 2]
    assert 0 < verdict.figures["max_abs_difference"] < 1e-4


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_a_correct_engine_passes_in_other_modes(options: dict, made) -> None:
    verdict = verify(made["tied"], **options)
    assert verdict.passed, verdict.checks
    drift = [check.name for check in verdict.checks if check.name == "drift"]
    assert drift == (["drift"] if "quantize" in options else [])


@pytest.fixture(scope="module")
def saved_once(made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reranker(tmp_path_factory.mktemp("saved") / "model", made["untied"])


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_once, tmp_path / "saved"))


def test_a_chat_template_passes(saved: Path) -> None:
    verdict = verify(saved)
    assert verdict.passed, verdict.cause
    assert next(c.detail for c in verdict.checks if c.name == "template") == "the checkpoint's"


def test_an_instruction_of_the_caller_passes(made) -> None:
    assert verify(made["tied"], instruction="Find a page").passed


# A broken engine.


def swapped(*args, true=reranker_module.read_score_row):
    return -true(*args)


def no_head(*args, true=reranker_module.read_score_row):
    return 0 * true(*args)


def embeddings_as_head(checkpoint, spec, tokens):
    rows = checkpoint.embedding()[[tokens.true, tokens.false]].float()
    return rows[0] - rows[1]


def no_logit_of_no(checkpoint, spec, tokens):
    return checkpoint.head_rows("lm_head.weight", [tokens.true], checkpoint.config.vocab_size)[0]


def no_frame(self, folder, *args, true=TextTokenizer.__init__, **options):
    true(self, folder, *args, **(options | {"frame": ("", "")}))


def no_suffix(self, folder, *args, true=TextTokenizer.__init__, **options):
    true(self, folder, *args, **(options | {"frame": (options["frame"][0], "")}))


def exchanged(self, query, document, true=RerankTemplate.text):
    return true(self, document, query)


def before_final_norm(self, forest, observe=None, true=Model.forward):
    residuals = []

    def both(layer, states):
        residuals.append(states.clone())
        if observe:
            observe(layer, states)

    true(self, forest, both)
    return residuals[-1]


def row_before_the_last(tokens, *args, true=loop.plan_forests, **options):
    return true([ids[:-1] or ids for ids in tokens], *args, **options)


def next_pair(self, function, pairs, *args, true=Reranker._scores):
    scores = true(self, function, pairs, *args)
    return scores if len(pairs) == 1 else scores.roll(1, 0)


def wrong_last_layer(self, *args, true=Model.__init__, **settings):
    true(self, *args, **settings)
    self.layers[-1].q_norm = self.layers[-1].q_norm * 1.01


BROKEN: dict[str, tuple[object, str, Callable, str, str]] = {
    "swapped": (reranker_module, "read_score_row", swapped, "head", "yes and no swapped"),
    "lost head": (reranker_module, "read_score_row", no_head, "head", "without a head"),
    "other head": (reranker_module, "read_score_row", embeddings_as_head, "head", "lm_head is lost"),
    "one logit": (reranker_module, "read_score_row", no_logit_of_no, "head", "without the logit"),
    "frame": (TextTokenizer, "__init__", no_frame, "template", "with no text around"),
    "suffix": (TextTokenizer, "__init__", no_suffix, "template", "with no end of the template"),
    "exchanged": (RerankTemplate, "text", exchanged, "template", "exchanged"),
    "row": (loop, "plan_forests", row_before_the_last, "pooled row", "before the last"),
    "norm": (Model, "forward", before_final_norm, "final norm", "before the final norm"),
    "order": (Reranker, "_scores", next_pair, "order", "has the score of"),
    "last layer": (Model, "__init__", wrong_last_layer, "layers", "after layer 2 of 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_is_named(
    name: str, made, known_reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, attribute, wrong, expected, words = BROKEN[name]
    monkeypatch.setattr(owner, attribute, wrong)
    assert_named(made["untied"], expected, words)


@pytest.mark.parametrize("name", ["swapped", "lost head", "frame"])
def test_a_broken_engine_is_named_for_a_classifier(
    name: str, made, known_reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, attribute, wrong, expected, words = BROKEN[name]
    monkeypatch.setattr(owner, attribute, wrong)
    assert_named(made["classifier"], expected, words)


def test_a_forgotten_template_is_named(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTokenizer, "__init__", no_frame)
    monkeypatch.setattr(RerankTemplate, "prompt", lambda *_: "")
    monkeypatch.setattr(RerankTemplate, "text", lambda _, query, document: query + document)
    assert_named(made["tied"], "template", "pair texts are tokenised with no template")


def assert_named(folder: Path, expected: str, words: str) -> None:
    verdict = verify(folder)
    assert verdict.cause is not None
    assert verdict.cause.name == expected, verdict.checks
    assert words in verdict.cause.detail


# Damaged checkpoints, through the command line.


def swapped_tokens(folder: Path) -> None:
    file = "1_LogitScore/config.json"
    ids = json.loads((folder / file).read_text())
    wrong = {"true_token_id": ids["false_token_id"], "false_token_id": ids["true_token_id"]}
    change_file(folder, file, wrong)


def lost_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def head_of_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_template(folder: Path, old: str, new: str) -> None:
    path = folder / "chat_template.jinja"
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))


def two_line_breaks(folder: Path) -> None:
    change_template(folder, "\n<Document>", "\n\n<Document>")


def no_think_block(folder: Path) -> None:
    change_template(folder, "<think>\n\n</think>\n\n", "")


DAMAGED = {
    "swapped": (swapped_tokens, "head", "yes and no are swapped"),
    "head": (lost_head, "checkpoint", "lm_head.weight is missing"),
    "nan": (head_of_nan, "weights", "not finite: lm_head.weight"),
    "lines": (two_line_breaks, "template", "differs from that of Qwen3-Reranker"),
    "think": (no_think_block, "template", "differs from that of Qwen3-Reranker"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_named(name: str, saved: Path, capfd) -> None:
    damage, expected, words = DAMAGED[name]
    damage(saved)
    assert main(["verify", str(saved), "--json"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["cause"] == expected
    assert words in err
    assert err.count("\n") == 1


def test_a_template_of_its_own_may_be_accepted(saved: Path) -> None:
    two_line_breaks(saved)
    assert verify(saved, accept=["template"]).passed


# Which models are rerankers, and what is refused.


def test_which_models_are_rerankers(made, tiny_checkpoint: Path, tmp_path) -> None:
    assert is_reranker(made["tied"], "a/b")
    assert not is_reranker(tiny_checkpoint, "a/reranker")  # it has modules of an embedding model
    unnamed = Path(shutil.copytree(made["tied"], tmp_path / "model"))
    assert not is_reranker(unnamed, "a/b")
    assert is_reranker(unnamed, "a/Reranker")
    assert is_reranker(Path(shutil.copytree(made["classifier"], tmp_path / "labels")), "a/b")
    (unnamed / "chat_template.jinja").write_text(TEMPLATE)
    assert is_reranker(unnamed, "a/b")


def test_a_reranker_that_does_not_say_so(made, tmp_path: Path, capfd) -> None:
    unnamed = Path(shutil.copytree(made["tied"], tmp_path / "model"))
    assert main(["verify", str(unnamed), "--reranker"]) == 0
    out, _ = capfd.readouterr()
    assert "yes' minus 'no' of embed_tokens" in out
    assert out.splitlines()[-1] == "PASSED"


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"accept": ["vectors"]}, ConfigError, {"what": "this check runs only with an embedding model"}),
        ({"truncate_dim": 8}, ConfigError, {"where": "truncate_dim", "got": "8"}),
        ({"texts": ["a", 5]}, InputError, {"where": "text 1"}),
    ],
)  # fmt: skip
def test_refused(options: dict, error: type, parts: dict, made) -> None:
    with refusal(error, **parts):
        verify(made["tied"], **options)


def test_checks_of_rerankers_are_refused_for_others(tiny_checkpoint: Path, made) -> None:
    with refusal(ConfigError, what="this check runs only with a reranker", got="'head'"):
        verify(tiny_checkpoint, accept=["head"])
    with refusal(ConfigError, where="scores", what="is for embedding models only"):
        verify(made["tied"], scores=True, reranker=True)


def test_the_words_are_those_of_the_engine() -> None:
    assert (QWEN3_RERANKER.prefix, QWEN3_RERANKER.suffix) == (PREFIX, SUFFIX)
