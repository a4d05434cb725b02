"""Copies of an `Embedder`: within its process they share the weights; another process opens the model again.

A pickle holds no weights. It holds the model's name, folder and commit, the current settings, and the fingerprint by
which the other process checks that it has opened the same model. It holds no hub token: the other process uses the
model in its cache, or its own login.
"""

import multiprocessing
import pickle
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from lastword.errors import ConfigError, WeightsError
from lastword.model_info import ModelInfo
from lastword.runtime.loop import Loop
from lastword.weights import locate

if TYPE_CHECKING:
    from lastword.embedder import Embedder

# Attributes that lastword itself sets on an Embedder; any other was added by the caller.
_OWN = ("info", "loop", "_opened", "_sharing")
_REMEDY = "Open the model in the other process instead."
# In a worker process: the last model opened there, and how, so that the next task finds it loaded.
_kept: "tuple[tuple[type[Embedder], dict[str, Any]], Embedder] | None" = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The arguments of an `Embedder` that are kept neither in its `info` nor in its `loop`.

    Args:
        kwargs: the keyword arguments that were passed on to `ModelInfo`.
        cuda_graphs: as for `Embedder`.
        tune_process: as for `Embedder`.
        own_runner: whether the Embedder made its runner; False if the caller passed one.
    """

    kwargs: Mapping[str, Any]
    cuda_graphs: bool
    tune_process: bool
    own_runner: bool


class Reopenable:
    """The part of an `Embedder` that makes copies: `pickle`, `copy.copy` and `copy.deepcopy`.

    A copy in the same process has its own settings and shares the weights and the worker processes, which end when
    the last of the copies is closed or collected.
    """

    info: ModelInfo
    loop: Loop
    _opened: Opened
    _sharing: "WeakSet[Reopenable]"  # this object and its copies, without those that are closed

    def _share(self, opened: Opened) -> None:
        self._opened, self._sharing = opened, WeakSet([self])

    def close(self) -> None:
        """Free the model and end the worker processes, if any, unless a copy of this object still uses them.

        The memory goes back to the system. Embedding a text afterwards raises a DeviceError. An Embedder that is never
        closed is freed in the same way once it and its copies are garbage-collected.
        """
        self._sharing.discard(self)
        if not self._sharing:
            self.loop.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Self:
        """Make an object that shares the weights but has its own settings."""
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        other.info, other.loop = copy(self.info), copy(self.loop)
        other.info.prompts = dict(self.info.prompts)
        other.loop.budget = copy(self.loop.budget)
        self._sharing.add(other)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Do the same as `copy.copy`, and deep-copy the attributes that the caller has added to the object."""
        other = memo[id(self)] = copy(self)
        vars(other).update(deepcopy(self._added(), memo))
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what is needed to open the model again, not its weights.

        Raises:
            ConfigError: the Embedder computes with a `runner` or `open_checkpoint` that cannot be pickled.
        """
        return _reopen, (type(self), _model_of(self), _settings_of(self)), self._added() or None

    def _added(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OWN}


def _model_of(embedder: Reopenable) -> dict[str, Any]:
    """Describe which model an Embedder has opened, and how; equal models have equal descriptions."""
    info, opened = embedder.info, embedder._opened
    if not opened.own_runner:
        _refuse("runner", embedder.loop.runner)
    open_checkpoint = opened.kwargs.get("open_checkpoint")
    try:
        pickle.dumps(open_checkpoint)
    except Exception:  # noqa: BLE001  whatever its own pickling does
        _refuse("open_checkpoint", open_checkpoint)
    how = {name: opened.kwargs.get(name) for name in ("cache_dir", "local_files_only")}
    return {
        "name": info.name,
        "builtin": info.files == locate(None),
        "folder": str(info.files.folder),
        "revision": info.files.revision,
        "space": _space(info),
        "hub": {name: value for name, value in how.items() if value is not None},
        "device": ",".join(map(str, info.devices)),
        "dtype": str(info.dtype),
        "quantize": info.quantize,
        "open_checkpoint": open_checkpoint,
        "cuda_graphs": opened.cuda_graphs,
        "tune_process": opened.tune_process,
    }


def _settings_of(embedder: Reopenable) -> dict[str, Any]:
    """Return the settings that can be changed on a live object, as they are now."""
    info, loop = embedder.info, embedder.loop
    limit = loop.budget.limit
    return {
        "max_length": info.max_length,
        "truncate_dim": info.truncate_dim,
        "prompts": dict(info.prompts),
        "default_prompt_name": info.default_prompt_name,
        "max_batch_tokens": None if limit == loop.runner.batch_tokens else limit,
    }


def _space(info: ModelInfo) -> str:
    """Return the space fingerprint of the model's full-width vectors, whatever `truncate_dim` is."""
    return info.space_fingerprint(info.config.hidden_size)


def _refuse(name: str, value: object) -> None:
    raise ConfigError(
        name,
        "an Embedder made with it cannot be sent to another process",
        got=type(value).__name__,
        expected="a function that can be imported" if name == "open_checkpoint" else "none",
        remedy=_REMEDY,
    )


def _reopen(kind: "type[Embedder]", model: dict[str, Any], settings: dict[str, Any]) -> "Embedder":
    """Open a pickled Embedder; a worker process of `multiprocessing` keeps the last one for its next task."""
    global _kept  # noqa: PLW0603  the process has one
    kept = _kept
    if kept is not None and kept[0] == (kind, model):
        embedder = copy(kept[1])
    else:
        embedder = _open(kind, model)
        if multiprocessing.parent_process() is not None and len(embedder.info.devices) == 1:
            _kept = (kind, model), embedder
            embedder = copy(embedder)
    for name, value in settings.items():
        setattr(embedder, name, value)
    return embedder


def _open(kind: "type[Embedder]", model: dict[str, Any]) -> "Embedder":
    """Open the model from its folder if this machine has it, else from the hub at the same commit.

    Raises:
        WeightsError: the model cannot be found, or its fingerprint is not the pickled one.
    """
    from lastword.embedder import Embedder

    how = {
        name: model[name] for name in ("device", "dtype", "quantize", "cuda_graphs", "tune_process")
    }
    if model["open_checkpoint"] is not None:
        how["open_checkpoint"] = model["open_checkpoint"]
    where: str | None = None if model["builtin"] else model["folder"]
    if model["revision"] is not None and not Path(model["folder"]).is_dir():
        where = model["name"]
        how |= {"revision": model["revision"], **model["hub"]}
    embedder = kind.__new__(kind)
    Embedder.__init__(embedder, where, show_progress_bar=False, **how)
    info = embedder.info
    info.name = model["name"]
    info.files = replace(info.files, name=model["name"], revision=model["revision"])
    embedder._opened = replace(embedder._opened, kwargs={**embedder._opened.kwargs, **model["hub"]})
    if (space := _space(info)) != model["space"]:
        raise WeightsError(
            str(info.files.folder),
            "is not the model that the pickled Embedder had opened",
            got=f"space fingerprint {space}",
            expected=model["space"],
            remedy="The model's files or lastword have changed since the pickle was made. Open the model again.",
        )
    return embedder
