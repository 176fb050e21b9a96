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
    """Raise StoreError unless the archive is plain data."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("_config.json") and '"use_pickle":true' in archive.read(name).decode().replace(
                    " ", ""
                ):
                    raise StoreError(f"{path} holds pickled tensors ({name}); it is not opened.", path=path)
                if "/sample_inputs/" in name:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                if "/constants/" in name and name.endswith("_config.json") and json.loads(archive.read(name))["config"]:
                    raise StoreError(f"{path} holds constants of its own ({name}); it is not opened.", path=path)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"{path} is damaged or is no exported program ({type(error).__name__}: {error}). "
            "Run the stage that made it again with `--refresh compress`.",
            path=path,
        ) from error
