"""What makes images, finds their background and embeds them, for a pool of generated instances.

Three small protocols, stand-ins that need nothing, and adapters to published models. The adapters import their
package and read weights when they are first used; weights must already be on this machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from models.base import isolated_seed, predict_in_batches
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.training import ClassifierTrainer, adam, cosine

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Generator(Protocol):
    """Makes images from a text."""

    name: str

    def generate(self, prompt: str, n: int, seed: int) -> Picture:
        """`n` images, uint8 (n, h, w, 3), the same for the same arguments."""
        ...


class Segmenter(Protocol):
    """Finds the background that some points lie in."""

    def background_mask(self, image: Picture, points: NDArray[np.int64]) -> Mask:
        """Image (h, w, 3) and points (p, 2) as (x, y) -> True where the background is, (h, w)."""
        ...


class Embedder(Protocol):
    """Vectors whose cosine says how alike two pictures are."""

    def embed(self, images: Sequence[Picture]) -> NDArray[np.floating]:
        """Pictures (h, w, 3), of any size each -> (n, d)."""
        ...


def resized(images: Sequence[Picture], size: int) -> Tensor:
    """Pictures of any size as float32 (n, 3, size, size) in [0, 1]."""
    scaled = [
        F.interpolate(
            torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255,
            size=(size, size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        for image in images
    ]
    return torch.cat(scaled) if scaled else torch.empty(0, 3, size, size)


# ---- stand-ins that need nothing ---------------------------------------------------------------------------


class CornerSegmenter:
    """Background by colour: what is like the points' surroundings and connected to one of the points.

    A Gaussian model of colour is fitted to small patches round the points, the region grown from the points, and the
    model fitted again to the region. For plain backgrounds, as prompts ask for.

    Parameters
    ----------
    deviations : float
        How far a background colour may be from the mean.
    least_spread : float
        Smallest standard deviation of a channel, in levels of 0 to 255.
    rounds : int

    Examples
    --------
    >>> image = np.full((20, 20, 3), 250, dtype=np.uint8)
    >>> image[5:12, 6:15] = (10, 80, 160)
    >>> found = CornerSegmenter().background_mask(image, corners(image))
    >>> int((~found).sum())
    63
    """

    def __init__(self, deviations: float = 4.0, least_spread: float = 4.0, rounds: int = 3) -> None:
        self.deviations, self.least_spread, self.rounds = deviations, least_spread, rounds

    def background_mask(self, image: Picture, points: NDArray[np.int64]) -> Mask:
        """Grow the background from `points` (x, y)."""
        height, width = image.shape[:2]
        colours = image.astype(np.float64)
        near = np.zeros((height, width), dtype=bool)
        reach = max(1, min(height, width) // 32)
        for x, y in points:
            near[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
        region = near
        for _ in range(self.rounds):
            mean, spread = colours[region].mean(axis=0), colours[region].std(axis=0)
            apart = np.abs(colours - mean) / np.maximum(spread, self.least_spread)
            parts, _ = ndimage.label(apart.max(axis=2) <= self.deviations)
            touched = np.unique(parts[points[:, 1], points[:, 0]])
            grown = np.isin(parts, touched[touched > 0])
            if not grown.any() or np.array_equal(grown, region):
                break
            region = grown
        return region


def corners(image: Picture) -> NDArray[np.int64]:
    """The four corners as (x, y)."""
    height, width = image.shape[:2]
    return np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=np.int64)


class PixelEmbedder:
    """Pixels of small copies, without their mean picture: of the pictures given to :meth:`fit`, else of those asked.

    Parameters
    ----------
    size : int
        Side of the copies.

    Examples
    --------
    >>> bright, dark = np.full((9, 5, 3), 240, dtype=np.uint8), np.zeros((6, 6, 3), dtype=np.uint8)
    >>> vectors = PixelEmbedder(4).embed([bright, dark])
    >>> vectors.shape, bool((vectors[0] > 0).all())
    ((2, 48), True)
    """

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.mean: NDArray[np.float64] | None = None

    def fit(self, images: Sequence[Picture], labels: ArrayLike) -> PixelEmbedder:
        """Take the mean picture of `images`, every label weighing alike."""
        rows, classes = self._rows(images), np.asarray(labels)
        self.mean = np.mean([rows[classes == value].mean(axis=0) for value in np.unique(classes)], axis=0)
        return self

    def embed(self, images: Sequence[Picture]) -> NDArray[np.float64]:
        """Pictures -> (n, 3 * size^2)."""
        rows = self._rows(images)
        return rows - (rows.mean(axis=0) if self.mean is None else self.mean)

    def _rows(self, images: Sequence[Picture]) -> NDArray[np.float64]:
        return resized(images, self.size).flatten(1).double().numpy()


class NetworkEmbedder:
    """Features of a small convolutional network that learns to tell the categories of real crops apart.

    Parameters
    ----------
    size : int
        Side to which pictures are scaled.
    epochs : int
    random_state : int, RandomState or None
    """

    def __init__(
        self, size: int = 32, epochs: int = 20, random_state: int | np.random.RandomState | None = None
    ) -> None:
        self.size, self.epochs, self.random_state = size, epochs, random_state

    def fit(self, images: Sequence[Picture], labels: ArrayLike) -> NetworkEmbedder:
        """Train on real crops.

        Raises
        ------
        ValueError
            If they are of one category.
        """
        names, classes = np.unique(np.asarray(labels), return_inverse=True)
        if len(names) < 2:
            raise ValueError(
                f"The default embedder learns to tell categories apart, but real instances show {len(names)}. "
                "Give an embedder, such as PixelEmbedder()."
            )
        with isolated_seed(self.random_state) as seed:
            network = SplitClassifier(ConvEncoder(in_channels=3), len(names), embedding_dim=64)
            self.trainer = ClassifierTrainer(
                network,
                epochs=self.epochs,
                batch_size=32,
                optimizer=adam(2e-3),
                schedule=cosine,
                label="crop embedder",
                seed=seed,
            )
            self.trainer.fit(resized(images, self.size), torch.from_numpy(classes))
            self.network = network.eval()
        return self

    def embed(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """Pictures -> (n, 64)."""
        if not images:
            return np.empty((0, 64), dtype=np.float32)
        return predict_in_batches(self.network.features, resized(images, self.size)).numpy()


# ---- adapters ----------------------------------------------------------------------------------------------


def needed(module: str, package: str) -> Any:
    """Import `module`.

    Raises
    ------
    ImportError
        If it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"This needs the package {package}, which is not installed: pip install {package}") from error


class DiffusersGenerator:
    """A text-to-image pipeline of diffusers, such as Stable Diffusion.

    Parameters
    ----------
    model : str
        Folder of the pipeline, or its name in the local cache.
    name : str, optional
        What the pool calls it; `model` when None.
    device : str
    batch_size : int, default=8
        Images made at once; each has noise of its own, whatever the batch.
    **options
        Of each call of the pipeline (``num_inference_steps``, ``guidance_scale``, ...).
    """

    def __init__(
        self, model: str, name: str | None = None, device: str = "cuda", batch_size: int = 8, **options: Any
    ) -> None:
        self.model, self.name, self.device, self.options = model, name or model, device, options
        self.batch_size = batch_size
        self._pipeline: Any = None

    def _load(self, model: str, **parts: Any) -> Any:
        library = needed("diffusers", "diffusers")
        local = {"local_files_only": True, "use_safetensors": True}
        return library.DiffusionPipeline.from_pretrained(model, **local, **parts).to(self.device)

    def generate(self, prompt: str, n: int, seed: int) -> Picture:
        """`n` images of `prompt`."""
        self._pipeline = self._pipeline or self._load(self.model)
        seeds = np.random.SeedSequence(seed).generate_state(n).tolist()
        noise = [torch.Generator(self.device).manual_seed(own) for own in seeds]
        starts = range(0, n, self.batch_size)
        return np.concatenate([as_bytes(self._images(prompt, noise[i : i + self.batch_size])) for i in starts])

    def _images(self, prompt: str, noise: list[torch.Generator]) -> Any:
        """One batch, floats in [0, 1]."""
        return self._pipeline(
            prompt, num_images_per_prompt=len(noise), generator=noise, output_type="np", **self.options
        ).images


class DeepFloydGenerator(DiffusersGenerator):
    """Stages I and II of DeepFloyd-IF: 64 pixels from the text, enlarged to 256.

    Parameters
    ----------
    model, enlarger : str
        Folders of the two pipelines; the second goes without its text encoder, as the first has embedded the text.
    name, device, batch_size, **options
        As for :class:`DiffusersGenerator`; the options go to both stages.
    """

    def __init__(
        self, model: str, enlarger: str, name: str | None = None, device: str = "cuda", **options: Any
    ) -> None:
        super().__init__(model, name, device, **options)
        self.enlarger = enlarger
        self._second: Any = None

    def _images(self, prompt: str, noise: list[torch.Generator]) -> Any:
        self._second = self._second or self._load(self.enlarger, text_encoder=None)
        text, empty = self._pipeline.encode_prompt(prompt, num_images_per_prompt=len(noise))
        given = {"prompt_embeds": text, "negative_prompt_embeds": empty, "generator": noise, **self.options}
        small = self._pipeline(output_type="pt", **given).images
        return self._second(image=small, output_type="np", **given).images


def as_bytes(images: ArrayLike) -> Picture:
    """Floats in [0, 1] as uint8."""
    return np.round(np.clip(np.asarray(images, dtype=np.float64), 0, 1) * 255).astype(np.uint8)


class OpenClipEmbedder:
    """Image and text vectors of a CLIP model of open_clip; the published filter uses ViT-L-14.

    Parameters
    ----------
    weights : str
        A local safetensors file; nothing is fetched, and nothing is unpickled.
    model : str
    device : str
    batch_size : int

    Raises
    ------
    ValueError
        For weights that are no safetensors file.
    """

    def __init__(self, weights: str, model: str = "ViT-L-14", device: str = "cpu", batch_size: int = 64) -> None:
        if not weights.endswith(".safetensors"):
            raise ValueError(
                f"weights must name a local .safetensors file, got {weights!r}. Convert or fetch it first."
            )
        self.weights, self.model, self.device, self.batch_size = weights, model, device, batch_size
        self._loaded: Any = None

    def _load(self) -> Any:
        if self._loaded is None:
            library = needed("open_clip", "open_clip_torch")
            network, _, _ = library.create_model_and_transforms(self.model, pretrained=self.weights, device=self.device)
            self._loaded = network.eval(), library.get_tokenizer(self.model)
        return self._loaded

    def embed(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """Pictures -> image vectors (n, d)."""
        network, _ = self._load()
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
        side = getattr(network.visual, "image_size", 224)
        scaled = (resized(images, side if isinstance(side, int) else side[0]) - mean) / std
        return predict_in_batches(network.encode_image, scaled, self.batch_size, self.device).float().numpy()

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> vectors (n, d) in the same space."""
        network, tokenizer = self._load()
        return (
            predict_in_batches(network.encode_text, tokenizer(list(texts)), self.batch_size, self.device)
            .float()
            .numpy()
        )


class SAMSegmenter:
    """Segment Anything, asked for the background: the points are foreground of the mask that is wanted.

    Parameters
    ----------
    checkpoint : str
        File of the weights.
    model : {"vit_h", "vit_l", "vit_b"}
    device : str
    """

    def __init__(self, checkpoint: str, model: str = "vit_h", device: str = "cpu") -> None:
        self.checkpoint, self.model, self.device = checkpoint, model, device
        self._predictor: Any = None

    def background_mask(self, image: Picture, points: NDArray[np.int64]) -> Mask:
        """The third of its masks, which is the coarsest."""
        if self._predictor is None:
            library = needed("segment_anything", "segment-anything")
            network = library.sam_model_registry[self.model](checkpoint=self.checkpoint)
            self._predictor = library.SamPredictor(network.to(self.device))
        self._predictor.set_image(image)
        masks, _, _ = self._predictor.predict(
            point_coords=points.astype(np.float64),
            point_labels=np.ones(len(points), dtype=np.int64),
            multimask_output=True,
        )
        return np.asarray(masks[2], dtype=bool)
