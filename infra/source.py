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
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [other for other in _imports(text, package) if other.partition(".")[0] in layers]
    return tuple(sorted(found.items()))


def _file(module: str) -> Path | None:
    """Where the module's source lies. Looking a submodule up would execute its packages, so only the top one is."""
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__ of an interactive session
        return None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        place = Path(location).joinpath(*parts)
        found = next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()), None)
        if found is not None:
            return found
    origin = spec.origin if spec and not parts else None
    return Path(origin) if origin and origin.endswith(".py") else None


@cache
def _imports(text: bytes, package: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                base = ".".join([*above[: len(above) - node.level + 1], base]).strip(".")
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names
