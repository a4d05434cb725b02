"""Choose the tasks to run, and check that their data are available before any work starts."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lastword.errors import ConfigError, InputError, count, list_some

_HUB_IS_DOWN = "the hub cannot be reached, and the data are not in the local cache"


def get_benchmark(name: str) -> Any:
    """Return an mteb benchmark by its name.

    Raises:
        ConfigError: mteb has no such benchmark.
    """
    import mteb

    try:
        return mteb.get_benchmark(name)
    except KeyError as error:
        raise _unknown("benchmark", name, (each.name for each in mteb.get_benchmarks())) from error


def get_tasks(names: Sequence[Any], benchmarks: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Collect the named tasks and the tasks of the named benchmarks, each once.

    Args:
        names: names of mteb tasks, or task objects.
        benchmarks: names of mteb benchmarks.

    Returns:
        The tasks, and the names of the benchmark tasks left out because their data are not public.

    Raises:
        ConfigError: mteb has no such task or benchmark.
    """
    import mteb

    chosen: dict[str, Any] = {}
    closed = []
    for name in names:
        try:
            task = mteb.get_task(name) if isinstance(name, str) else name
        except KeyError as error:
            raise _unknown(
                "tasks", name, (each.metadata.name for each in mteb.get_tasks())
            ) from error
        chosen[task.metadata.name] = task
    for benchmark in benchmarks:
        for task in get_benchmark(benchmark).tasks:
            if task.metadata.is_public:
                chosen.setdefault(task.metadata.name, task)
            else:
                closed.append(task.metadata.name)
    return list(chosen.values()), closed


def _unknown(where: str, name: str, known: Iterable[str]) -> ConfigError:
    """Make the error for a name that mteb does not know; it suggests similar names."""
    similar = get_close_matches(name, set(known), n=5)
    expected = f"a name that mteb knows{', such as ' if similar else ''}{list_some(similar)}"
    return ConfigError(where, "unknown", got=repr(name), expected=expected)


def check_reachable(tasks: Iterable[Any]) -> None:
    """Check that every task's data set is in the local cache or can be downloaded from the hub.

    Raises:
        InputError: the data of some tasks are not available; the error names the tasks.
    """
    missing, reason = [], ""
    for task in tasks:
        for part in getattr(task.metadata, "tasks", None) or [task]:
            problem = _problem(part.metadata.dataset, hub_is_down=reason == _HUB_IS_DOWN)
            if problem:
                missing.append(part.metadata.name)
                reason = problem
    if missing:
        raise InputError(
            "tasks",
            f"no data for {count(len(missing), 'task')}: {list_some(missing)} ({reason})",
            remedy="Run once with a network connection, or leave these tasks out.",
        )


def _problem(dataset: dict[str, Any], *, hub_is_down: bool) -> str:
    """Return why a data set is not available, or "" if it is available."""
    from huggingface_hub import HfApi, errors

    path, revision = dataset["path"], dataset.get("revision")
    if _is_cached(path):
        return ""
    if hub_is_down:
        return _HUB_IS_DOWN
    try:
        HfApi().dataset_info(path, revision=revision, timeout=10)
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        return f"the hub answered {status} for {path}" if status else f"{path}: {error}"
    except Exception:  # noqa: BLE001 (network errors have many unrelated classes)
        return _HUB_IS_DOWN
    return ""


def _is_cached(path: str) -> bool:
    """Return whether a data set is in the local cache of huggingface-hub or of datasets."""
    from datasets import config
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE, "datasets--" + path.replace("/", "--"), "snapshots")
    prepared = Path(config.HF_DATASETS_CACHE, path.replace("/", "___"))
    return any(folder.is_dir() and any(folder.iterdir()) for folder in (hub, prepared))
