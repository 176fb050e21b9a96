"""A pool of generated objects, cut out of their background and kept where they resemble real ones.

C. Fan, M. Zhu, H. Chen, Y. Liu, W. Wu, H. Zhang and C. Shen, "DiverGen: Improving Instance Segmentation by Learning
Wider Data Distribution with More Diverse Generative Data", CVPR 2024, arXiv:2405.10185.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.base import seed_from
from models.curate.instance_generation import (
    CornerSegmenter,
    Embedder,
    Generator,
    Mask,
    NetworkEmbedder,
    Picture,
    Segmenter,
    corners,
)
from models.metrics import class_diversity

Instances = Mapping[str, Any]
"""Of one image: ``labels`` (m,) int, ``masks`` (m, h, w) bool and, by choice, ``boxes`` (m, 4) as x0, y0, x1, y1."""
Entry = dict[str, Any]
BLUR = 10


# ---- annotations -------------------------------------------------------------------------------------------


def boxes_of(masks: ArrayLike) -> NDArray[np.float64]:
    """Extents (m, 4) of masks (m, h, w) as x0, y0, x1 + 1, y1 + 1; zeros for an empty mask."""
    given = np.asarray(masks, dtype=bool)
    found = np.zeros((len(given), 4))
    for box, mask in zip(found, given, strict=True):
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return found


def check_instances(
    image: Any, instances: Instances, *, place: str, n_categories: int | None = None
) -> tuple[Picture, NDArray[np.float64], NDArray[np.int64], Mask]:
    """An image with its boxes, labels and masks, as arrays.

    Raises
    ------
    ValueError
        For an image that is not uint8 (h, w, 3), masks of another size, or numbers of masks, boxes and labels that
        differ; for labels that are no category.
    """
    picture = np.asarray(image)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"{place} must be uint8 (h, w, 3), got {picture.dtype} {picture.shape}.")
    missing = [key for key in ("labels", "masks") if key not in instances]
    if missing:
        raise ValueError(f"The instances of {place} need 'labels' and 'masks'; {', '.join(missing)} is missing.")
    labels = np.asarray(instances["labels"]).reshape(-1)
    masks = np.asarray(instances["masks"], dtype=bool)
    masks = masks.reshape(0, *picture.shape[:2]) if not masks.size else masks
    if masks.ndim != 3 or masks.shape[1:] != picture.shape[:2]:
        raise ValueError(f"Masks of {place} must be (m, {picture.shape[0]}, {picture.shape[1]}), got {masks.shape}.")
    boxes = np.asarray(instances.get("boxes", boxes_of(masks)), dtype=np.float64).reshape(-1, 4)
    if not len(labels) == len(masks) == len(boxes):
        raise ValueError(
            f"{place} must have one label, mask and box for each instance, got {len(labels)} labels, {len(masks)} "
            f"masks and {len(boxes)} boxes."
        )
    if labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"Labels of {place} must be integers, got the type {labels.dtype}.")
    if labels.size and (labels.min() < 0 or (n_categories is not None and labels.max() >= n_categories)):
        least_most = f"0..{n_categories - 1}" if n_categories is not None else "0 and above"
        raise ValueError(f"Labels of {place} must lie in {least_most}, got {sorted(set(labels.tolist()))}.")
    return picture, boxes, labels.astype(np.int64), masks


def cut_out(image: Picture, mask: Mask) -> Picture:
    """Bounding box of `mask` as RGBA (h, w, 4); alpha is 255 inside the mask."""
    x0, y0, x1, y1 = boxes_of(mask[None])[0].astype(int)
    alpha = np.where(mask, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(np.dstack([image, alpha])[y0:y1, x0:x1])


def real_cutouts(images: Sequence[Any], instances: Sequence[Instances]) -> list[Entry]:
    """Real objects as entries of a pool, for plain copy-paste beside a generated one."""
    found = []
    for row, (image, given) in enumerate(zip(images, instances, strict=True)):
        picture, _, labels, masks = check_instances(image, given, place=f"image {row}")
        for number, (label, mask) in enumerate(zip(labels, masks, strict=True)):
            if mask.any():
                found.append(
                    {
                        "rgba": cut_out(picture, mask),
                        "category": int(label),
                        "generator": "real",
                        "prompt": "",
                        "seed": row,
                        "index": number,
                        "similarity": None,
                        "area": float(mask.mean()),
                    }
                )
    return found


# ---- step 1 and 2: what is generated -----------------------------------------------------------------------


def default_prompt(name: str, definition: str = "") -> str:
    """The one prompt of a category that has no others.

    Examples
    --------
    >>> default_prompt("cup", "a small open container")
    'a photo of a single cup, a small open container, in a white background'
    """
    return ", ".join(part for part in (f"a photo of a single {name}", definition, "in a white background") if part)


class Job(NamedTuple):
    """One call of a generator. Its fields are its key: run again, anywhere, it gives the same images."""

    category: int
    prompt: str
    generator: str
    n: int
    seed: int


def generation_plan(
    prompts: Mapping[int, Sequence[str]], generators: Sequence[str], n_per_category: int, seed: int
) -> list[Job]:
    """Step 1 and 2: every generator makes `n_per_category` images of each category, in equal shares of its prompts.

    No two jobs share a seed: the same noise for another prompt gives near duplicates.
    """
    jobs = []
    for category, texts in sorted(prompts.items()):
        for number, generator in enumerate(generators):
            for place, prompt in enumerate(texts):
                n = n_per_category // len(texts) + (place < n_per_category % len(texts))
                own = np.random.SeedSequence([seed, category, number, place]).generate_state(1)[0]
                jobs += [Job(category, prompt, generator, n, int(own))] if n else []
    return jobs


# ---- step 3: annotation ------------------------------------------------------------------------------------


def object_mask(background: Mask, keep_largest: bool = True) -> Mask | None:
    """Step 3: the complement of the background, of which the largest piece; None if empty or one pixel wide."""
    mask = ~np.asarray(background, dtype=bool)
    if keep_largest and mask.any():
        pieces, _ = ndimage.label(mask)
        mask = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    x0, y0, x1, y1 = boxes_of(mask[None])[0]
    return mask if min(x1 - x0, y1 - y0) > 1 else None


# ---- step 4: filtration ------------------------------------------------------------------------------------


def real_crop(image: Picture, mask: Mask, *, crop: str, margin: int, background: str) -> Picture:
    """Step 4: a real instance as the embedder sees it.

    "padding" is the square window of half-width `margin` round the centre of the box (border pixels repeated beyond
    the image), "box" the bounding box. Pixels outside the mask are those of the image blurred by a box of 10, or black.
    """
    outside = ndimage.uniform_filter(image, size=(BLUR, BLUR, 1)) if background == "blur" else np.zeros_like(image)
    shown = np.where(mask[:, :, None], image, outside)
    x0, y0, x1, y1 = boxes_of(mask[None])[0].astype(int)
    if crop == "box":
        return np.ascontiguousarray(shown[y0:y1, x0:x1])
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    wide = np.pad(shown, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    return np.ascontiguousarray(wide[y : y + 2 * margin, x : x + 2 * margin])


def mean_cosine(generated: ArrayLike, real: ArrayLike) -> NDArray[np.float64]:
    """Step 4: mean over real vectors of the cosine with each generated one, in one product: (n, d), (m, d) -> (n,).

    Examples
    --------
    >>> mean_cosine([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    array([0.5, 0.5])
    """
    return unit_rows(generated) @ unit_rows(real).mean(axis=0)


def unit_rows(vectors: ArrayLike) -> NDArray[np.float64]:
    """Rows scaled to length 1; zeros stay."""
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


# ---- the pool ----------------------------------------------------------------------------------------------


class GenerativeInstancePool(BaseEstimator):
    """Generates objects of each category, cuts them out, and keeps those that resemble real ones.

    Parameters
    ----------
    generators : sequence of Generator
        At least one; the paper takes two that differ (see :mod:`models.curate.instance_generation`).
    segmenter : "corners" or Segmenter, default="corners"
        What finds the background from the four corners; "corners" goes by colour.
    embedder : Embedder, optional
        Vectors for the filter. None trains a small network on the real crops; one that has a ``fit`` is fitted.
    prompts : dict of int to list of str, optional
        Of each category. Keys that no real instance has are further categories: they are not filtered by resemblance.
    n_per_category : int, default=1000
        Images of each category from each generator, in equal shares of its prompts.
    similarity_threshold : float, default=0.6
        Least mean cosine to the category's real crops. 0.6 is for CLIP's ViT-L/14; see `reject_share` for others.
    min_area, max_area : float, default=0.0, 1.0
        Bounds on the object's share of its image.
    crop : {"padding", "box"}, default="padding"
        Real crops: a square window, or the bounding box.
    crop_margin : int, default=40
        Half-width of the window.
    background : {"blur", "black"}, default="blur"
        What stands outside the mask of real crops.
    keep_largest : bool, default=True
        Only the largest connected piece of an object.
    reject_share : float, optional
        Reject this share of each category, the least similar, in place of a fixed threshold.
    min_text_score : float, optional
        Least cosine between image and prompt; needs an embedder with ``embed_text``.
    chunk : int, default=256
        Images embedded at a time.
    random_state : int, RandomState or None

    Attributes
    ----------
    pool_ : list of dict
        rgba (uint8, h, w, 4), category, generator, prompt, seed, index (which of that call), similarity (None where
        it is not filtered by), area. Prompt, generator, seed and index make it again.
    rejected_ : list of dict
        The same without pixels, and the reason: "empty", "duplicate", "area", "text" or "similarity".
    report_ : DataFrame
        Of each category: generated, kept, a column a reason, diversity (mean ``1 - cosine`` of what is kept).
    threshold_ : dict of int to float
        In force for each category that was filtered.
    embeddings_, real_embeddings_ : array, (n, d)
        Of ``pool_`` and of the real crops.
    real_categories_ : array of int64
        Categories of the real crops.

    References
    ----------
    Fan et al. (2024), section 3 and the reference implementation.

    Examples
    --------
    >>> class Squares:
    ...     name = "squares"
    ...     def generate(self, prompt, n, seed):
    ...         images = np.full((n, 16, 16, 3), 255, dtype=np.uint8)
    ...         for image, grey in zip(images, np.random.default_rng(seed).choice(200, n, replace=False)):
    ...             image[4:12, 5:11] = grey
    ...         return images
    >>> pool = GenerativeInstancePool([Squares()], prompts={0: ["a square"]}, n_per_category=3, random_state=0)
    >>> [entry["rgba"].shape for entry in pool.fit([], []).pool_]
    [(8, 6, 4), (8, 6, 4), (8, 6, 4)]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "generators": [list, tuple],
        "segmenter": [StrOptions({"corners"}), HasMethods("background_mask")],
        "embedder": [None, HasMethods("embed")],
        "prompts": [None, dict],
        "n_per_category": [Interval(Integral, 1, None, closed="left")],
        "similarity_threshold": [Interval(Real, -1, 1, closed="both")],
        "min_area": [Interval(Real, 0, 1, closed="both")],
        "max_area": [Interval(Real, 0, 1, closed="both")],
        "crop": [StrOptions({"padding", "box"})],
        "crop_margin": [Interval(Integral, 1, None, closed="left")],
        "background": [StrOptions({"blur", "black"})],
        "keep_largest": ["boolean"],
        "reject_share": [None, Interval(Real, 0, 1, closed="left")],
        "min_text_score": [None, Interval(Real, -1, 1, closed="both")],
        "chunk": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        generators: Sequence[Generator],
        segmenter: str | Segmenter = "corners",
        embedder: Embedder | None = None,
        *,
        prompts: dict[int, list[str]] | None = None,
        n_per_category: int = 1000,
        similarity_threshold: float = 0.6,
        min_area: float = 0.0,
        max_area: float = 1.0,
        crop: str = "padding",
        crop_margin: int = 40,
        background: str = "blur",
        keep_largest: bool = True,
        reject_share: float | None = None,
        min_text_score: float | None = None,
        chunk: int = 256,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.generators = generators
        self.segmenter = segmenter
        self.embedder = embedder
        self.prompts = prompts
        self.n_per_category = n_per_category
        self.similarity_threshold = similarity_threshold
        self.min_area = min_area
        self.max_area = max_area
        self.crop = crop
        self.crop_margin = crop_margin
        self.background = background
        self.keep_largest = keep_largest
        self.reject_share = reject_share
        self.min_text_score = min_text_score
        self.chunk = chunk
        self.random_state = random_state

    def fit(
        self,
        images: Sequence[Any],
        instances: Sequence[Instances],
        names: Mapping[int, str | tuple[str, str]] | None = None,
    ) -> GenerativeInstancePool:
        """Generate, cut out and filter.

        Parameters
        ----------
        images : sequence of uint8 (h, w, 3)
            Real images of the training set. Leave validation images out.
        instances : sequence of dict
            Their ``labels`` and ``masks``.
        names : dict of int to str or (name, definition), optional
            For :func:`default_prompt` where `prompts` has none.

        Raises
        ------
        ValueError
            For no generator or two of one name, a category without a prompt (each named), annotations that do not
            fit their image, `min_text_score` with an embedder that knows no texts, a generator that gives no images
            of bytes or an embedder that gives no finite vectors.
        """
        self._validate_params()
        by_name = {generator.name: generator for generator in self.generators}
        if not by_name or len(by_name) < len(self.generators):
            raise ValueError(
                f"generators must hold at least one, of different names, got {[g.name for g in self.generators]}."
            )
        if self.min_area > self.max_area:
            raise ValueError(f"min_area={self.min_area} must not be above max_area={self.max_area}.")
        if self.min_text_score is not None and not hasattr(self.embedder, "embed_text"):
            raise ValueError("min_text_score needs an embedder with embed_text, such as OpenClipEmbedder.")
        if len(images) != len(instances):
            raise ValueError(f"images and instances must be equally many, got {len(images)} and {len(instances)}.")
        seed = seed_from(self.random_state)
        crops, self.real_categories_ = self._real_crops(images, instances)
        self.plan_ = generation_plan(self._prompts(names), list(by_name), self.n_per_category, seed)
        embedder = self._embedder(crops, seed)
        self.real_embeddings_ = self._embedded(embedder, crops)
        found: list[Entry] = []
        parts = []
        for job in self.plan_:  # the whole images of one job at a time
            entries = self._candidates(by_name[job.generator], job)
            parts.append(self._embedded(embedder, [entry.pop("seen") for entry in entries]))
            found += entries
        vectors = np.concatenate(parts)
        self._score(found, vectors, embedder)
        self._decide(found, vectors)
        return self

    def _prompts(self, names: Mapping[int, str | tuple[str, str]] | None) -> dict[int, list[str]]:
        """Prompts of every category, real or further."""
        prompts = {int(category): list(texts) for category, texts in (self.prompts or {}).items()}
        for category, name in (names or {}).items():
            if not prompts.get(int(category)):
                prompts[int(category)] = [default_prompt(*((name,) if isinstance(name, str) else name))]
        wanted = {*prompts, *self.real_categories_.tolist()}
        without = sorted(category for category in wanted if not prompts.get(category))
        if without or not prompts:
            raise ValueError(
                f"Categories {without} have no prompt. Add them to prompts, or give fit their names for the default "
                "prompt."
            )
        return prompts

    def _real_crops(
        self, images: Sequence[Any], instances: Sequence[Instances]
    ) -> tuple[list[Picture], NDArray[np.int64]]:
        crops, categories = [], []
        for row, (image, given) in enumerate(zip(images, instances, strict=True)):
            picture, _, labels, masks = check_instances(image, given, place=f"image {row}")
            for label, mask in zip(labels, masks, strict=True):
                if mask.any():
                    options = {"crop": self.crop, "margin": self.crop_margin, "background": self.background}
                    crops.append(real_crop(picture, mask, **options))  # type: ignore[arg-type]
                    categories.append(int(label))
        return crops, np.array(categories, dtype=np.int64)

    def _embedder(self, crops: list[Picture], seed: int) -> Any:
        """The embedder, fitted; without real crops only prompts are left to compare with."""
        if not crops:
            return None if self.min_text_score is None else self.embedder
        embedder: Any = NetworkEmbedder(random_state=seed) if self.embedder is None else self.embedder
        return embedder.fit(crops, self.real_categories_) if hasattr(embedder, "fit") else embedder

    def _embedded(self, embedder: Any, pictures: list[Picture]) -> NDArray[np.float64]:
        if embedder is None or not pictures:
            return np.empty((len(pictures), 0))
        starts = range(0, len(pictures), self.chunk)
        found = np.concatenate([np.asarray(embedder.embed(pictures[i : i + self.chunk])) for i in starts]).astype(float)
        if found.ndim != 2 or len(found) != len(pictures) or not np.isfinite(found).all():
            raise ValueError(f"The embedder must give a finite vector for each of {len(pictures)} pictures.")
        return found

    def _candidates(self, generator: Generator, job: Job) -> list[Entry]:
        """Images of one job with their objects; "seen" is what the embedder gets: the background blacked out."""
        segmenter: Any = CornerSegmenter() if isinstance(self.segmenter, str) else self.segmenter
        images = np.asarray(generator.generate(job.prompt, job.n, job.seed))
        if images.dtype != np.uint8 or images.ndim != 4 or (images.shape[0], images.shape[3]) != (job.n, 3):
            raise ValueError(
                f"The generator {job.generator!r} must give uint8 images ({job.n}, h, w, 3), got {images.dtype} "
                f"{images.shape}."
            )
        found = []
        for index, image in enumerate(images):
            mask = object_mask(segmenter.background_mask(image, corners(image)), self.keep_largest)
            own = np.zeros(image.shape[:2], dtype=bool) if mask is None else mask
            found.append(
                {
                    "rgba": None if mask is None else cut_out(image, mask),
                    "category": job.category,
                    "generator": job.generator,
                    "prompt": job.prompt,
                    "seed": job.seed,
                    "index": index,
                    "similarity": None,
                    "area": float(own.mean()),
                    "seen": np.where(own[:, :, None], image, 0).astype(np.uint8),
                    "digest": hashlib.sha256(image.tobytes()).hexdigest(),
                }
            )
        return found

    def _score(self, found: list[Entry], vectors: NDArray[np.float64], embedder: Any) -> None:
        """Similarity to real crops of the category, and to the prompt."""
        categories = np.array([entry["category"] for entry in found])
        for category in np.unique(self.real_categories_):
            rows = np.flatnonzero(categories == category)
            scores = mean_cosine(vectors[rows], self.real_embeddings_[self.real_categories_ == category])
            for row, score in zip(rows, scores, strict=True):
                found[row]["similarity"] = float(score)
        if self.min_text_score is not None and embedder is not None:
            texts = sorted({entry["prompt"] for entry in found})
            told = dict(zip(texts, unit_rows(embedder.embed_text(texts)), strict=True))
            for entry, vector in zip(found, unit_rows(vectors), strict=True):
                entry["text"] = float(vector @ told[entry["prompt"]])

    def _decide(self, found: list[Entry], vectors: NDArray[np.float64]) -> None:
        """Split what was generated into pool and rejected, and count."""
        self.threshold_ = {}
        for category in np.unique(self.real_categories_).tolist():
            scores = [e["similarity"] for e in found if e["category"] == category and e["rgba"] is not None]
            share = self.reject_share
            fixed = share is None or not scores
            self.threshold_[category] = self.similarity_threshold if fixed else float(np.quantile(scores, share or 0))
        self.pool_, self.rejected_ = [], []
        kept: list[int] = []
        seen: set[str] = set()
        reasons = Counter[tuple[int, str]]()
        for row, entry in enumerate(found):
            reason = self._reason(entry, seen)
            seen.add(entry["digest"])
            told = {key: value for key, value in entry.items() if key not in ("digest", "text")}
            reasons[entry["category"], reason or "kept"] += 1
            if reason is None:
                kept.append(row)
                self.pool_.append(told)
            else:
                self.rejected_.append({key: value for key, value in told.items() if key != "rgba"} | {"reason": reason})
        self.embeddings_ = vectors[kept]
        self.report_ = self._counted(reasons, np.array([entry["category"] for entry in self.pool_]))

    def _reason(self, entry: Entry, seen: set[str]) -> str | None:
        """Why an object is left out, None if it stays."""
        if entry["rgba"] is None:
            return "empty"
        if entry["digest"] in seen:
            return "duplicate"
        if not self.min_area <= entry["area"] <= self.max_area:
            return "area"
        if self.min_text_score is not None and entry.get("text", 1.0) < self.min_text_score:
            return "text"
        if entry["similarity"] is not None and entry["similarity"] < self.threshold_[entry["category"]]:
            return "similarity"
        return None

    def _counted(self, reasons: Counter[tuple[int, str]], categories: NDArray[np.int64]) -> pd.DataFrame:
        names = ("empty", "duplicate", "area", "text", "similarity")
        rows = []
        for category in sorted({category for category, _ in reasons}):
            own = {name: reasons[category, name] for name in ("kept", *names)}
            mine = self.embeddings_[categories == category] if len(categories) else self.embeddings_
            diversity = class_diversity(mine, np.zeros(len(mine))) if mine.shape[1] else float("nan")
            rows.append({"category": category, "generated": sum(own.values()), **own, "diversity": diversity})
        return pd.DataFrame(rows)

    def plane(self) -> pd.DataFrame:
        """Real and generated vectors on their first two principal axes, for a plot: x, y, category, source.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If nothing was embedded: without real objects there is nothing to compare with.
        """
        check_is_fitted(self, "pool_")
        if not len(self.real_embeddings_):
            raise ValueError("There is no plane, as nothing was embedded: give fit real images with objects.")
        both = np.concatenate([self.real_embeddings_, self.embeddings_])
        both = both - both.mean(axis=0)
        axes = np.linalg.svd(both, full_matrices=False)[2][:2]
        points = np.pad(both @ axes.T, ((0, 0), (0, 2 - len(axes))))
        categories = [*self.real_categories_.tolist(), *(entry["category"] for entry in self.pool_)]
        sources = ["real"] * len(self.real_embeddings_) + [entry["generator"] for entry in self.pool_]
        return pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "category": categories, "source": sources})

    @staticmethod
    def extra_categories(
        text_embedder: Any, candidates: Sequence[str], known: Sequence[str], max_similarity: float = 0.4, n: int = 250
    ) -> list[str]:
        """Step 1a: names of a larger vocabulary that are unlike every real one, the most unlike first.

        Parameters
        ----------
        text_embedder : object with ``embed_text``, or callable
            Texts -> vectors (n, d).
        candidates, known : sequence of str
            The vocabulary, and the real categories.
        max_similarity : float
            The cosine to the most similar real name must be below.
        n : int
            At most so many.
        """
        embed = getattr(text_embedder, "embed_text", text_embedder)
        names = [name for name in dict.fromkeys(candidates) if name not in set(known)]
        if not names or not len(known):
            return names[:n]
        nearest = (unit_rows(embed(names)) @ unit_rows(embed(list(known))).T).max(axis=1)
        order = np.argsort(nearest, kind="stable")
        return [names[row] for row in order if nearest[row] < max_similarity][:n]
