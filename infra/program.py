"""Exported programs (``torch.export``), opened only when nothing in them would be unpickled.

The archive format allows pickled weights, constants and sample inputs. Ours have none beyond plain tensors;
an archive that asks for more comes from somebody else and is refused.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StoreError

if TYPE_CHECKING:
    from torch.nn import Module

PLAIN = ("data/weights/weight_", "models/model.json", "archive_format", "archive_version", "byteorder", ".data/")


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
    elif not inner.startswith(PLAIN):
        raise StoreError(f"{path} holds something no program of ours has ({name}); it is not opened.", path=path)
