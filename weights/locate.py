"""Find a model's folder from a path or hub id; if no model is named, find the built-in model's folder.

huggingface-hub is imported only for a hub id. Only the files that lastword reads or the caller requests are fetched.
The fetched files are checked afterwards, because an interrupted download can look complete.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lastword.errors import ConfigError, WeightsError, list_some
from lastword.weights.files.reading import has_file, missing_file_error, read_error
from lastword.weights.files.shards import INDEX, SINGLE, weight_files
from lastword.weights.json_fields import Fields, read_optional_object, show_value
from lastword.weights.module_list import refuse_transformer_folder

_NEEDED = ("config.json", "tokenizer.json")
FETCHED = (
    *_NEEDED,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "*.safetensors",
    INDEX,
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "*/config.json",
)
# Weights that lastword does not read: those of other modules and adapters, and weights in other formats.
NEVER_FETCHED = ("*/*.safetensors", "adapter_model*", "consolidated*", "onnx/*", "openvino/*")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"  # weights in PyTorch's format, which lastword does not read
BUILTIN = "built-in"
BUILTIN_NOTICE = "model: none is named, so the small built-in one (English, for trials) is used"
_OTHER_FORMATS = (".gguf", ".bin", ".pt", ".pth")
_BUILTIN_FOLDER = Path(__file__).with_name("builtin")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{,95}(/[A-Za-z0-9][\w.-]{,95})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's name (as the caller gave it, or `BUILTIN`), folder, and commit on the hub (None for a local folder)."""

    name: str
    folder: Path
    revision: str | None


def locate(
    model: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    also: Sequence[str] = (),
) -> ModelFiles:
    """Find a model's folder; if `model` is not a local folder, fetch it from the hub.

    Args:
        model: a folder or a hub id such as `Qwen/Qwen3-Embedding-0.6B`; an existing folder takes
            precedence. None means the built-in model, whose name is `BUILTIN`.
        revision: branch, tag or commit of the hub repository; must be None for a folder and for the built-in model.
        cache_dir: the folder of the hub's cache; None means huggingface-hub's default. `cache_dir` and the arguments
            below have no effect for a folder or the built-in model.
        token: a hub token, or False to send none; None means the token of the current login.
        local_files_only: whether to do without the network (`HF_HUB_OFFLINE=1` has the same effect).
        also: additional files to fetch, as names or patterns.

    Returns:
        The model's name, folder and commit.

    Raises:
        WeightsError: the folder or repository does not exist, cannot be reached, or lacks files.
        ConfigError: a revision is given for a folder or the built-in model, or is empty; the folder has an adapter; or
            modules.json puts the model's files in a subfolder.
    """
    if model is None:
        _refuse_revision(revision, "the built-in model")
        _check_complete(_BUILTIN_FOLDER, "Install lastword again.")
        return ModelFiles(BUILTIN, _BUILTIN_FOLDER, None)
    name = os.fspath(model)
    folder = expand_home(name)
    if _is_folder(folder, name):
        _refuse_revision(revision, f"the folder {folder}")
        _check_complete(folder, "Name a folder that holds the whole model.")
        if os.path.samefile(folder, _BUILTIN_FOLDER):
            return ModelFiles(BUILTIN, _BUILTIN_FOLDER, None)
        return ModelFiles(name, folder, None)
    if not isinstance(model, str) or not _REPO_ID.fullmatch(name) or ".." in name:
        raise WeightsError(name, "no such folder, and not a valid hub id (owner/name)")
    if revision == "":
        expected = "a branch, tag or commit"
        raise ConfigError("revision", "the name is empty", got="''", expected=expected)
    if name == BUILTIN:
        remedy = "The built-in model is used when no model is named."
        raise WeightsError(name, "no such folder", remedy=remedy)
    offline = local_files_only or _offline()
    folder = _snapshot(name, revision, cache_dir, (*FETCHED, *also), token=token, offline=offline)
    _check_fetched(folder, name, revision, token=token, offline=offline)
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return ModelFiles(name, folder, commit)


def expand_home(name: str) -> Path:
    """Replace a leading `~` or `~user` by that user's home folder; keep the name if there is no such user."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):  # ValueError: no user can have this name
        return Path(name)


def _refuse_revision(revision: str | None, model: str) -> None:
    """Refuse a revision of a model that is not fetched from the hub: it would have no effect."""
    if revision is not None:
        raise ConfigError(
            "revision",
            f"cannot be chosen for {model}",
            got=show_value(revision),
            expected="none",
            remedy="Leave it out, or name a model on the hub.",
        )


def _is_folder(folder: Path, name: str) -> bool:
    """Return whether there is a folder with this name.

    Raises:
        WeightsError: the name belongs to a file or to a link that leads nowhere, or the folder cannot be read.
    """
    try:
        mode = os.stat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(folder):
            raise missing_file_error(folder) from None
        return False
    except ValueError:  # no file can have this name
        return False
    except OSError as problem:
        if problem.errno == errno.ENAMETOOLONG:
            return False
        raise read_error(name, problem) from None
    if not stat.S_ISDIR(mode):
        remedy = "Name the folder that contains it."
        raise WeightsError(name, "is a file", expected="a folder", remedy=remedy)
    return True


def _offline() -> bool:
    """Return whether huggingface-hub is set to offline mode."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _snapshot(
    name: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    patterns: Sequence[str],
    *,
    token: str | bool | None,
    offline: bool,
) -> Path:
    """Fetch a repository's files that match `patterns`, and return their folder; every failure is a WeightsError."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            token=token,
            local_files_only=offline,
            allow_patterns=list(patterns),
            ignore_patterns=list(NEVER_FETCHED),
        )
    # huggingface-hub raises many unrelated classes (HTTP, file system, validation); all are handled here.
    except Exception as problem:  # noqa: BLE001
        raise _hub_error(name, revision, problem, offline=offline) from None
    return Path(folder)


def _hub_error(
    name: str, revision: str | None, problem: Exception, *, offline: bool
) -> WeightsError:
    """Create the one-line error for a failure of the hub, with a remedy."""
    from huggingface_hub import errors

    at = f"{name}@{revision}" if revision else name
    if isinstance(problem, errors.GatedRepoError):
        remedy = "Accept its terms on the hub and pass a token."
        return WeightsError(at, "the repository is gated", remedy=remedy)
    if isinstance(problem, errors.RevisionNotFoundError):
        return WeightsError(at, "the hub has no such revision", remedy="Check the revision.")
    if isinstance(problem, errors.RepositoryNotFoundError):
        what = "no such folder here, and no such repository on the hub"
        remedy = "Check the name. A private repository needs a token."
        return WeightsError(at, what, remedy=remedy)
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if status in (401, 403):
        return WeightsError(at, f"the hub refused access ({status})", remedy="Check the token.")
    if status is not None:
        return WeightsError(at, f"the hub answered {status}", remedy="Try again later.")
    if isinstance(problem, errors.LocalEntryNotFoundError):
        absent = "no such folder here, and not in the local cache"
        if offline:
            what = f"{absent}, and network use is off"
            return WeightsError(at, what, remedy="Run once with network access.")
        what = f"{absent}, and the hub cannot be reached"
        return WeightsError(at, what, remedy="Check the network.")
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    kind = type(problem).__name__
    reason = f"{kind}: {lines[0]}" if lines else kind
    return WeightsError(at, f"cannot be fetched ({reason})")


def _check_complete(folder: Path, remedy: str | None = None) -> None:
    """Check that a folder has all the files that lastword needs, and that it has no adapter (see `_refuse_adapter`)."""
    _refuse_adapter(folder)
    refuse_transformer_folder(folder)
    missing = [file for file in _NEEDED if not has_file(folder / file)]
    if missing:
        raise WeightsError(str(folder), f"missing {list_some(missing)}", remedy=remedy)
    weight_files(folder)


def _refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter, such as LoRA: other libraries would apply it, so their vectors would differ.

    Raises:
        WeightsError: the adapter's config cannot be read.
        ConfigError: there is an adapter.
    """
    path = folder / ADAPTER_CONFIG
    values = read_optional_object(path)
    found = [name for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE) if has_file(folder / name)]
    if values is None and not found:
        return
    base = None if values is None else Fields(values, str(path)).text("base_model_name_or_path")
    whole = has_file(folder / "config.json")
    raise ConfigError(
        str(path if values is not None else folder / found[0]),
        "an adapter beside the weights" if whole else "only an adapter, not a whole model",
        got=None if base is None else f"an adapter of {show_value(base)}",
        expected="a model without one" if whole else "a whole model",
        remedy=_how_to_merge(folder, base, whole=whole),
    )


def _how_to_merge(folder: Path, base: str | None, *, whole: bool) -> str:
    """Return the command that merges the adapter in a folder, and what to do before it."""
    if whole:
        first = "Move the adapter's files to a folder DIR of their own, and merge it:"
        return f"{first} lastword convert {folder} OUT --adapter DIR."
    command = f"lastword convert {base or 'MODEL'} OUT --adapter"
    if not has_file(folder / ADAPTER_WEIGHTS):
        return f"Download it with {ADAPTER_WEIGHTS} into a folder DIR, and merge it: {command} DIR."
    return f"Merge it: {command} {folder}."


def _check_fetched(
    folder: Path, name: str, revision: str | None, *, token: str | bool | None, offline: bool
) -> None:
    """Check a fetched folder; if a file is missing, ask the hub whether the repository has it."""
    try:
        _check_complete(folder)
    except WeightsError as problem:
        held = None if offline else _list_files(name, revision, token=token)
        if held is not None and (lacking := _missing_files(name, held)):
            raise lacking from None
        remedy = "Run again to complete the download."
        if held is None:
            again = "Run once with network access" if offline else "Run again"
            remedy = f"{again}: the download is incomplete, or the repository does not have it."
        problem.where = f"{name}: {problem.where}"
        problem.remedy = f"{problem.remedy} {remedy}" if problem.remedy else remedy
        raise


def _list_files(name: str, revision: str | None, *, token: str | bool | None) -> set[str] | None:
    """List a repository's files; None if the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return set(HfApi(token=token).list_repo_files(name, revision=revision))
    # A failure here must not hide the error about the missing files.
    except Exception:  # noqa: BLE001
        return None


def _missing_files(name: str, held: set[str]) -> WeightsError | None:
    """Create the error that names the files which a repository lacks; None if the repository has all of them.

    The error also names weights in other formats that the repository has.
    """
    lacking = [file for file in _NEEDED if file not in held]
    others = set()
    if not held & {SINGLE, INDEX}:
        lacking.append(SINGLE)
        others = {file for file in held if file.endswith(_OTHER_FORMATS)}
    if not lacking:
        return None
    what = f"the repository does not have {list_some(lacking)}"
    remedy = "Name a repository that has the model as safetensors."
    return WeightsError(name, what, got=list_some(others) or None, remedy=remedy)
