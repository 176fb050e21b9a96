"""Models on disk: safetensors weights, a JSON description beside them, and the exported program. No pickle.

.clearwell/models/<digest>/weights.safetensors   model.json   [program.pt2]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StoreError
from infra.files import clear_drafts, draft_folder, file_digest, json_digest, publish, write_text
from infra.references import ModelRef

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, DESCRIPTION, PROGRAM = "weights.safetensors", "model.json", "program.pt2"


class ModelStore:
    """The models kept below one project.

    Parameters
    ----------
    root : Path
        The project.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".clearwell" / "models"

    def save(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        description: dict[str, Any],
        export: Callable[[Path], None] | None = None,
    ) -> ModelRef:
        """Keep weights and their JSON description under the digest of both.

        Parameters
        ----------
        name : str
            What made the model.
        tensors : mapping
            Weights and buffers, contiguous or not.
        description : dict
            Architecture and configuration, JSON values only.
        export : callable, optional
            Writes the exported program to the path it is given.
        """
        from safetensors.torch import save_file

        description = json.loads(json.dumps(description))  # what a reader gets back: lists for tuples, text keys
        with draft_folder(self.folder) as draft:
            plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            save_file(plain, draft / WEIGHTS)
            digest = json_digest({"weights": file_digest(draft / WEIGHTS), "description": description})
            final = self.folder / digest[:20]
            ref = ModelRef(name=name, uri=final.relative_to(self.root).as_posix(), digest=digest)
            if not self.intact(ref) or (export is not None and not (final / PROGRAM).exists()):
                record = {"digest": digest, "weights_sha256": file_digest(draft / WEIGHTS), "description": description}
                if export is not None:
                    export(draft / PROGRAM)
                    record["program_sha256"] = file_digest(draft / PROGRAM)
                write_text(draft / DESCRIPTION, json.dumps(record, indent=2))
                if final.exists():  # damaged since, or kept before without a program
                    with draft_folder(self.folder) as old:
                        final.rename(old / "replaced")
                publish(draft, final)
        return ref

    def load(self, ref: ModelRef) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and description of a model, after checking that they are what was saved.

        Raises
        ------
        StoreError
            If the model is missing or its bytes changed.
        """
        from safetensors.torch import load_file

        if not self.intact(ref):
            raise StoreError(
                f"The model {ref} is missing from {self.root / ref.uri} or was changed. "
                "Run the stage that made it again with `--refresh`.",
                ref=ref,
            )
        return load_file(self.path(ref) / WEIGHTS), self._record(ref)["description"]

    def path(self, ref: ModelRef) -> Path:
        """Folder of the model."""
        return self.root / ref.uri

    def size(self, ref: ModelRef) -> int:
        """Bytes of the weights on disk."""
        return (self.path(ref) / WEIGHTS).stat().st_size

    def intact(self, ref: ModelRef) -> bool:
        """Whether every file of the model is there and holds the bytes it was saved with."""
        folder = self.path(ref)
        try:
            record = self._record(ref)
            expected = {WEIGHTS: record["weights_sha256"]}
            digest = json_digest({"weights": record["weights_sha256"], "description": record["description"]})
            if "program_sha256" in record:
                expected[PROGRAM] = record["program_sha256"]
            return digest == ref.digest and all(file_digest(folder / f) == d for f, d in expected.items())
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def clear_drafts(self) -> int:
        """Remove what killed processes left half-written."""
        return clear_drafts(self.folder)

    def _record(self, ref: ModelRef) -> dict[str, Any]:
        return json.loads((self.path(ref) / DESCRIPTION).read_text())
