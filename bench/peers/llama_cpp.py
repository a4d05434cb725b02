"""llama.cpp as a peer, through xllamacpp: prepare its files, then call its server in the child process, without HTTP.

The child does not import torch, so torch is not counted in its memory.
"""

import base64
import json
from collections.abc import Callable
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from lastword.bench.models.workloads import Workload, tokenizer_of
from lastword.errors import LastwordError

SLOTS, LONG_SLOTS = (
    16,
    4,
)  # number of parallel texts: short ones, and ones of more than MICRO_BATCH tokens
MICRO_BATCH = 512  # tokens per forward; a text must fit into one forward
_MODEL, _ABOUT = "llama_cpp.gguf", "llama_cpp.json"


def prepare(folder: Path, loads: list[Workload], scratch: Path, precision: str) -> None:
    """Write the checkpoint as GGUF with only the workloads' tokens, and a file with the facts that the child needs.

    For Qwen3, llama.cpp multiplies the state of every token by the whole output head and drops the result. In a model
    cut to four layers this would take most of llama.cpp's time, so the vocabulary is cut too.

    Args:
        folder: the checkpoint.
        loads: workloads whose tokens are kept.
        scratch: folder to write to.
        precision: fp32, bf16 or 8bit (Q8_0).

    Raises:
        ConfigError: the model has rope scaling or biases, or rows that Q8_0 cannot hold.
    """
    from lastword.bench.peers.gguf import write_gguf
    from lastword.weights import read_config, read_embedding_spec

    spec = read_embedding_spec(folder, read_config(folder))
    tokenize = tokenizer_of(folder, spec.prompts)
    texts = list(chain.from_iterable(tokenize(load.texts, load.kind) for load in loads))
    tokens = sorted(set(chain.from_iterable(texts)))
    write_gguf(folder, scratch / _MODEL, tokens, precision)
    about = {
        "tokens": tokens,
        "longest": max(map(len, texts)),
        "normalize": spec.normalize,
        "prompts": dict(spec.prompts),
    }
    (scratch / _ABOUT).write_text(json.dumps(about))


def open_model(
    folder: Path, scratch: Path, threads: int, precision: str
) -> Callable[[list[str], str], bytes]:
    """Load the prepared model.

    Args:
        folder: the checkpoint, for its tokenizer.
        scratch: folder of the prepared files.
        threads: threads to compute with.
        precision: precision of the prepared model.

    Returns:
        A function from texts and their kind to fp32 vectors `[N, C]`, as bytes.
    """
    import xllamacpp

    about = json.loads((scratch / _ABOUT).read_text())
    ids = {token: place for place, token in enumerate(about["tokens"])}
    tokenize = tokenizer_of(folder, about["prompts"])

    def open_server(slots: int, longest: int) -> Any:
        settings = _settings(xllamacpp, scratch / _MODEL, about, threads, precision)
        settings.n_parallel = slots
        settings.n_ctx = slots * (longest + 1)
        settings.n_batch = settings.n_ubatch = max(MICRO_BATCH, longest)
        return xllamacpp.Server(settings)

    servers = {False: open_server(SLOTS, min(about["longest"], MICRO_BATCH))}
    if about["longest"] > MICRO_BATCH:
        servers[True] = open_server(LONG_SLOTS, about["longest"])

    def encode(texts: list[str], kind: str) -> bytes:
        inputs = [[ids[token] for token in text] for text in tokenize(texts, kind)]
        server = servers[max(map(len, inputs)) > MICRO_BATCH]
        answer = server.handle_embeddings({"input": inputs, "encoding_format": "base64"})
        if "error" in answer:
            raise LastwordError("llama.cpp", f"it failed ({answer['error']['message']})")
        found = sorted(answer["data"], key=itemgetter("index"))
        return b"".join(base64.b64decode(item["embedding"]) for item in found)

    return encode


def _settings(
    xllamacpp: Any, model: Path, about: dict[str, Any], threads: int, precision: str
) -> Any:
    """Return llama.cpp's settings for embeddings on a CPU; for the precision fp32, nothing is computed below fp32."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.embedding = True
    settings.embd_normalize = 2 if about["normalize"] else -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.n_gpu_layers = 0
    settings.no_op_offload = True
    settings.verbosity = 1  # errors
    if precision == "fp32":
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # llama.cpp's flash attention computes in less than fp32 on a CPU, and vectors then differ by up to 3e-4.
        off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.flash_attn_type = off
    return settings
