"""One evaluation: choose tasks, make sure of their data, let mteb run what has no result yet, and read the scores.

mteb saves each task's JSON when the task is done, so a run that was stopped goes on where it was.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import ConfigError, needing
from lastword.evaluate.tasks import check_reachable, get_benchmark, get_tasks
from lastword.model_info import known_name, published
from lastword.progress import on_terminal, progress_bar

# Texts that mteb hands over at once; lastword cuts its own batches by tokens.
_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class BenchmarkScore:
    """A benchmark's score in percent on the model's card and here, and how many of its tasks have a result."""

    benchmark: str
    card: float | None
    ours: float | None
    done: int
    tasks: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Main scores in percent by task, why others failed, benchmarks' scores, and where mteb keeps the results.

    `closed`: tasks of the benchmarks whose data are not public, left out.
    """

    model: str
    revision: str
    scores: dict[str, float]
    failed: dict[str, str]
    benchmarks: list[BenchmarkScore]
    closed: list[str]
    folder: str


def evaluate(
    model: str | os.PathLike[str],
    *,
    tasks: Sequence[Any] = (),
    benchmarks: Sequence[str] = (),
    card: bool = False,
    known_as: str | None = None,
    results: str | os.PathLike[str] | None = None,
    show_progress_bar: bool | None = None,
    **options: Any,
) -> Evaluation:
    """Run tasks of mteb that have no result yet, and give all scores; a task that fails does not stop the others.

    Args:
        model: hub id or folder.
        tasks: names, or mteb task objects of your own, whose data are your own affair.
        benchmarks: names; their closed tasks are left out.
        card: compare with the table on the model's card, from the results that there are.
        known_as: the hub id whose instructions and card are used; default: `model`, or the hub id of a known card whose
            name the folder bears.
        results: mteb's cache folder; default: MTEB_CACHE, else ~/.cache/mteb.
        show_progress_bar: default: on a terminal.
        options: as `Embedder` takes them.

    Raises:
        ConfigError: an unknown name, or mteb is missing.
        InputError: data that cannot be had.
    """
    tables = published_scores()
    name = known_name(known_as or os.fspath(model), tables)
    on_card = published(name, tables, "card", "no table is known") if card else {}
    if not (tasks or benchmarks or card):
        got = "neither tasks nor benchmarks nor card"
        raise ConfigError("tasks", "none named", got=got, expected="one of them")
    with needing("mteb", "eval", "eval"):
        import mteb  # noqa: F401
    chosen, closed = get_tasks(tasks, benchmarks)
    compared = {each: get_benchmark(each) for each in dict.fromkeys([*benchmarks, *on_card])}
    check_reachable([task for task in chosen if task not in tasks])
    embedder = Embedder(model, show_progress_bar=show_progress_bar, **options)
    encoder, cache = _open(embedder, name, results)
    show = on_terminal() if show_progress_bar is None else show_progress_bar
    scores, failed = _run_tasks(encoder, chosen, cache, show=show)
    meta = encoder.mteb_model_meta
    rows = [
        benchmark_score(key, each, on_card.get(key), meta, cache) for key, each in compared.items()
    ]
    where = str(cache.cache_path)
    return Evaluation(meta.name, meta.revision, scores, failed, rows, closed, where)


def _open(
    embedder: Embedder, known_as: str, results: str | os.PathLike[str] | None
) -> tuple[Any, Any]:
    """Give mteb's two sides: the encoder and the cache of results."""
    from mteb.cache import ResultCache

    from lastword.evaluate.encoder import LastwordEncoder

    cache = ResultCache(None if results is None else Path(results))
    return LastwordEncoder(embedder, known_as), cache


def published_scores() -> dict[str, dict[str, float]]:
    """The tables of benchmark scores in percent on models' cards, by hub id."""
    path = resources.files("lastword.evaluate").joinpath("published_scores.json")
    known: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return known


def _run_tasks(
    encoder: Any, tasks: list[Any], cache: Any, *, show: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Let mteb evaluate one task after another; give main scores in percent, and why the others failed."""
    import mteb

    scores, failed = {}, {}
    with progress_bar(len(tasks), show=show and bool(tasks), unit=" tasks") as advance:
        for task in tasks:
            try:
                (result,) = mteb.evaluate(
                    encoder,
                    task,
                    cache=cache,
                    co2_tracker=False,
                    encode_kwargs={"batch_size": _TEXTS_AT_ONCE, "show_progress_bar": show},
                    show_progress_bar=show,
                ).task_results
            except Exception as error:  # noqa: BLE001 (a task's own code may raise anything)
                reason = str(error).strip().partition("\n")[0]
                failed[task.metadata.name] = f"{type(error).__name__}: {reason}"
            else:
                scores[result.task_name] = 100 * result.get_score()
            advance(1)
    return scores, failed


def benchmark_score(
    name: str, benchmark: Any, card: float | None, meta: Any, cache: Any
) -> BenchmarkScore:
    """Read a benchmark's results; its score is by its own first rule, over the tasks that are done."""
    from mteb.results import ModelResult

    found = (cache.load_task_result(task.metadata.name, meta) for task in benchmark.tasks)
    done = [each for each in found if each is not None]
    if not done:
        return BenchmarkScore(name, card, None, 0, len(benchmark.tasks))
    whole = ModelResult(model_name=meta.name, model_revision=meta.revision, task_results=done)
    results = whole.select_tasks(benchmark.tasks).task_results
    (score, *_) = benchmark.aggregations[0].aggregate(results).values()
    ours = None if score is None else 100 * score
    return BenchmarkScore(name, card, ours, len(results), len(benchmark.tasks))
