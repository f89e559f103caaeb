"""The write path without the tree, to measure what that costs: as an engine, and, when this file is run, as a node."""

import ast
import inspect
import sys
import textwrap
from pathlib import Path
from types import FunctionType

from nodes import make_node

from merklekv.cli import main
from merklekv.engine import state as state_module
from merklekv.engine.engine import Engine
from merklekv.engine.state import State
from merklekv.harness.node import Node


def make_treeless_node(directory: Path, **settings: str) -> Node:
    """A node of such engines; its HASH says that it is empty."""
    node = make_node(directory, **settings)
    node.program = [sys.executable, __file__]
    return node


def without_upkeep() -> type[Engine]:
    """An engine whose write path does nothing for the tree."""
    return type("Treeless", (Engine,), {"_put": _put_without_upkeep()})


def _put_without_upkeep() -> FunctionType:
    """The source of `State._put` with those statements gone."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(State._put)))
    remover = _Remover()
    code = compile(ast.fix_missing_locations(remover.visit(tree)), "<State._put without the tree>", "exec")
    assert remover.removed == {"bucket", "dirty", "sums", "counts"}, "the write path is written in other words by now"
    names = dict(vars(state_module))
    exec(code, names)
    put: FunctionType = names["_put"]
    return put


class _Remover(ast.NodeTransformer):
    """Takes out: naming the bucket, marking its inner node as dirty, moving its leaf."""

    def __init__(self) -> None:
        self.removed: set[str] = set()

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        return self._without(node, ast.unparse(node.targets[0]), "bucket")

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return self._without(node, ast.unparse(node).partition(".")[0], "dirty")

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        return self._without(node, ast.unparse(node.target).partition("[")[0], "sums", "counts")

    def _without(self, node: ast.stmt, target: str, *names: str) -> ast.stmt:
        if target not in names:
            return node
        self.removed.add(target)
        return ast.Pass()


if __name__ == "__main__":
    State._put = _put_without_upkeep()  # type: ignore[method-assign]
    main()
