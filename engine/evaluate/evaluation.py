"""One evaluation: choose tasks, check that their data are available, let mteb run them, and read the scores.

mteb saves the result of each finished task and skips tasks with a saved result, so an interrupted run can be continued.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import ConfigError, require_extra
from lastword.evaluate.tasks import check_reachable, get_benchmark, get_tasks
from lastword.model_info import HubOptions, find_known_name, find_published
from lastword.progress import on_terminal, progress_bar
from lastword.reranker import Reranker
from lastword.reranker_info import is_reranker, reranker_options
from lastword.weights import CHAT_TEMPLATE, locate

# Number of texts in each batch that mteb passes; lastword forms its own batches, by tokens.
_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class BenchmarkScore:
    """The score of one benchmark: the one on the model card, and the one measured here."""

    benchmark: str
    card: float | None  # percent, as printed on the model card
    ours: float | None  # percent, over the tasks that have a result
    done: int  # number of tasks that have a result
    tasks: int  # number of all tasks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All results of one evaluation."""

    model: str  # name of the model in mteb
    revision: str  # the model's commit on the hub; for a folder, its fingerprint
    scores: dict[str, float]  # task name: main score in percent
    failed: dict[str, str]  # task name: reason
    benchmarks: list[BenchmarkScore]
    closed: list[
        str
    ]  # names of benchmark tasks that were left out because their data are not public
    folder: str  # where mteb saves results


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
    """Run the mteb tasks that have no result yet, and return all scores. A failed task does not stop the others.

    Args:
        model: Hugging Face id or folder of an embedding model or a reranker. A reranker can run the mteb tasks that
            give it documents to sort.
        tasks: names of mteb tasks, or mteb task objects. For task objects, the availability of the data is not checked
            first.
        benchmarks: names of mteb benchmarks; tasks without public data are left out.
        card: also compare the saved results with the benchmark scores on the model card.
        known_as: Hugging Face id of the published model whose instructions and model card are used; by default `model`
            or, for a folder, the published model with the folder's name.
        results: folder in which mteb saves results; by default $MTEB_CACHE or ~/.cache/mteb.
        show_progress_bar: whether to show progress bars; by default only on a terminal.
        options: keyword arguments of `Embedder` or `Reranker`.

    Returns:
        The scores and failures of the tasks, and the scores of the benchmarks.

    Raises:
        ConfigError: a name is unknown, there is nothing to do, or mteb is missing.
        InputError: the data of a task are not available.
    """
    tables = published_scores()
    name = find_known_name(known_as or os.fspath(model), tables)
    on_card = find_published(name, tables, "card", "no table is known") if card else {}
    if not (tasks or benchmarks or card):
        expected = "tasks, benchmarks or card=True"
        raise ConfigError("tasks", "nothing to do", got="none", expected=expected)
    with require_extra("mteb", "eval", "eval"):
        import mteb  # noqa: F401
    chosen, closed = get_tasks(tasks, benchmarks)
    compared = {each: get_benchmark(each) for each in dict.fromkeys([*benchmarks, *on_card])}
    check_reachable([task for task in chosen if task not in tasks])
    options["show_progress_bar"] = show_progress_bar
    encoder, cache = _open(model, name, options), _open_cache(results)
    show = on_terminal() if show_progress_bar is None else show_progress_bar
    scores, failed = _run_tasks(encoder, chosen, cache, show=show)
    meta = encoder.mteb_model_meta
    rows = [
        benchmark_score(key, each, on_card.get(key), meta, cache) for key, each in compared.items()
    ]
    where = str(cache.cache_path)
    return Evaluation(meta.name, meta.revision, scores, failed, rows, closed, where)


def _open(model: str | os.PathLike[str], known_as: str, options: dict[str, Any]) -> Any:
    """Open a model as an mteb encoder or, if it is a reranker, as an mteb cross-encoder."""
    from lastword.evaluate.cross_encoder import LastwordCrossEncoder
    from lastword.evaluate.encoder import LastwordEncoder

    where = {key: options[key] for key in HubOptions.__annotations__ if key in options}
    found = locate(model, also=(CHAT_TEMPLATE,), **where)
    if is_reranker(found.folder, found.name):
        return LastwordCrossEncoder(Reranker(model, **reranker_options(options)), known_as)
    return LastwordEncoder(Embedder(model, **options), known_as)


def _open_cache(results: str | os.PathLike[str] | None) -> Any:
    """Return mteb's cache of results."""
    from mteb.cache import ResultCache

    return ResultCache(None if results is None else Path(results))


def published_scores() -> dict[str, dict[str, float]]:
    """Return the benchmark scores printed on model cards, in percent: {Hugging Face id: {benchmark: score}}."""
    path = resources.files("lastword.evaluate").joinpath("published_scores.json")
    known: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return known


def _run_tasks(
    encoder: Any, tasks: list[Any], cache: Any, *, show: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Let mteb evaluate the tasks one by one; return {task: main score in percent} and {failed task: reason}."""
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
    """Compute a benchmark's score from the results that mteb has saved.

    Args:
        name: name of the benchmark.
        benchmark: mteb's object for it.
        card: the score on the model card in percent, or None; it is only copied to the result.
        meta: the model's `ModelMeta`, by which mteb saves results.
        cache: mteb's `ResultCache`.

    Returns:
        The score; `ours` is the benchmark's first aggregation over the finished tasks, None if no task is finished.
    """
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
