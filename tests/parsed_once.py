"""What pytest shows of a traceback, at a fraction of the CPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def keep_trees() -> None:
    """Have pytest parse each file once, not for each traceback: a Ctrl-C's leads through many of its own."""
    module = import_module("_pytest._code.code")
    find, trees = module.getstatementrange_ast, {}

    def find_and_keep(lineno: int, source: Any, assertion: bool = False, astnode: Any = None) -> Any:
        key = tuple(source.lines)
        found = find(lineno, source, assertion, astnode or trees.get(key))
        trees[key] = found[0]
        return found

    module.getstatementrange_ast = find_and_keep
