"""Who may import what: the arrows of the layout, held against the imports of every module."""

import sys

import pytest
from helpers.project import ROOT
from helpers.sources import MODULES, imports

# What each module or package may import of ours besides itself (`-`: but not this part of it), names
# without `lastword.`; `.` is `import lastword`, which gives the public names. The longest row counts.
# What entry points see of the engine.
PUBLIC = "embedder reranker model_info reranker_info errors encode_options progress report"
INNER = "errors arguments batching kernels model weights"
ARROWS = {
    "errors": "",
    "kernels": "errors",
    "weights": "errors",
    "arguments": "errors",
    "report": "errors",
    "progress": "errors",
    "similarity": "errors arguments kernels.caller_settings weights.embedding_spec",
    "encode_options": "errors arguments report model.postprocess",
    # Texts become token ids, batches, states; each step knows what comes before it.
    "text": "errors arguments weights",  # weights opens the tokenizer's file
    "batching": "errors kernels",
    "model": "errors arguments batching kernels weights runtime.cuda_graphs",
    "runtime": f"{INNER} progress report -runtime.loop",
    "runtime.loop": f"{INNER} encode_options report runtime text",
    "model_info": "errors arguments model.postprocess model.prompt_cache encode_options runtime.device similarity text "
    "weights",
    "reranker_info": "errors arguments model.postprocess encode_options model_info runtime.device text weights",
    "base": "errors encode_options model_info runtime similarity text.prompts weights",
    "embedder": "errors encode_options model.postprocess model_info base progress report runtime text.groups",
    "reranker": "arguments errors encode_options model_info base progress reranker_info report runtime text",
    ".": "embedder errors reranker",
    # Entry points.
    "cli": f". {PUBLIC} batch_files bulk evaluate serve vectors verify weights",
    # The server's answers, from and to files.
    "batch_files": f"cli {PUBLIC} runtime.results runtime.threads serve weights",
    # A job reads and writes as the command does, unit by unit.
    "bulk": "cli errors progress report weights embedder",
    # It reads what `lastword embed` wrote, a job's folder among others.
    "vectors": "bulk cli errors model.postprocess model_info similarity weights",
    # It makes the items of the loop's queue, so it sees what they are made of.
    "serve": f". {PUBLIC} model.postprocess runtime.results text.tokenizer weights",
    "evaluate": f"{PUBLIC} weights",  # the names of dtypes
    "interop": f"{PUBLIC} weights",  # the name of the built-in model
    # It reads the checkpoint itself and rounds as the kernels say, so that no mistake of the engine is shared.
    "verify": f"{PUBLIC} kernels text.tokenizer weights",
    "bench": f". {PUBLIC} batching evaluate interop kernels model runtime similarity text verify weights",
}
# `lastword --help` is quick: at module level the command line imports only these.
CLI_AT_ONCE = "cli errors report ."

# Packages of others: those of run time; those of an extra inside functions; an adapter's own file is
# imported only where its package is used.
RUN_TIME = {"torch", "triton", "safetensors", "tokenizers", "huggingface_hub", "tqdm"}
ADAPTERS = (
    "lastword.evaluate.cross_encoder",
    "lastword.evaluate.encoder",
    "lastword.interop.langchain",
    "lastword.interop.llama_index",
    # `cli.commands.serve` imports these once it has found the packages of the extra
    "lastword.serve.answers",
    "lastword.serve.errors",
    "lastword.serve.http.app",
    "lastword.serve.http.gate",
    "lastword.serve.http.openapi",
    "lastword.serve.http.server",
    "lastword.serve.metrics",
    "lastword.serve.protocols.body",
    "lastword.serve.protocols.cohere",
    "lastword.serve.protocols.ollama",
    "lastword.serve.protocols.openai",
    "lastword.serve.protocols.rerank",
    "lastword.serve.protocols.tei",
)
EXTRAS = {
    "lastword.bulk": {"psycopg", "pyarrow", "ray"},
    "lastword.cli.read": {"fsspec", "pyarrow"},
    "lastword.cli.documents": {"pathspec", "semantic_text_splitter"},
    "lastword.evaluate": {"datasets", "mteb"},
    "lastword.interop": {"langchain_core", "llama_index", "pyarrow"},
    "lastword.cli.commands.run_batch": {"fastapi", "orjson", "prometheus_client"},
    "lastword.cli.commands.serve": {"fastapi", "orjson", "prometheus_client", "uvicorn"},
    "lastword.vectors": {"pyarrow"},
    "lastword.serve": {
        "fastapi",
        "orjson",
        "prometheus_client",
        "pydantic",
        "pydantic_core",
        "starlette",
        "typing_extensions",
        "uvicorn",
    },
    "lastword.verify": {"transformers"},
    "lastword.weights": {"yaml"},
}


def full(name: str) -> str:
    return "lastword" if name == "." else f"lastword.{name}"


def within(module: str, package: str) -> bool:
    """Whether a module is a package or lies in it; in `lastword` itself lies nothing."""
    return module == package or (package != "lastword" and module.startswith(package + "."))


def row_of(module: str) -> str | None:
    return max((row for row in ARROWS if within(module, full(row))), key=len, default=None)


def is_allowed(module: str, imported: str) -> bool:
    """Whether the module's row lets it import the other."""
    row = row_of(module)
    if row is None:
        return False
    words = ARROWS[row].split()
    taken_out = [full(word[1:]) for word in words if word.startswith("-")]
    given = [full(word) for word in [row, *words] if not word.startswith("-")]
    return any(within(imported, each) for each in given) and not any(
        within(imported, each) for each in taken_out
    )


def wrong_imports(module: str, source: str) -> list[str]:
    """Every import against the table, as `imports NAME` with what the row allows."""
    found = []
    for imported, late in imports(source):
        at_once = within(module, "lastword.cli") and not late
        if imported.split(".")[0] != "lastword":
            continue
        if not is_allowed(module, imported):
            row = row_of(module)
            found.append(
                f"imports {imported}; {row} may import {row and (ARROWS[row] or 'nothing')}"
            )
        elif at_once and not any(within(imported, full(name)) for name in CLI_AT_ONCE.split()):
            found.append(f"imports {imported} at once; only inside functions")
    return found


def wrong_packages(module: str, source: str) -> list[str]:
    """Every import of a package that is neither one of run time nor, where it may stand, of an extra."""
    extras = {"numpy"}.union(*(names for p, names in EXTRAS.items() if within(module, p)))
    found = []
    for imported, late in imports(source):
        first = imported.split(".")[0]
        known = first in {"lastword", *RUN_TIME} or first in sys.stdlib_module_names
        if not (known or (first in extras and (late or module in ADAPTERS))):
            found.append(f"imports {imported}{'' if late else ' at once'}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_arrows(module: str) -> None:
    file = MODULES[module]
    wrong = wrong_imports(module, file.read_text(encoding="utf-8"))
    assert not wrong, f"{file.relative_to(ROOT)}: {'; '.join(wrong)}"


@pytest.mark.parametrize("module", [m for m in MODULES if not within(m, "lastword.bench")])
def test_packages_of_others(module: str) -> None:
    file = MODULES[module]
    wrong = wrong_packages(module, file.read_text(encoding="utf-8"))
    assert not wrong, f"{file.relative_to(ROOT)}: {'; '.join(wrong)}"


def in_circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that need themselves at once, over others or not, and those that need such a one."""
    left = dict(graph)
    while free := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def test_no_imports_in_a_circle() -> None:
    graph = {
        module: {name for name, late in imports(file.read_text(encoding="utf-8")) if not late}
        for module, file in MODULES.items()
    }
    assert in_circles(graph) == []


def test_a_circle_is_found() -> None:
    assert in_circles({"a": {"b"}, "b": {"c", "torch"}, "c": set()}) == []
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert in_circles({"a": {"a"}}) == ["a"]


def test_the_table_is_of_this_tree() -> None:
    named = {word.lstrip("-") for words in ARROWS.values() for word in words.split()}
    assert {full(name) for name in named | set(ARROWS)} <= set(MODULES), "a row of something gone"
    assert [module for module in MODULES if row_of(module) is None] == []
    assert set(ADAPTERS) <= set(MODULES)


@pytest.mark.parametrize(
    ("source", "module", "late"),
    [
        ("import torch", "torch", False),
        ("def f():\n    from numpy import array", "numpy", True),
        ("if TYPE_CHECKING:\n    import lastword.cli.main", "lastword.cli.main", True),
        ("try:\n    import numpy\nexcept ImportError: pass", "numpy", False),
        ("from lastword.cli import main", "lastword.cli.main", False),
        ("from lastword.cli.main import main", "lastword.cli.main", False),
        ("def f():\n    importlib.import_module('numpy.linalg')", "numpy.linalg", True),
    ],
)
def test_every_form_of_import_is_seen(source: str, module: str, late: bool) -> None:
    assert imports(source) == [(module, late)]


def test_imports_are_absolute() -> None:
    with pytest.raises(AssertionError, match="line 1: imports are absolute"):
        imports("from . import main")


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("lastword.errors", "from lastword.report import Report", "lastword.report"),
        ("lastword.kernels.cpu", "from lastword.batching import forest", "lastword.batching.forest"),
        ("lastword.kernels.cpu", "from lastword.weights import Checkpoint", "lastword.weights"),
        ("lastword.weights.config", "def f():\n    from lastword import kernels", "lastword.kernels"),
        ("lastword.weights.config", "import lastword", "lastword"),
        ("lastword.report", "from lastword.encode_options import EncodeOptions", "lastword.encode_options"),
        ("lastword.text.tokenizer", "from lastword.batching.forest import Forest", "lastword.batching.forest"),
        ("lastword.batching.forest", "from lastword.model.qwen3 import Model", "lastword.model.qwen3"),
        ("lastword.batching.forest", "from lastword.text.tokenizer import Tokens", "lastword.text.tokenizer"),
        ("lastword.model.qwen3", "from lastword.runtime.device import x", "lastword.runtime.device"),
        ("lastword.runtime.runner", "from lastword.runtime.loop import Wait", "lastword.runtime.loop"),
        ("lastword.runtime.pool", "from lastword.runtime import loop", "lastword.runtime.loop"),
        ("lastword.runtime.worker", "import lastword.runtime.loop", "lastword.runtime.loop"),
        ("lastword.runtime.loop", "from lastword.embedder import Embedder", "lastword.embedder"),
        ("lastword.runtime.pool", "from lastword.text.tokenizer import Tokens", "lastword.text.tokenizer"),
        ("lastword.embedder", "if TYPE_CHECKING:\n    import lastword.cli.main", "lastword.cli.main"),
        ("lastword.cli.main", "def f():\n    from lastword.runtime.loop import x", "lastword.runtime.loop"),
        ("lastword.cli.commands.embed", "def f():\n    from lastword import bench", "lastword.bench"),
        ("lastword.cli.commands.embed", "importlib.import_module('lastword.bench.options')", "lastword.bench.options"),
        ("lastword.interop.langchain", "from lastword.model.qwen3 import Model", "lastword.model.qwen3"),
        ("lastword.evaluate.evaluation", "from lastword.batching.packing import Packer", "lastword.batching.packing"),
        ("lastword.verify.verification", "from lastword.text import groups", "lastword.text.groups"),
        ("lastword.verify.verification", "from lastword.runtime.device import x", "lastword.runtime.device"),
        ("lastword.bench.options", "from lastword.cli.options import positive", "lastword.cli.options"),
    ],
)  # fmt: skip
def test_an_arrow_the_wrong_way_is_found(module: str, source: str, imported: str) -> None:
    assert module in MODULES
    (found,) = wrong_imports(module, source)
    assert found.startswith(f"imports {imported}; ")


def test_what_slows_the_command_line_is_found() -> None:
    source = "from lastword.embedder import Embedder\ndef f():\n    import lastword.model_info"
    (found,) = wrong_imports("lastword.cli.main", source)
    assert found == "imports lastword.embedder at once; only inside functions"


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("lastword.embedder", "import torch, tqdm.auto, os\ndef f():\n    import numpy", []),
        ("lastword.embedder", "from numpy import array", ["imports numpy at once"]),
        ("lastword.embedder", "try:\n    import numpy\nexcept ImportError: pass", ["imports numpy at once"]),
        ("lastword.embedder", "def f():\n    import yaml", ["imports yaml"]),
        ("lastword.weights.config", "async def f():\n    import yaml", []),
        ("lastword.interop.langchain", "import langchain_core.embeddings, mteb", ["imports mteb at once"]),
        ("lastword.interop", "import langchain_core", ["imports langchain_core at once"]),
    ],
)  # fmt: skip
def test_a_package_in_the_wrong_place_is_found(module: str, source: str, found: list[str]) -> None:
    assert wrong_packages(module, source) == found
