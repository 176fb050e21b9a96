"""Exported programs (``torch.export``), opened only when nothing in them would be unpickled.

The archive format allows pickled weights, constants and sample inputs, and PyTorch evaluates some of the text in the
graph: sizes as expressions, guards as code, operators by dotted name. Ours hold plain tensors, operators on tensors and
sizes; an archive that asks for more comes from somebody else and is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StoreError

if TYPE_CHECKING:
    from torch.nn import Module

GRAPH = "models/model.json"
PLAIN = ("data/weights/weight_", "archive_format", "archive_version", "byteorder", ".data/")
OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|_operator\.(getitem|neg|add|sub|mul|floordiv|mod|eq|ne|lt|le|gt|ge)|",
    re.ASCII,
)
"""What a node may call: PyTorch's own operators on tensors, and arithmetic on sizes."""
SIZE = re.compile(
    r"(?:(?:Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv)\(|'[su]\d+'"
    r"|(?:positive|nonnegative|integer|evaluate)=(?:True|False)|-?\d+|[), ])+",
    re.ASCII,
)
"""How the size of a dimension may be written. PyTorch evaluates it."""
STRUCTURE = re.compile(
    r'(?:"(?:type|context|children_spec)"|"builtins\.(?:tuple|list|dict)"|"null"|"\[\]"|null|1|[\[\]{}:, ])+'
)
"""How inputs and outputs may be nested: one tensor, or tuples, lists and mappings of them."""
NAME = re.compile(r"[\w.+]*", re.ASCII)
TEXT = re.compile(r".*", re.DOTALL)
ALLOWED = {"target": OPERATOR, "as_operator": OPERATOR, "expr_str": SIZE, "in_spec": STRUCTURE, "out_spec": STRUCTURE}
ALLOWED |= {"as_string": TEXT, "as_strings": TEXT}  # arguments of operators, such as a padding mode


def open_program(path: Path) -> Module:
    """The program at `path`, ready to be called.

    Raises
    ------
    StoreError
        If the archive is damaged, or opening it would run a pickle.
    """
    import torch

    check_program(path)
    return torch.export.load(str(path)).module()


def check_program(path: Path) -> None:
    """Raise StoreError unless the archive is of the present format and plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            roots = {name.partition("/")[0] for name in names}
            if len(roots) != 1 or f"{next(iter(roots))}/archive_format" not in names:
                raise StoreError(
                    f"{path} is not an exported program of the present format; it is not opened.", path=path
                )
            if len(set(names)) != len(names) or any(member.compress_type for member in archive.infolist()):
                raise StoreError(f"{path} holds a member twice, or a packed one; it is not opened.", path=path)
            for name in names:
                _check_member(path, name, archive.read(name))
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"{path} is damaged or is no exported program ({type(error).__name__}: {error}). "
            "Run the stage that made it again with `clearwell run --refresh compress`.",
            path=path,
        ) from error


def _check_member(path: Path, name: str, content: bytes) -> None:
    import torch

    inner = name.partition("/")[2]
    if inner.startswith("data/sample_inputs/"):
        torch.load(io.BytesIO(content), weights_only=True)
    elif inner.endswith("_config.json"):
        entries = json.loads(content)["config"]
        if inner.startswith("data/constants/") and entries:
            raise StoreError(f"{path} holds constants of its own ({name}); it is not opened.", path=path)
        if any(entry.get("use_pickle", True) for entry in entries.values()):
            raise StoreError(f"{path} holds pickled tensors ({name}); it is not opened.", path=path)
    elif inner == GRAPH:
        strange = next(_strange_text(json.loads(content)), None)
        if strange is not None:
            raise StoreError(f"The graph in {path} holds {strange[:80]!r}; it is not opened.", path=path)
    elif not inner.startswith(PLAIN):
        raise StoreError(f"{path} holds something no program of ours has ({name}); it is not opened.", path=path)


def _strange_text(value: Any, key: str = "") -> Iterator[str]:
    """Text in a graph that is no name, tensor operator, size or structure; PyTorch might evaluate it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strange_text(name)
            if name != "metadata":  # where a node came from; only ever shown
                yield from _strange_text(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strange_text(inner, key)
    elif isinstance(value, str) and not ALLOWED.get(key, NAME).fullmatch(value):
        yield value
