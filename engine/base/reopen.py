"""Copies of an `Embedder` or `Reranker`: in one process they share the weights; another process opens the model again.

A pickle contains no weights. It contains the model's name, folder and commit, the current settings, and a fingerprint,
with which the other process checks that it has opened the same model. A pickle has no token for the Hugging Face Hub:
if the other process does not find the model on its disk, it downloads the model with its own login.
"""

import multiprocessing
import pickle
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self
from weakref import WeakSet

from lastword.base.opening import Opening
from lastword.errors import ConfigError, WeightsError, with_article
from lastword.model_info import OpenedModel
from lastword.runtime.loop import Loop
from lastword.weights import locate

# Attributes that lastword itself sets on the object; the caller may add others.
_OWN = ("info", "loop", "_opened", "_sharing")
_REMEDY = "Open the model in the other process instead."
# In a worker process: the last object opened there, with its class and description, so that the next task need not
# load the model again.
_kept: "tuple[tuple[type[Reopenable], dict[str, Any]], Reopenable] | None" = None


@dataclass(frozen=True, slots=True)
class OpenArguments:
    """The arguments that an object was opened with; its `info` and its `loop` do not store all of them.

    Args:
        how: the arguments that change no result.
        kwargs: the caller's keyword arguments for the object's `info`.
    """

    how: Opening
    kwargs: Mapping[str, Any]


class Reopenable:
    """The part of an `Embedder` or `Reranker` that implements `pickle`, `copy.copy` and `copy.deepcopy`.

    A copy in the same process has its own settings, but shares the weights and the worker processes. These are freed
    once the object and all its copies are closed or garbage-collected.
    """

    info: OpenedModel
    loop: Loop
    # The names of the settings that can be changed on an open object, apart from max_batch_tokens.
    _settings: ClassVar[tuple[str, ...]]
    _opened: OpenArguments
    _sharing: "WeakSet[Reopenable]"  # the open ones among this object and its copies

    def _share(self, how: Opening, kwargs: Mapping[str, Any]) -> None:
        """Store the arguments, and begin the set of objects that share the weights."""
        self._opened, self._sharing = OpenArguments(how, kwargs), WeakSet([self])

    @property
    def closed(self) -> bool:
        """Whether `close` has been called on this object."""
        return self not in self._sharing

    def close(self) -> None:
        """Free the model and end the worker processes, if any, unless a copy of this object still uses them.

        Once the model is freed, its memory goes back to the system, and computing anything raises a DeviceError.
        Without a call of `close`, the model is freed when the object and its copies are garbage-collected.
        """
        self._sharing.discard(self)
        if not self._sharing:
            self.loop.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Self:
        """Return an object that shares the weights but has its own settings."""
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        other.info, other.loop = copy(self.info), copy(self.loop)
        other.info.prompts = dict(self.info.prompts)
        other.loop.budget = copy(self.loop.budget)
        self._sharing.add(other)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy as `copy.copy` does, but deep-copy the attributes that the caller has added to the object."""
        other = memo[id(self)] = copy(self)
        vars(other).update(deepcopy(self._caller_attributes(), memo))
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what is needed to open the model again, but not its weights.

        Raises:
            ConfigError: the caller gave the object a function that cannot be pickled, or a `runner`.
        """
        return (
            _reopen,
            (type(self), _model_of(self), _settings_of(self)),
            self._caller_attributes() or None,
        )

    def _caller_attributes(self) -> dict[str, Any]:
        """Return the attributes that the caller has added."""
        return {name: value for name, value in vars(self).items() if name not in _OWN}


def _public(kind: type[Reopenable]) -> type[Reopenable]:
    """Return `Embedder` or `Reranker`: `kind` itself or, if `kind` is a caller's subclass, its base class."""
    return next(each for each in kind.__mro__ if Reopenable in each.__bases__)


def _model_of(model: Reopenable) -> dict[str, Any]:
    """Describe which model an object has opened, and how; objects with equal descriptions can share the weights."""
    info, opened = model.info, model._opened
    if opened.how.runner is not None:
        _refuse(model, "runner", opened.how.runner, "none")
    open_checkpoint = opened.kwargs.get("open_checkpoint")
    _check_function(model, "open_checkpoint", open_checkpoint)
    where = {name: opened.kwargs.get(name) for name in ("cache_dir", "local_files_only")}
    return {
        "name": info.name,
        "builtin": info.files == locate(None),
        "folder": str(info.files.folder),
        "revision": info.files.revision,
        "identity": info.identity(),
        "hub": {name: value for name, value in where.items() if value is not None},
        "device": ",".join(map(str, info.devices)),
        "dtype": str(info.dtype),
        "quantize": info.quantize,
        "open_checkpoint": open_checkpoint,
        "cuda_graphs": opened.how.cuda_graphs,
        "tune_process": opened.how.tune_process,
    }


def _settings_of(model: Reopenable) -> dict[str, Any]:
    """Return the current values of the settings that can be changed on an open object."""
    found = {name: getattr(model.info, name) for name in model._settings}
    found["prompts"] = dict(model.info.prompts)
    for name, value in found.items():
        if callable(value):
            _check_function(model, name, value)
    limit = model.loop.budget.limit
    found["max_batch_tokens"] = None if limit == model.loop.runner.batch_tokens else limit
    return found


def _check_function(model: Reopenable, name: str, function: object) -> None:
    """Raise ConfigError if the caller's function cannot be pickled."""
    try:
        pickle.dumps(function)
    except Exception:  # noqa: BLE001  the function's own pickling may raise anything
        _refuse(model, name, function, "a function that can be imported")


def _refuse(model: Reopenable, name: str, value: object, expected: str) -> NoReturn:
    """Raise the error about an argument that prevents pickling."""
    raise ConfigError(
        name,
        f"{with_article(_public(type(model)).__name__)} made with it cannot be sent to another process",
        got=type(value).__name__,
        expected=expected,
        remedy=_REMEDY,
    )


def _reopen(
    kind: type[Reopenable], model: dict[str, Any], settings: dict[str, Any]
) -> "Reopenable":
    """Open the model of a pickled object, with the pickled settings.

    A worker process of `multiprocessing` keeps a model on a single device open for the next task.
    """
    global _kept  # noqa: PLW0603  one for the process
    kept = _kept
    if kept is not None and kept[0] == (kind, model):
        opened = copy(kept[1])
    else:
        opened = _open(kind, model)
        if multiprocessing.parent_process() is not None and len(opened.info.devices) == 1:
            _kept = (kind, model), opened
            opened = copy(opened)
    for name, value in settings.items():
        setattr(opened, name, value)
    return opened


def _open(kind: type[Reopenable], model: dict[str, Any]) -> Reopenable:
    """Open the model from its folder or, if that does not exist here, from the same commit on the Hugging Face Hub.

    Raises:
        WeightsError: the model cannot be found, or its fingerprint differs from the pickled one.
    """
    names = ("device", "dtype", "quantize", "cuda_graphs", "tune_process")
    how = {name: model[name] for name in names}
    if model["open_checkpoint"] is not None:
        how["open_checkpoint"] = model["open_checkpoint"]
    where: str | None = None if model["builtin"] else model["folder"]
    if model["revision"] is not None and not Path(model["folder"]).is_dir():
        where = model["name"]
        how |= {"revision": model["revision"], **model["hub"]}
    public: Any = _public(kind)
    opened = kind.__new__(kind)
    public.__init__(opened, where, show_progress_bar=False, **how)
    info = opened.info
    info.name = model["name"]
    info.files = replace(info.files, name=model["name"], revision=model["revision"])
    opened._opened = replace(opened._opened, kwargs={**opened._opened.kwargs, **model["hub"]})
    if (identity := info.identity()) != model["identity"]:
        raise WeightsError(
            str(info.files.folder),
            f"is not the model that the pickled {public.__name__} had opened",
            got=f"fingerprint {identity}",
            expected=model["identity"],
            remedy="The model's files or lastword have changed since the pickle was made. Open the model again.",
        )
    return opened
