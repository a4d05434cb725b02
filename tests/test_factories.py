"""Every tensor that the package makes states its dtype and device: a caller's defaults change none of them."""

import ast
from collections.abc import Iterator

import pytest
from helpers.project import ROOT
from helpers.sources import MODULES
from torch.utils._device import _device_constructors

# The functions that `torch.set_default_device` changes, which are also those of `torch.set_default_dtype`.
FACTORIES = frozenset(function.__name__ for function in _device_constructors())
OURS = [name for name in MODULES if not name.startswith("lastword.bench")]


def unstated(source: str) -> Iterator[str]:
    """Yield each call of a factory that leaves its dtype or device to the caller's defaults."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        module, name = ast.unparse(node.func.value), node.func.attr
        missing = {"dtype", "device"} - {keyword.arg for keyword in node.keywords}
        if module == "torch" and name in FACTORIES and missing:
            yield f"line {node.lineno}: torch.{name} without {' and '.join(sorted(missing))}"


@pytest.mark.parametrize("module", OURS)
def test_a_factory_states_dtype_and_device(module: str) -> None:
    file = MODULES[module]
    wrong = list(unstated(file.read_text(encoding="utf-8")))
    assert not wrong, f"{file.relative_to(ROOT)}: {'; '.join(wrong)}"


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ("torch.empty(3)", ["line 1: torch.empty without device and dtype"]),
        ("torch.tensor([1], dtype=torch.int64)", ["line 1: torch.tensor without device"]),
        ("torch.as_tensor(x, device='cpu')", ["line 1: torch.as_tensor without dtype"]),
        ("torch.arange(3, dtype=torch.int64, device=CPU)", []),
        ("x.new_empty(3), torch.empty_like(x), torch.cat([x, x])", []),
    ],
)
def test_the_check_finds_what_is_left_to_defaults(call: str, missing: list[str]) -> None:
    assert list(unstated(call)) == missing
