"""Which tasks to run, and whether their data can be had, before any work begins."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lastword.errors import ConfigError, InputError, some

_HUB_IS_DOWN = "the hub cannot be reached, and they are not in the local cache"


def get_benchmark(name: str) -> Any:
    """Find a benchmark of mteb by its name."""
    import mteb

    try:
        return mteb.get_benchmark(name)
    except KeyError as error:
        raise _unknown("benchmark", name, error) from error


def get_tasks(names: Sequence[Any], benchmarks: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Gather tasks by name and those of benchmarks, each once.

    A task object of the caller's own stands for itself. Returns the tasks, and the names of a benchmark's closed tasks,
    which are left out: their data are not public.
    """
    import mteb

    chosen: dict[str, Any] = {}
    closed = []
    for name in names:
        try:
            task = mteb.get_task(name) if isinstance(name, str) else name
        except KeyError as error:
            raise _unknown("tasks", name, error) from error
        chosen[task.metadata.name] = task
    for benchmark in benchmarks:
        for task in get_benchmark(benchmark).tasks:
            if task.metadata.is_public:
                chosen.setdefault(task.metadata.name, task)
            else:
                closed.append(task.metadata.name)
    return list(chosen.values()), closed


def _unknown(where: str, name: object, error: KeyError) -> ConfigError:
    """Say it with what mteb says, in one line that is not too long; it names what is near."""
    said = " ".join(str(error.args[0] if error.args else error).split())[:200]
    return ConfigError(where, "unknown", got=repr(name), remedy=said)


def check_reachable(tasks: Iterable[Any]) -> None:
    """Ask for every data set, in the local cache first and then on the hub.

    Raises:
        InputError: names the tasks whose data cannot be had.
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
            f"data of {len(missing)} cannot be had: {some(missing)} ({reason})",
            remedy="Run once with the network, or leave them out.",
        )


def _problem(dataset: dict[str, Any], *, hub_is_down: bool) -> str:
    """Say why a data set cannot be had, or nothing."""
    from huggingface_hub import HfApi, errors

    path, revision = dataset["path"], dataset.get("revision")
    if _cached(path):
        return ""
    if hub_is_down:
        return _HUB_IS_DOWN
    try:
        HfApi().dataset_info(path, revision=revision, timeout=10)
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        return f"the answer for {path} was {status}" if status else f"{path}: {error}"
    except Exception:  # noqa: BLE001 (network errors have many unrelated classes)
        return _HUB_IS_DOWN
    return ""


def _cached(path: str) -> bool:
    """Whether a data set has been fetched before, by huggingface-hub or as prepared by datasets."""
    from datasets import config
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE, "datasets--" + path.replace("/", "--"), "snapshots")
    prepared = Path(config.HF_DATASETS_CACHE, path.replace("/", "___"))
    return any(folder.is_dir() and any(folder.iterdir()) for folder in (hub, prepared))
