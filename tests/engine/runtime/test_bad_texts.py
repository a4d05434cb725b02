"""`encode_groups(on_error=...)`: bad texts are left out, whichever step finds them; order and other vectors stay."""

from pathlib import Path

import pytest
import torch
from helpers.fake_devices import FakeDevice, last_tokens, none_left, options

from lastword import DeviceError, Embedder, InputError
from lastword.batching.forest import Forest
from lastword.report import Report
from lastword.runtime.loop import Loop
from lastword.text.tokenizer import TextTokenizer

SIZE = 100  # texts of a group
GOOD = [f"text number {i % 37} " * (i % 5 + 1) for i in range(4 * SIZE)]
# A text per step that refuses one: the tokenizer, the limit of tokens, the check of the vector.
SURROGATE, LONG, NAN = "a lone \ud800", "long " * 200, "nan " * 35
WHAT = {
    SURROGATE: "not valid Unicode",
    LONG: "too long",
    NAN: "its vector is zero or not finite",
}
LIMIT = 150
PLACES = {
    "none": {},
    "first and last": {0: SURROGATE, len(GOOD) - 1: NAN},
    "two in a row": {150: LONG, 151: NAN},
    "of each kind": {3: NAN, 99: SURROGATE, 100: LONG, 222: SURROGATE, 223: NAN, 377: LONG},
    "a whole group refused": dict.fromkeys(range(SIZE, 2 * SIZE), SURROGATE),
    "the last group refused": dict.fromkeys(range(3 * SIZE, 4 * SIZE), LONG),
    "a whole group not finite": dict.fromkeys(range(2 * SIZE, 3 * SIZE), NAN),
    "all": {place: (SURROGATE, LONG, NAN)[place % 3] for place in range(len(GOOD))},
}


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastword.text.groups.GROUP_TEXTS", SIZE)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> TextTokenizer:
    return TextTokenizer(tiny_checkpoint, 100_000)


def with_bad(places: dict[int, str]) -> list[str]:
    return [places.get(place, text) for place, text in enumerate(GOOD)]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_bad_texts_are_left_out(
    places: dict[int, str],
    threaded: bool,
    ahead: bool,
    small_groups: None,
    tokenizer: TextTokenizer,
) -> None:
    (nan,) = tokenizer.encode([NAN], LIMIT).ids

    def compute(forest: Forest) -> torch.Tensor:
        vectors = last_tokens(forest)
        vectors[vectors[:, 1] == len(nan)] = float("nan")
        return vectors

    told, done, report, seen = list[InputError](), list[int](), Report(), []
    loop = Loop(tokenizer, FakeDevice(ahead=ahead, depth=3 * ahead, compute=compute), 200)
    settings = options(on_error=told.append, too_long="error", max_length=LIMIT)
    for matrix in loop.matrices(with_bad(places), settings, report, done.append, ahead=threaded):
        seen.append(len(matrix))
        before = [place for place in places if place < sum(seen)]
        assert len(told) >= len(before), "told before the matrix of the group"
    assert [(error.index, error.what) for error in told] == [
        (place, WHAT[text]) for place, text in sorted(places.items())
    ]
    kept = [text for place, text in enumerate(GOOD) if place not in places]
    assert sum(seen) == report.texts == len(kept)
    assert 0 not in seen
    assert sum(done) == len(GOOD)
    assert none_left()


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_the_other_vectors_are_those_of_a_run_without_the_bad_texts(
    device: str, tiny_checkpoint: Path, small_groups: None
) -> None:
    places = PLACES["of each kind"] | {5: "x", 300: "x"}
    with Embedder(tiny_checkpoint, device=device, max_length=LIMIT) as model:
        good = [text for place, text in enumerate(GOOD) if place not in places]
        expected = model.encode(good, too_long="error")
        told = list[InputError]()
        texts = with_bad({place: text for place, text in places.items() if text not in (NAN, "x")})
        for place in (3, 5, 223, 300):
            texts[place] = SURROGATE
        found = torch.cat(list(model.encode_groups(texts, too_long="error", on_error=told.append)))
    assert [error.index for error in told] == sorted(places)
    assert (found - expected).abs().max() <= 1e-5


def test_other_errors_end_the_run(tokenizer: TextTokenizer, tiny_checkpoint: Path) -> None:
    def broken(_: Forest) -> torch.Tensor:
        raise DeviceError("device fake", "is gone")

    told = list[InputError]()
    settings = options(on_error=told.append)
    loop = Loop(tokenizer, FakeDevice(compute=broken))
    with pytest.raises(DeviceError):
        list(loop.matrices(GOOD, settings, Report(), lambda _: None))
    model = Embedder(tiny_checkpoint, device="cpu")
    with pytest.raises(InputError, match="text 1: not a string"):
        list(model.encode_groups(["a", 3], on_error=told.append))
    with pytest.raises(TypeError, match="on_error"):
        model.encode(["a"], on_error=told.append)
    assert told == []


def test_progress_goes_to_the_caller(tiny_checkpoint: Path) -> None:
    model, done = Embedder(tiny_checkpoint, device="cpu", max_batch_tokens=50), list[int]()
    list(model.encode_groups(GOOD[:50], on_done=done.append))
    assert sum(done) == 50
    assert len(done) > 3
