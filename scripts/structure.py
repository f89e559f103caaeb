"""Reports figures of the code's structure, each with the places behind it.

python scripts/structure.py [ROOT]    the checkout to read, this one by default; nothing is imported, only parsed
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeGuard

PRODUCT = ("merklekv", "tools")
EVERYTHING = (*PRODUCT, "tests", "benchmarks", "scripts")
OFFSET = re.compile(r"(VERSION|FLAGS|DIGEST|EXPIRY|VALUE)_AT")
PRIVATE = re.compile(r"_[^_]\w*")
PUBLIC_OF_NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}
DEFERRED = (ast.FunctionDef, ast.AsyncFunctionDef)


def parsed(root: Path, parts: Iterable[str]) -> dict[str, ast.Module]:
    """The syntax tree of each Python file, by its path below `root`."""
    files = (file for part in parts for file in sorted((root / part).rglob("*.py")))
    return {str(file.relative_to(root)): ast.parse(file.read_text()) for file in files}


def imports_offsets(tree: ast.Module) -> bool:
    """Whether a module takes the position of a record's field from the module that defines it."""
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    names += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    return any(map(OFFSET.fullmatch, names))


def private_accesses(tree: ast.Module) -> int:
    """How often a module uses a private member that it does not define itself, or imports a private name."""
    foreign = set()  # names of modules that are not part of the project, such as os with its os._exit
    own = set()
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {(alias.asname or alias.name) for alias in node.names if not of_project(alias.name)}
        elif isinstance(node, ast.ImportFrom) and of_project(node.module or ""):
            found += [alias.name for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            own.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("getattr", "setattr")):
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and is_private(arg.value)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_self(node.value):
            found += [] if ast.unparse(node.value) in foreign else [node.attr]
    return sum(name not in own for name in found)


def is_private(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and bool(PRIVATE.fullmatch(name)) and name not in PUBLIC_OF_NAMEDTUPLE


def is_self(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")


def of_project(module: str) -> bool:
    return module.split(".")[0] in ("merklekv", "merklekv_tool", "fixtures", "simulation", "tests")


def import_cycles(trees: dict[str, ast.Module], *, deferred: bool) -> list[list[str]]:
    """Cycles of modules that import each other; imports in functions and for type checking only if `deferred`."""
    modules = {module_name(path): tree for path, tree in trees.items()}
    graph = {
        name: {target for target in imported(tree, deferred) for target in [resolved(target, modules)] if target}
        for name, tree in modules.items()
    }
    cycles: list[list[str]] = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return cycles
        except CycleError as found:
            cycle = found.args[1]
            cycles.append(cycle[::-1])
            graph[cycle[1]].discard(cycle[0])


def module_name(path: str) -> str:
    return path.removeprefix("tools/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(node: ast.AST, deferred: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    skipped = isinstance(node, DEFERRED) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    if deferred or not skipped:
        for child in ast.iter_child_nodes(node):
            yield from imported(child, deferred)


def resolved(target: str, modules: Iterable[str]) -> str:
    """The module that an imported name is, or belongs to; empty for one from outside."""
    return next((name for name in (target, target.rpartition(".")[0]) if name in modules), "")


def accounting_places(trees: dict[str, ast.Module]) -> Counter[str]:
    """Functions that count calls of commands, with the number of statements that do."""
    return Counter(
        f"{path}:{function.name}"
        for path, tree in trees.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute) and node.target.attr == "calls"
    )


def lines(root: Path, part: str) -> int:
    return sum(len(file.read_text().splitlines()) for file in (root / part).rglob("*.py"))


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)
    product, everything = parsed(root, PRODUCT), parsed(root, EVERYTHING)
    for part in (PRODUCT, EVERYTHING[len(PRODUCT) :]):
        mine = {path: tree for path, tree in everything.items() if path.startswith(part)}
        where = ", ".join(part)
        report(f"modules that import record offsets, {where}", [path for path in mine if imports_offsets(mine[path])])
        counted = Counter({path: private_accesses(tree) for path, tree in mine.items()})
        rows = [f"{path} {count}" for path, count in counted.most_common() if count]
        report(f"private accesses across modules, {where}", rows, counted.total())
    report("import cycles", [" -> ".join(cycle) for cycle in import_cycles(product, deferred=False)])
    cycles = [" -> ".join(cycle) for cycle in import_cycles(product, deferred=True)]
    report("import cycles, with imports in functions and for type checking", cycles)
    places = accounting_places(product)
    report("places that keep request accounting", [f"{place} {count}" for place, count in places.items()])
    report("lines", [f"{part}/ {lines(root, part)}" for part in PRODUCT], sum(lines(root, part) for part in PRODUCT))


def report(what: str, places: list[str], total: int | None = None) -> None:
    print(f"{what}: {len(places) if total is None else total}", *places, sep="\n    ")


if __name__ == "__main__":
    main()
