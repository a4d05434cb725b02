"""The prompt cache: the same bits whether a prompt is cached or not, bounds, and the vectors of transformers."""

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.project import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lastword import Embedder, InputError
from lastword.batching.forest import plan_forests
from lastword.model import prompt_cache
from lastword.report import Report

INSTRUCTION = (
    "Instruct: Given a web search query, retrieve relevant passages that answer it\nQuery:"
)
TEXTS = ["what is tin", "", "why is the sky blue", "what is tin and what is it for", "tin"]
PROMPTS = [
    INSTRUCTION,
    f"{INSTRUCTION} ",  # its last token merges with the text's first one
    INSTRUCTION[:40],
    f"{INSTRUCTION}what is tin",  # the text may be a part of the prompt
    "Given a few examples, answer. " + "Question: how far? Answer: not very. " * 50,
]


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


@pytest.fixture(autouse=True)
def cold(embedder: Embedder) -> Iterator[None]:
    """Begin each test with an empty cache and one thread, so that vectors may be compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    embedder.loop.runner.model.prompts.clear()
    yield
    torch.set_num_threads(before)


def without_cache(embedder: Embedder, *args, monkeypatch: pytest.MonkeyPatch, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(embedder.loop.runner, "max_prompt_tokens", 0)
        return embedder.encode(*args, **kwargs)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_the_same_vectors_as_without_the_cache(
    prompt: str, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report()
    cached = embedder.encode(TEXTS, prompt=prompt, report=report)
    plain = without_cache(embedder, TEXTS, prompt=prompt, monkeypatch=monkeypatch)
    assert torch.equal(embedder.encode(TEXTS, prompt=prompt), cached)
    assert (cached - plain).abs().max() <= 1e-6
    assert report.tokens_cached == len(embedder.info.tokenizer.prompt_ids(prompt, 10**4)) > 8
    assert report.tokens_computed < 40


def test_parity_with_sentence_transformers(embedder: Embedder, tiny_checkpoint: Path) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tiny_checkpoint), device="cpu")
    for prompt in PROMPTS:
        expected = torch.as_tensor(theirs.encode(TEXTS, prompt=prompt))
        assert (embedder.encode(TEXTS, prompt=prompt) - expected).abs().max() <= 2e-5


@settings(
    max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(
    st.lists(st.tuples(st.sampled_from(PROMPTS), st.sampled_from(TEXTS)), min_size=1, max_size=12)
)
def test_the_order_of_calls_changes_no_bit(
    embedder: Embedder, calls: list[tuple[str, str]]
) -> None:
    """Whatever was computed before, a call gives what it gives first."""
    first = {}
    for prompt, text in calls:
        embedder.loop.runner.model.prompts.clear()
        first[prompt, text] = embedder.encode([text], prompt=prompt)
    for prompt, text in calls:
        assert torch.equal(embedder.encode([text], prompt=prompt), first[prompt, text])


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_other_precisions(options: dict, tiny_checkpoint: Path, monkeypatch) -> None:
    other = Embedder(tiny_checkpoint, device="cpu", **options)
    cold = other.encode(TEXTS, prompt=INSTRUCTION)
    assert torch.equal(other.encode(TEXTS, prompt=INSTRUCTION), cold)
    plain = without_cache(other, TEXTS, prompt=INSTRUCTION, monkeypatch=monkeypatch)
    assert torch.nn.functional.cosine_similarity(cold, plain).min() > 0.9999


def test_threads_share_one_computation(embedder: Embedder) -> None:
    expected = embedder.encode(TEXTS, prompt=INSTRUCTION)
    model = embedder.loop.runner.model
    model.prompts.clear()
    computed, compute = [], model._compute_prompt
    model._compute_prompt = lambda ids: computed.append(ids) or compute(ids)
    found = [None] * 8

    def encode(i: int) -> None:
        torch.set_num_threads(1)
        found[i] = embedder.encode(TEXTS, prompt=INSTRUCTION)

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    del model._compute_prompt
    assert len(computed) == 1
    assert all(torch.equal(each, expected) for each in found)


def test_the_prompts_used_last_are_kept(embedder: Embedder, monkeypatch) -> None:
    kept = embedder.loop.runner.model.prompts
    prompts = [f"Instruct: number {n}, find the passages that answer it" for n in range(10)]
    for prompt in prompts:
        embedder.encode("a", prompt=prompt)
    assert len(kept) == prompt_cache.MAX_PROMPTS == 8
    latest = [embedder.info.tokenizer.prompt_ids(prompt, 10**4) for prompt in prompts[2:]]
    assert list(kept._kept) == latest
    embedder.encode("b", prompt=prompts[2])
    assert list(kept._kept) == [*latest[1:], latest[0]]
    monkeypatch.setattr(prompt_cache, "MAX_BYTES", kept.nbytes // 2)
    embedder.encode("a", prompt=prompts[2])
    assert len(kept) == 4
    monkeypatch.setattr(prompt_cache, "MAX_BYTES", 1)
    embedder.encode("a", prompt=prompts[2])
    assert list(kept._kept) == [latest[0]]


def test_closing_forgets_the_prompts(tiny_checkpoint: Path) -> None:
    with Embedder(tiny_checkpoint, device="cpu") as embedder:
        embedder.encode("a", prompt=INSTRUCTION)
        assert embedder.loop.runner.model.prompts.nbytes > 0
        kept = weakref.ref(embedder.loop.runner.model.prompts)
    assert kept() is None


@pytest.mark.parametrize(
    "prompt", ["", "query: ", "far too long for the cache " * 9], ids=["none", "short", "long"]
)
def test_a_prompt_that_is_not_cached(prompt: str, embedder: Embedder, monkeypatch) -> None:
    monkeypatch.setattr(embedder.loop.runner, "max_prompt_tokens", 40)
    report = Report()
    embedder.encode(TEXTS, prompt=prompt, report=report)
    assert report.tokens_cached == 0
    assert len(embedder.loop.runner.model.prompts) == 0


def test_hidden_states_and_plan(embedder: Embedder, monkeypatch) -> None:
    states = embedder.hidden_states(TEXTS, prompt=INSTRUCTION)
    plan, report = embedder.plan(TEXTS, prompt=INSTRUCTION), Report()
    embedder.encode(TEXTS, prompt=INSTRUCTION, report=report)
    counts = (report.tokens_computed, report.tokens_cached)
    assert (plan.tokens_computed, plan.tokens_cached) == counts
    monkeypatch.setattr(embedder.loop.runner, "max_prompt_tokens", 0)
    plain = embedder.hidden_states(TEXTS, prompt=INSTRUCTION)
    assert (states - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_a_prompt_beyond_the_vocabulary_never_reaches_the_table(embedder: Embedder) -> None:
    model = embedder.loop.runner.model
    prompt = [model.config.vocab_size] * 9
    forests = plan_forests([[*prompt, 1]], 100, prompts=[prompt])
    with pytest.raises(InputError) as caught:
        model.forward(next(forests))
    assert (caught.value.where, caught.value.what) == ("token ids", "beyond the vocabulary")
    assert len(model.prompts) == 0


@pytest.mark.timing
def test_each_worker_has_its_own(tiny_checkpoint: Path, embedder: Embedder) -> None:
    report = Report()
    with Embedder(tiny_checkpoint, device="cpu,cpu") as pool:
        vectors = pool.encode(TEXTS, prompt=INSTRUCTION, report=report)
    assert report.tokens_cached > 0
    assert (vectors - embedder.encode(TEXTS, prompt=INSTRUCTION)).abs().max() <= 1e-6
