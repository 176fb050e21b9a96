"""Pairs of two sides, such as image and caption: how they are held, what scores them, rules for captions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Mask = NDArray[np.bool_]

AT_ONCE = 64
"""Rows that go through a published model together."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two sides row by row, and what else is known of each pair.

    Attributes
    ----------
    a, b : array or tensor (n, ...), or sequence of str or of pictures
        Pictures are arrays (h, w) or (h, w, c), or of PIL; their sizes may differ where the scorer scales them.
    meta : mapping of str to sequence
        Columns such as language, source or class, (n,) each.

    Examples
    --------
    >>> pairs = Pairs(np.zeros((3, 4)), ["one", "two", "three"], {"source": ["x", "y", "x"]})
    >>> pairs.take([2, 0]).b
    ['three', 'one']
    """

    a: Any
    b: Any
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.a)

    def take(self, rows: ArrayLike) -> Pairs:
        """The pairs of these numbers, or those a mask of bools marks."""
        places = np.asarray(rows)
        if places.dtype == bool and places.shape != (len(self),):
            raise ValueError(f"rows must be a mask of {len(self)} pairs, got one of {places.size}.")
        places = np.flatnonzero(places) if places.dtype == bool else places.astype(np.int64)
        columns = {name: _taken(values, places) for name, values in self.meta.items()}
        return Pairs(_taken(self.a, places), _taken(self.b, places), columns)

    def joined(self, other: Pairs) -> Pairs:
        """These pairs, then those of `other`; of the columns, those both have."""
        columns = {name: _joined(self.meta[name], other.meta[name]) for name in self.meta if name in other.meta}
        return Pairs(_joined(self.a, other.a), _joined(self.b, other.b), columns)


def _taken(side: Any, places: NDArray[np.int64]) -> Any:
    if isinstance(side, (np.ndarray, Tensor)):
        return side[places]
    return [side[place] for place in places.tolist()]


def _joined(first: Any, second: Any) -> Any:
    if (
        not all(isinstance(side, (np.ndarray, Tensor)) for side in (first, second))
        or first.shape[1:] != second.shape[1:]
    ):
        return [*first, *second]
    return torch.cat([first, torch.as_tensor(second)]) if isinstance(first, Tensor) else np.concatenate([first, second])


def is_text(side: Any) -> bool:
    """Whether a side holds texts."""
    return not isinstance(side, (np.ndarray, Tensor)) and len(side) > 0 and isinstance(side[0], str)


def as_pairs(given: Any, name: str = "pairs", minimum: int = 1) -> Pairs:
    """Pairs from :class:`Pairs` or a tuple (a, b).

    Raises
    ------
    ValueError
        For anything else, sides or columns of unequal length, a side that is neither texts nor pictures nor a numeric
        array of two dimensions or more, or fewer than `minimum` pairs.
    """
    if isinstance(given, tuple) and len(given) == 2:
        given = Pairs(*given)
    if not isinstance(given, Pairs):
        raise ValueError(f"{name} must be Pairs or a tuple of two sides, got {type(given).__name__}.")
    lengths = {"a": len(given.a), "b": len(given.b), **{key: len(value) for key, value in given.meta.items()}}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} must have sides and columns of one length, got {lengths}.")
    if len(given) < minimum:
        raise ValueError(f"{name} must hold at least {minimum} pair(s), got {len(given)}.")
    sides = {}
    for key, side in (("a", given.a), ("b", given.b)):
        if isinstance(side, np.ndarray) and side.dtype.kind in "UO":
            side = side.tolist()
        if isinstance(side, (list, tuple)) and not all(isinstance(text, str) for text in side):
            side = _stacked(side, f"side {key} of {name}")
        if not isinstance(side, (list, tuple)) and (side.ndim < 2 or np.asarray(side[:0]).dtype.kind not in "fiub"):
            raise ValueError(
                f"Side {key} of {name} must hold texts (str) or numeric rows (n, ...), got an array shaped "
                f"{tuple(side.shape)} of {side.dtype}. Decode bytes first."
            )
        sides[key] = side
    return Pairs(sides["a"], sides["b"], given.meta)


def _stacked(side: Sequence[Any], name: str) -> Any:
    """Rows of one shape as an array, pictures of several sizes as a list of arrays."""
    rows = [np.asarray(row) for row in side]
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    for number, row in enumerate(rows):
        if row.ndim not in (2, 3) or row.dtype.kind not in "fiub":
            raise ValueError(
                f"Row {number} of {name} must be a picture (h, w) or (h, w, c), as rows have several shapes; got "
                f"{row.dtype} {row.shape}."
            )
    return rows


def in_chunks(pool: Any, size: int) -> Iterator[Pairs]:
    """A pool as pieces of at most `size` pairs; it may itself be an iterable of pieces, which is read once.

    Raises
    ------
    ValueError
        As :func:`as_pairs`; for a pool without a pair.
    """
    pieces: Iterable[Any] = [pool] if isinstance(pool, (Pairs, tuple)) else pool
    found = False
    for piece in pieces:
        pairs = as_pairs(piece, "pool", minimum=0)
        for start in range(0, len(pairs), size):
            found = True
            yield pairs.take(np.arange(start, min(start + size, len(pairs))))
    if not found:
        raise ValueError("The pool holds no pairs. Check the source that was read.")


def finite_rows(pairs: Pairs) -> Mask:
    """Which pairs have no NaN or infinite number on either side."""
    found = np.ones(len(pairs), dtype=bool)
    for side in (pairs.a, pairs.b):
        if is_text(side) or not len(pairs):
            continue
        if isinstance(side, (list, tuple)):
            found &= [bool(np.isfinite(picture).all()) for picture in side]
        else:
            found &= np.isfinite(np.asarray(side).reshape(len(pairs), -1)).all(axis=1)
    return found


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """Cosine of each pair of rows, summed in float32: half precision would swap pairs at a threshold.

    Raises
    ------
    ValueError
        If the sides have not the same number of dimensions.
    """
    if u.shape != v.shape:
        raise ValueError(f"Both sides must be encoded alike, got {tuple(u.shape)} and {tuple(v.shape)}.")
    return F.cosine_similarity(u.float(), v.float(), dim=1)


@runtime_checkable
class PairScorer(Protocol):
    """What scores pairs: two encoders to one space and the cosine between them."""

    def encode_a(self, batch: Any) -> Tensor:
        """Side a of a batch -> (B, d)."""

    def encode_b(self, batch: Any) -> Tensor:
        """Side b of a batch -> (B, d)."""

    def score(self, a: Any, b: Any) -> Tensor:
        """Cosine of each pair, (B,), in [-1, 1]."""


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"This scorer needs the package {package}: run `pip install {package}` first.") from None


class _ForeignScorer:
    """A published two-tower model; a subclass says how a few images, and a few texts, become vectors."""

    def score(self, a: Any, b: Any) -> Tensor:
        """Cosine of each pair, (B,)."""
        return cosine(self.encode_a(a), self.encode_b(b))

    def encode_a(self, batch: Any) -> Tensor:
        """Images (PIL, or uint8 arrays (h, w, 3) or (h, w)) -> (B, d)."""
        return self._in_parts(self._images, batch)

    def encode_b(self, batch: Any) -> Tensor:
        """Captions -> (B, d)."""
        return self._in_parts(self._texts, batch)

    def _in_parts(self, encode: Callable[[Any], Tensor], batch: Any) -> Tensor:
        with torch.inference_mode():
            return torch.cat([encode(batch[i : i + AT_ONCE]).cpu() for i in range(0, len(batch), AT_ONCE)])

    def _images(self, batch: Sequence[Any]) -> Tensor:
        raise NotImplementedError

    def _texts(self, batch: Sequence[str]) -> Tensor:
        raise NotImplementedError


class OpenClipScorer(_ForeignScorer):
    """A model of open_clip, from weights on this machine.

    Parameters
    ----------
    model_name : str
        Such as ``"ViT-B-32"``.
    pretrained : str
        A local safetensors file; nothing is fetched, and nothing is unpickled.
    device : str, default="cpu"

    Raises
    ------
    ImportError
        Where open_clip is not installed.
    ValueError
        For weights that are no safetensors file.
    """

    def __init__(self, model_name: str, pretrained: str, device: str = "cpu") -> None:
        if not pretrained.endswith(".safetensors"):
            raise ValueError(
                f"pretrained must name a local .safetensors file, got {pretrained!r}. Convert or fetch it first."
            )
        library = _imported("open_clip", "open_clip_torch")
        self.device = device
        self.model, _, self.transform = library.create_model_and_transforms(
            model_name, pretrained=pretrained, device=device
        )
        self.tokenizer = library.get_tokenizer(model_name)
        self.model.eval()

    def _images(self, batch: Sequence[Any]) -> Tensor:
        rows = torch.stack([self.transform(_picture(image)) for image in batch])
        return self.model.encode_image(rows.to(self.device))

    def _texts(self, batch: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(batch)).to(self.device))


class HFClipScorer(_ForeignScorer):
    """A CLIP model of transformers, from a folder on this machine.

    Parameters
    ----------
    path : str
        Folder with the model in safetensors, its tokenizer and its preprocessing; nothing is fetched.
    device : str, default="cpu"

    Raises
    ------
    ImportError
        Where transformers is not installed.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        library = _imported("transformers", "transformers")
        self.device = device
        self.model = library.CLIPModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
        self.model.to(device).eval()
        self.max_words = self.model.config.text_config.max_position_embeddings
        self.processor = library.CLIPProcessor.from_pretrained(path, local_files_only=True)

    def _images(self, batch: Sequence[Any]) -> Tensor:
        given = self.processor(images=[_picture(image) for image in batch], return_tensors="pt")
        return _vectors(self.model.get_image_features(**self._moved(given)))

    def _texts(self, batch: Sequence[str]) -> Tensor:
        given = self.processor(
            text=list(batch), return_tensors="pt", padding=True, truncation=True, max_length=self.max_words
        )
        return _vectors(self.model.get_text_features(**self._moved(given)))

    def _moved(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values.to(self.device) for name, values in given.items()}


def _vectors(found: Any) -> Tensor:
    """The features themselves; newer releases of transformers wrap them."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _picture(image: Any) -> Any:
    if not isinstance(image, np.ndarray):
        return image
    return _imported("PIL.Image", "pillow").fromarray(image)


def basic_filter(
    captions: Sequence[str], sizes: ArrayLike | None = None, is_english: Callable[[str], bool] | None = None
) -> Mask:
    """Which pairs pass the basic rules of DataComp: an English caption of some length, an image of some size.

    Parameters
    ----------
    captions : sequence of str
        More than 2 words and more than 5 characters pass.
    sizes : array of int, (n, 2), optional
        Width and height of each image: the shorter side is at least 200, the longer at most 3 times the shorter.
    is_english : callable, optional
        Text -> bool; by default every language passes. :class:`~models.curate.text_filters.LanguageFilter` can tell.

    References
    ----------
    S. Gadre et al., "DataComp: In search of the next generation of multimodal datasets", NeurIPS 2023,
    arXiv:2304.14108, section 3.4.

    Examples
    --------
    >>> basic_filter(["a red shoe", "shoe", "a blue bag"], [[300, 200], [300, 300], [900, 200]]).tolist()
    [True, False, False]
    """
    kept = np.array([len(text.split()) > 2 and len(text) > 5 for text in captions], dtype=bool)
    if is_english is not None:
        kept &= np.array([is_english(text) for text in captions], dtype=bool)
    if sizes is not None:
        sides = np.sort(np.asarray(sizes, dtype=np.float64), axis=1)
        if sides.shape != (len(captions), 2):
            raise ValueError(f"sizes must be shaped ({len(captions)}, 2), got {sides.shape}.")
        kept &= (sides[:, 0] >= 200) & (sides[:, 1] <= 3 * sides[:, 0])
    return kept
