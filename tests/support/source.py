"""What a Python file imports, and what it writes into modules of others, from its syntax tree."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Patch:
    """An assignment into a module that is not the file's own.

    target: what is written to, as in the source
    line: its number, from 1
    """

    target: str
    line: int


def imported_modules(source: str, package: str = "") -> set[str]:
    """Full names of everything that is imported, anywhere in the file: in functions and under
    TYPE_CHECKING too. `from a import b` counts as `a.b`, which may be a module or something in one.

    package: of the file, for relative imports
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def patches(source: str, own_package: str) -> list[Patch]:
    """Assignments and deletions in modules, classes and functions that come from outside.

    Found are `name.attribute = ...` where an import from elsewhere bound `name`, also in tuples,
    loops and `with`; `sys.modules[...] = ...` and its methods that write; and `setattr` on such a
    name. `os.environ` belongs to the process, so writing there is no patch.

    own_package: imports from it are the project's own
    """
    tree = ast.parse(source)
    outside = set(_names_from_outside(tree, own_package))
    found = []
    for node in ast.walk(tree):
        for target in _written(node):
            text = ast.unparse(target)
            if _root(target) in outside and not text.startswith("os.environ"):
                found.append(Patch(text, target.lineno))
    return sorted(found, key=lambda patch: patch.line)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, *filter(None, [node.module])])


def _names_from_outside(tree: ast.AST, own_package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] != own_package:
                    yield alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            own = node.level or (node.module or "").split(".")[0] == own_package
            if not own:
                yield from (alias.asname or alias.name for alias in node.names)


_WRITING_METHODS = {"update", "pop", "setdefault", "clear", "__setitem__"}


def _written(node: ast.AST) -> Iterator[ast.expr]:
    """Attributes and items that this node alone assigns or deletes."""
    if isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node.ctx, ast.Store | ast.Del):
            yield node
    elif isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name) and function.id in ("setattr", "delattr"):
            yield node.args[0]
        elif isinstance(function, ast.Attribute) and function.attr in _WRITING_METHODS:
            holder = function.value
            module_dict = isinstance(holder, ast.Call) and ast.unparse(holder.func) in (
                "vars",
                "globals",
            )
            if module_dict and isinstance(holder, ast.Call) and holder.args:
                yield holder.args[0]
            elif ast.unparse(holder).endswith(("sys.modules", ".__dict__")):
                yield holder


def _root(target: ast.expr) -> str:
    """The name at the beginning: `a` in `a.b[c].d`, and in `vars(a)["b"]`."""
    while True:
        if isinstance(target, ast.Attribute | ast.Subscript):
            target = target.value
        elif (
            isinstance(target, ast.Call)
            and ast.unparse(target.func) == "vars"
            and target.args
        ):
            target = target.args[0]
        else:
            return target.id if isinstance(target, ast.Name) else ""


def module_name(path: Path, root: Path) -> str:
    """`a.b` for root/a/b.py, and `a` for root/a/__init__.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
