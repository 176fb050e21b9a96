"""One small example of each registered method on real data (scikit-learn's digits), for the common battery.

A specimen says how to make the method with tiny parameters, what to give to ``fit``, and how its answers are read.
Every registered method of clearwell needs one: add a function decorated with ``@specimen(name)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits

from models.base import isolated_seed
from models.networks.convnet import ConvEncoder
from models.networks.heads import ProjectingClassifier, SplitClassifier
from models.training import ClassifierTrainer, sgd


@dataclass
class Specimen:
    """An example of one method.

    Attributes
    ----------
    make : callable
        -> the unfitted estimator, with tiny parameters and ``random_state=0``.
    arguments : callable
        -> the keyword arguments of ``fit``, made anew each time.
    answers : callable
        Fitted estimator -> arrays by name: what it says about data it has not seen, or what it found.
    rows : tuple of str
        Arguments of ``fit`` that hold rows of data, for the checks of malformed input.
    labels : str, optional
        The argument of ``fit`` that holds labels.
    contract : dict of str to str, optional
        For a plain estimator of matrices: scikit-learn's own checks run on it, and these, each with its reason,
        are expected to fail.
    """

    make: Callable[[], BaseEstimator]
    arguments: Callable[[], dict[str, Any]]
    answers: Callable[[Any], dict[str, Any]]
    rows: tuple[str, ...] = ("X",)
    labels: str | None = None
    contract: dict[str, str] | None = None


SPECIMENS: dict[str, Callable[[], Specimen]] = {}


def specimen(name: str) -> Callable[[Callable[[], Specimen]], Callable[[], Specimen]]:
    """Enter the example of the method `name`."""

    def enter(function: Callable[[], Specimen]) -> Callable[[], Specimen]:
        SPECIMENS[name] = function
        return function

    return enter


def images(start: int, stop: int) -> np.ndarray:
    """Digits as float32 images (n, 8, 8) in [0, 1]."""
    return (load_digits().images[start:stop] / 16).astype(np.float32)


def labels(start: int, stop: int, classes: int = 3) -> np.ndarray:
    """The digits' labels, folded onto fewer classes."""
    return load_digits().target[start:stop] % classes


def new_encoder() -> ConvEncoder:
    """A small encoder, the same at each call."""
    with isolated_seed(0):
        return ConvEncoder((4, 8))


@cache
def _trained_state() -> dict[str, torch.Tensor]:
    with isolated_seed(0):
        network = SplitClassifier(ConvEncoder((4, 8)), 3, embedding_dim=6, normalised_head=True)
        settings = {"epochs": 4, "batch_size": 20, "optimizer": sgd(0.1)}
        X = torch.from_numpy(images(0, 200)).unsqueeze(1)
        return (
            ClassifierTrainer(network, **settings).fit(X, torch.from_numpy(labels(0, 200))).plain_network.state_dict()
        )


def trained_classifier() -> SplitClassifier:
    """A new copy of a small classifier of three classes, trained for a moment."""
    network = SplitClassifier(ConvEncoder((4, 8)), 3, embedding_dim=6, normalised_head=True)
    network.load_state_dict(_trained_state())
    return network.eval()


@specimen("separability")
def separability() -> Specimen:
    from models.validate.separability import PersistenceSeparability

    return Specimen(
        make=lambda: PersistenceSeparability(subsample=20, n_subsamples=2, random_state=0),
        arguments=lambda: {"X": load_digits().data[:60]},
        answers=lambda fitted: {"score": fitted.score(load_digits().data[60:120])},
        contract={
            "check_n_features_in_after_fitting": "score compares embeddings of the same rows, whatever their width",
            "check_estimators_dtypes": "its rows of whole numbers hold zero vectors, which can not be normalised",
            "check_fit2d_1feature": "one column normalised is one point, reported as a collapse",
        },
    )


@specimen("lsa")
def lsa() -> Specimen:
    from models.label_noise.lsa import LSAClassifier

    def make() -> BaseEstimator:
        with isolated_seed(0):
            network = ProjectingClassifier(new_encoder(), 3, 6)
        state = network.encoder.state_dict()
        return LSAClassifier(network, epochs=3, batch_size=32, proj_dim=6, init_state=state, random_state=0)

    return Specimen(
        make=make,
        arguments=lambda: {"X": images(0, 96), "y": labels(0, 96)},
        answers=lambda fitted: {"probabilities": fitted.predict_proba(images(100, 130))},
        labels="y",
    )


@specimen("g-simclr")
def g_simclr() -> Specimen:
    from models.pretrain.g_simclr import GSimCLR

    small = {"n_clusters": 6, "batch_size": 16, "epochs": 2, "ae_epochs": 2, "projection_dims": (8, 6, 4)}
    return Specimen(
        make=lambda: GSimCLR(new_encoder(), **small, random_state=0),
        arguments=lambda: {"X": images(0, 96)},
        answers=lambda fitted: {"features": fitted.transform(images(100, 130))},
    )


@specimen("rotnet")
def rotnet() -> Specimen:
    from models.pretrain.rotnet import RotNet

    small = {"num_blocks": 2, "width": 8, "epochs": 2, "batch_size": 32, "crop_padding": 1, "lr_table": None}
    return Specimen(
        make=lambda: RotNet(**small, random_state=0),
        arguments=lambda: {"X": images(0, 96)},
        answers=lambda fitted: {
            "features": fitted.transform(images(100, 130)),
            "rotations": fitted.predict_rotation_proba(images(100, 130)),
        },
    )


@specimen("glc")
def glc() -> Specimen:
    from models.adapt.glc import GLCAdapter

    return Specimen(
        make=lambda: GLCAdapter(trained_classifier(), epochs=2, batch_size=32, estimate_on="pca", random_state=0),
        arguments=lambda: {"X": images(300, 396)},
        answers=lambda fitted: {
            "probabilities": fitted.predict_proba(images(100, 130)),
            "classes": fitted.predict(images(100, 130)),
        },
    )


@specimen("laf")
def laf() -> Specimen:
    from models.unlearn.laf import LabelAgnosticForgetting

    small = {"latent_dim": 2, "vae_hidden": (8, 4), "vae_epochs": 1, "epochs": 1, "batch_size": 16}
    return Specimen(
        make=lambda: LabelAgnosticForgetting(trained_classifier(), **small, repair_epochs=1, random_state=0),
        arguments=lambda: {
            "X_forget": images(0, 24)[:, None],
            "X_remain": images(24, 120)[:, None],
            "X_repair": images(24, 56)[:, None],
            "y_repair": labels(24, 56),
        },
        answers=lambda fitted: {
            "probabilities": fitted.predict_proba(images(100, 130)[:, None]),
            "features": fitted.transform(images(100, 130)[:, None]),
        },
        rows=("X_forget", "X_remain", "X_repair"),
        labels="y_repair",
    )


@specimen("udfc")
def udfc() -> Specimen:
    from models.compress.udfc import UnifiedDataFreeCompressor

    def answers(fitted: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {"logits": fitted.transform()(torch.from_numpy(images(100, 130)).unsqueeze(1))}

    return Specimen(
        make=lambda: UnifiedDataFreeCompressor(random_state=0),
        arguments=lambda: {
            "model": trained_classifier().fold_head(),
            "example_input": torch.from_numpy(images(0, 2)).unsqueeze(1),
        },
        answers=answers,
        rows=("example_input",),
    )


@specimen("r2d2")
def r2d2() -> Specimen:
    import pandas as pd

    from models.validate.r2d2 import R2D2
    from models.validate.tables import FrameTable

    def tables() -> list[FrameTable]:
        whole = pd.DataFrame(load_digits().data[:60, 10:16], columns=[f"pixel_{i}" for i in range(10, 16)])
        whole["digit"] = load_digits().target[:60]
        return [
            FrameTable("whole", whole),
            FrameTable("zeros", whole[whole.digit == 0]),
            FrameTable("narrow", whole[["pixel_10", "digit"]]),
            FrameTable("changed", whole.assign(pixel_10=whole.pixel_10 + 1)),
        ]

    return Specimen(
        make=lambda: R2D2(verify="exact", random_state=0),
        arguments=lambda: {"tables": tables()},
        answers=lambda fitted: {
            "reason": fitted.explain("whole", "changed"),
            "edges": sorted(fitted.graph_.edges(data=True)),
        },
        rows=(),
    )
