"""Read facts from the source files: module names, imports, lengths of functions, lines of code."""

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
    """Return the file of each of lastword's modules by its installed name, including `lastword.bench.builtin`."""
    found = {}
    for package, folder in TOP_FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in inside if part != "__init__")])] = file
    return found


MODULES = package_files()


class Import(NamedTuple):
    """One import, of a module or of a name; importing a name counts as importing its module."""

    module: str
    late: bool  # inside a function or under TYPE_CHECKING


def imports(source: str) -> list[Import]:
    """Find every import in a source file, wherever it is, including `import_module("name")`."""
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
    """Return the names of a function's decorators, without arguments: `triton.jit` for `@triton.jit(...)`."""
    called = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return [ast.unparse(each) for each in called]


def long_functions(source: str, limit: int) -> Iterator[str]:
    """Yield `name: lines` of every function over the limit, counting signature and docstring; skip Triton kernels."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTION) and "triton.jit" not in _decorators(node):
            lines = node.end_lineno - node.lineno + 1
            if lines > limit:
                yield f"{node.name}: {lines} lines"


def code_lines(source: str) -> int:
    """Count the lines of code, without docstrings, comments, blank lines and signatures of overloads."""
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
