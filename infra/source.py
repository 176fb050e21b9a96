"""Which code a result depends on: digest of a module and of everything it imports inside clearwell's layers."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

LAYERS = ("models", "tasks")


@cache
def source_files(module: str, layers: tuple[str, ...] = LAYERS) -> tuple[tuple[str, str], ...]:
    """(module name, sha256) of `module` and, transitively, of what it imports from `layers`; sorted by name.

    Imports are read from the syntax tree, also those inside functions; nothing is executed.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        text = path.read_bytes()
        found[name] = hashlib.sha256(text).hexdigest()
        waiting += [other for other in _imports(text, name) if other.partition(".")[0] in layers]
    return tuple(sorted(found.items()))


def _file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(text: bytes, module: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base]).strip(".")
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names
