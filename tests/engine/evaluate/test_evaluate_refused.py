"""Refusals of evaluation: unknown names, data that are not available, tasks without public data, a missing mteb."""

from pathlib import Path

import pytest

from lastword import ConfigError, InputError
from lastword.cli.main import main
from lastword.evaluate import evaluate, evaluation, tasks

mteb = pytest.importorskip("mteb", reason="the eval extra is not installed")


@pytest.mark.parametrize(
    ("options", "parts", "advice"),
    [
        ({}, ("tasks", "nothing to do", "none"), "tasks, benchmarks or card=True"),
        ({"tasks": ["STS99"]}, ("tasks", "unknown", "'STS99'"), "STS"),
        ({"tasks": ["?"]}, ("tasks", "unknown", "'?'"), "a name that mteb knows"),
        ({"benchmarks": ["MTEB(moon)"]}, ("benchmark", "unknown", "'MTEB(moon)'"), "such as "),
        ({"card": True}, ("card", "no table is known", None), "known_as"),
    ],
)
def test_refused(options: dict, parts: tuple, advice: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(tiny_checkpoint, **options)
    raised = caught.value
    where, what, got = parts
    assert (raised.where, raised.what) == (where, what)
    assert raised.got == (got or repr(str(tiny_checkpoint)))
    assert advice in f"{raised.expected} {raised.remedy}"
    assert "KeyError" not in str(raised)


@pytest.mark.parametrize("status", [None, 404])
def test_unavailable_data(status, tiny_checkpoint, monkeypatch, tmp_path) -> None:
    import httpx2
    from huggingface_hub import HfApi, constants, errors

    requested = []

    def refuse(self, path, **options):
        requested.append(path)
        if status is None:
            raise ConnectionError("no route")
        request = httpx2.Request("GET", "https://example.org")
        raise errors.HfHubHTTPError("no", response=httpx2.Response(status, request=request))

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(evaluation, "Embedder", None)  # nothing may be opened before
    with pytest.raises(InputError) as caught:
        evaluate(tiny_checkpoint, benchmarks=["MTEB(eng, v2)"])
    raised = caught.value
    assert raised.where == "tasks"
    assert raised.what.startswith("no data for 41 tasks: ")
    assert " and 36 more (" in raised.what
    assert raised.remedy == "Run once with a network connection, or leave these tasks out."
    assert len(requested) == (1 if status is None else 41), "an unreachable hub is tried only once"
    assert ("404" in raised.what) == (status == 404)
    assert ("the hub cannot be reached" in raised.what) == (status is None)


def test_cached_data_need_no_hub(monkeypatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(HfApi, "dataset_info", None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "datasets--mteb--sts12-sts/snapshots/abc").mkdir(parents=True)
    tasks.check_reachable([mteb.get_task("STS12")])


def test_a_closed_task_of_a_benchmark_is_left_out() -> None:
    chosen, closed = tasks.get_tasks([], ["RTEB(beta)"])
    assert (len(chosen), len(closed)) == (17, 13)


def test_without_mteb_it_says_what_to_install(tiny_checkpoint, monkeypatch, capfd) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    assert main(["eval", str(tiny_checkpoint), "--tasks", "STS12"]) == 2
    assert "pip install 'lastword[eval]'" in capfd.readouterr().err
    assert main(["eval", str(tiny_checkpoint)]) == 2
    assert "nothing to do" in capfd.readouterr().err
