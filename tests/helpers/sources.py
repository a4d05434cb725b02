"""What the source files say about themselves: module names, imports, lengths, lines of code."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.project import ROOT, TOP_FOLDERS

NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTION, ast.ClassDef, ast.Module)


def package_files() -> dict[str, Path]:
    """Installed name of every module of ours -> its file; `lastword.bench.builtin` among them."""
    found = {}
    for package, folder in TOP_FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in inside if part != "__init__")])] = file
    return found


MODULES = package_files()


class Import(NamedTuple):
    """One imported name: a module where it is one, else the module that holds the name."""

    module: str
    late: bool  # inside a function or under TYPE_CHECKING


def imports(source: str) -> list[Import]:
    """Find every import of a source, wherever it stands, `import_module("name")` among them."""
    found: list[Import] = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.extend(Import(n if n in MODULES else str(node.module), late) for n in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append(Import(name.value, late))
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, late or guarded or isinstance(node, FUNCTION))

    visit(ast.parse(source), False)
    return list(dict.fromkeys(found))


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """`@triton.jit(do_not_specialize=...)` is `triton.jit`."""
    called = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return [ast.unparse(each) for each in called]


def long_functions(source: str, limit: int) -> Iterator[str]:
    """`name: lines` of every function over the limit, signature and docstring counted; Triton kernels aside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTION) and "triton.jit" not in _decorators(node):
            lines = node.end_lineno - node.lineno + 1
            if lines > limit:
                yield f"{node.name}: {lines} lines"


def code_lines(source: str) -> int:
    """Lines with code on them: no docstrings, comments, blank lines and signatures of overloads."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTION) and {"overload", "typing.overload"} & set(_decorators(node)):
            lines -= set(range(node.decorator_list[0].lineno, node.end_lineno + 1))
        elif isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines -= set(range(text.lineno, text.end_lineno + 1))
    return len(lines)
