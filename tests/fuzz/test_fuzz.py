"""Random mutations of every input by a fixed seed, the corpus of coverage-guided fuzzing, and that faults are found."""

from pathlib import Path
from random import Random

import pytest
from fuzz import mutations, readers
from fuzz.campaign import campaign

from lastword.bench.checkpoint import make_checkpoint

SEED = 19
CASES = 1000
CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("part", range(4))
def test_nothing_but_refusals_and_right_results(part, tmp_path):
    notes: list[str] = []
    found, accepted = campaign(
        SEED, part * CASES // 4, CASES // 4, tmp_path, oracle=False, note=notes.append
    )
    assert not found, "\n".join([*notes, *(each["trace"] for each in found)])
    # A campaign whose every input is refused would find nothing, whatever is wrong.
    kinds = ("config.json", "recipe", "ranges", "input.txt", "input.tsv", "input.jsonl")
    assert all(accepted[kind] for kind in kinds), accepted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    readers.prepare(folder, make_checkpoint(folder / "seed", weights=False))
    return folder


@pytest.mark.parametrize("target", readers.TARGETS)
def test_the_corpus(target, folder):
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        try:
            readers.TARGETS[target](path.read_bytes(), folder)
        except Exception as error:
            error.add_note(f"corpus/{target}/{path.name}")
            raise


# Put into the process of a campaign: the number of each case is the fault that it has.
FAULTS = f"""
import sys
if "--child" in sys.orig_argv:
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    import os, time, torch
    from fuzz import campaign, cases
    campaign.MOST_WAIT, campaign.MOST_SECONDS, campaign.MOST_BYTES = 3, 3, 700 << 20
    def run(case, seeds):
        match case.number:
            case 0: raise KeyError("x")
            case 1: time.sleep(60)
            case 2: cases.check_message("two\\nlines")
            case 3: b"x" * (500 << 20)
            case 4: os.abort()
    cases.run = run
"""


@pytest.mark.timing
def test_faults_are_found(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found, _ = campaign(1, 0, 6, tmp_path / "kept", oracle=False, note=lambda text: None)
    said = {each["number"]: each["kind"] for each in found}
    words = ("KeyError", "Hang", "a message of", "more than 2 GB", "the process died")
    assert list(said) == list(range(5))
    assert [word for number, word in enumerate(words) if word not in said[number]] == []
    # On a busy machine the last case, which has no fault, may exceed the three seconds.
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept - {"1-5"} == {f"1-{n}" for n in range(4)}


def test_mutations_follow_their_seed_and_change_something():
    data = b'{"a": [1, 2, {"b": "c"}], "d": 0.5, "e": {}}'
    for mutate in (mutations.mutate_json, mutations.mutate_bytes):
        made = [mutate(Random(number), data) for number in range(200)]
        assert made == [mutate(Random(number), data) for number in range(200)]
        assert len(set(made)) > 120
