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
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

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
    contract_on : callable, optional
        -> what these checks run on, where their rows have to be prepared for the method.
    """

    make: Callable[[], BaseEstimator]
    arguments: Callable[[], dict[str, Any]]
    answers: Callable[[Any], dict[str, Any]]
    rows: tuple[str, ...] = ("X",)
    labels: str | None = None
    contract: dict[str, str] | None = None
    contract_on: Callable[[], BaseEstimator] | None = None


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


@specimen("faster-pam")
def faster_pam() -> Specimen:
    from models.discover.faster_pam import FasterPAM

    return Specimen(
        make=lambda: FasterPAM(3, metric="euclidean", random_state=0),
        arguments=lambda: {"X": load_digits().data[:60]},
        answers=lambda fitted: {
            "clusters": fitted.predict(load_digits().data[60:120]),
            "distances": fitted.transform(load_digits().data[60:120]),
        },
        contract={},
    )


@specimen("tell")
def tell() -> Specimen:
    from models.discover.tell import TELL

    def make() -> BaseEstimator:
        small = {"latent_dim": 4, "hidden": (16,), "batch_size": 32, "center_init": "kmeans"}
        return TELL(3, **small, warmup_epochs=1, epochs=2, random_state=0)

    return Specimen(
        make=make,
        arguments=lambda: {"X": images(0, 96)},
        answers=lambda fitted: {
            "clusters": fitted.predict(images(100, 130)),
            "codes": fitted.transform(images(100, 130)),
            "centres": fitted.explain(),
        },
        contract={
            "check_estimators_overwrite_params": "a pipeline fits the very steps it was given",
            "check_dont_overwrite_parameters": "a pipeline fits the very steps it was given",
        },
        contract_on=lambda: make_pipeline(MinMaxScaler(clip=True), make()),  # its decoder draws values in [0, 1]
    )


@specimen("mlc")
def mlc() -> Specimen:
    from models.discover.mlc import MLC

    small = {"feature_dim": 6, "eta": 1.0, "batch_size": 48, "tcr_epochs": 1, "epochs": 2}
    return Specimen(
        make=lambda: MLC(2, **small, random_state=0),
        arguments=lambda: {"X": images(0, 96)},
        answers=lambda fitted: {
            "clusters": fitted.predict(images(100, 130)),
            "features": fitted.transform(images(100, 130)),
        },
        contract={},
    )


@specimen("sp2ot")
def sp2ot() -> Specimen:
    from models.discover.sp2ot import SP2OTClustering

    small = {"batch_size": 48, "bank_factor": 2, "pretrain_epochs": 2, "epochs": 2, "mm_max_iter": 3}
    return Specimen(
        make=lambda: SP2OTClustering(3, init="k-means", **small, random_state=0),
        arguments=lambda: {"X": images(0, 96)},
        answers=lambda fitted: {
            "clusters": fitted.predict(images(100, 130)),
            "probabilities": fitted.predict_proba(images(100, 130)),
            "features": fitted.transform(images(100, 130)),
        },
        contract=dict.fromkeys(
            (
                "check_dont_overwrite_parameters",
                "check_fit2d_1feature",
                "check_fit2d_1sample",
                "check_fit2d_predict1d",
                "check_methods_subset_invariance",
            ),
            "one cluster, which the check asks for, is refused",
        ),
    )


def partly_named(start: int, stop: int, known: int = 6) -> np.ndarray:
    """The digits' labels, -1 from `known` on."""
    target = load_digits().target[start:stop]
    return np.where(target < known, target, -1)


@specimen("tabular-ncd")
def tabular_ncd() -> Specimen:
    from models.discover.tabular_ncd import PBN

    rows = load_digits().data[:130] / 16
    return Specimen(
        make=lambda: PBN(3, epochs=2, batch_size=32, random_state=0),
        arguments=lambda: {"X": rows[:96].copy(), "y": partly_named(0, 96)},
        answers=lambda fitted: {
            "clusters": fitted.predict(rows[96:]),
            "known": fitted.predict_known(rows[96:]),
            "latents": fitted.transform(rows[96:]),
        },
        labels="y",
    )


@specimen("ncd-k-means")
def ncd_k_means() -> Specimen:
    from models.discover.ncd_k_means import NCDKMeans

    rows = load_digits().data[:130] / 16
    return Specimen(
        make=lambda: NCDKMeans(3, n_init=2, random_state=0),
        arguments=lambda: {"X": rows[:96].copy(), "y": partly_named(0, 96)},
        answers=lambda fitted: {"clusters": fitted.predict(rows[96:]), "known": fitted.predict_known(rows[96:])},
        labels="y",
    )


@specimen("ncd-spectral")
def ncd_spectral() -> Specimen:
    from sklearn.utils.validation import check_is_fitted

    from models.discover.ncd_spectral import NCDSpectralClustering

    def answers(fitted: Any) -> dict[str, Any]:
        check_is_fitted(fitted)
        return {"labels": fitted.labels_}

    return Specimen(
        make=lambda: NCDSpectralClustering(3, n_init=2, random_state=0),
        arguments=lambda: {"X": load_digits().data[:96] / 16, "y": partly_named(0, 96)},
        answers=answers,
        labels="y",
    )


@specimen("gcd-gmm")
def gcd_gmm() -> Specimen:
    from models.discover.gcd_gmm import SemiSupervisedGMM

    rows = load_digits().data[:130] / 16
    small = {"n_components_pca": 6, "psi_scale": "within", "kmeans_n_init": 2}
    return Specimen(
        make=lambda: SemiSupervisedGMM(**small, random_state=0),
        arguments=lambda: {"X": rows[:96].copy(), "y": partly_named(0, 96)},
        answers=lambda fitted: {"classes": fitted.predict(rows[96:]), "log density": fitted.score_samples(rows[96:])},
        labels="y",
    )


@specimen("gcd-gpc")
def gcd_gpc() -> Specimen:
    from models.discover.gcd_gpc import GPC

    mixture = {"n_components_pca": 4, "psi_scale": "within", "kmeans_n_init": 2}
    return Specimen(
        make=lambda: GPC(new_encoder(), epochs=2, batch_size=32, gmm_params=mixture, random_state=0),
        arguments=lambda: {"X": images(0, 96), "y": partly_named(0, 96)},
        answers=lambda fitted: {
            "classes": fitted.predict(images(100, 130)),
            "features": fitted.transform(images(100, 130)),
        },
        labels="y",
    )


@specimen("latent-label-shift")
def latent_label_shift() -> Specimen:
    from models.discover.latent_label_shift import DDFA

    def sources() -> np.ndarray:
        """Even digits are mostly of the first source, odd ones of the second."""
        return (load_digits().target[:120] % 2 + (np.arange(120) % 5 == 0)) % 2

    rows = load_digits().data[:150] / 16
    return Specimen(
        make=lambda: DDFA(2, epochs=3, random_state=0),
        arguments=lambda: {"X": rows[:120].copy(), "domains": sources()},
        answers=lambda fitted: {
            "probabilities": fitted.predict_proba(rows[120:]),
            "classes": fitted.predict(rows[120:], np.zeros(30, dtype=np.int64)),
            "sources": fitted.score_domain(rows[120:]),
        },
    )


@specimen("ppp")
def ppp() -> Specimen:
    from models.discover.ppp import PPP

    rows = load_digits().data[:150, 18:22] / 16
    return Specimen(
        make=lambda: PPP(k_range=(2, 4), n_runs=3, covariance_type="diag", random_state=0),
        arguments=lambda: {"X": rows[:120].copy()},
        answers=lambda fitted: {"labels": fitted.predict(rows[120:]), "sure": fitted.separability(rows[120:])},
        contract={},
    )


@specimen("ila-sdp")
def ila_sdp() -> Specimen:
    from models.discover.ila_sdp import ILASDP

    rows = load_digits().data[:80, 18:22] / 16
    small = {"max_iter": 2, "n_init": 1, "sdp_max_iter": 100}
    return Specimen(
        make=lambda: ILASDP(n_clusters=2, **small, random_state=0),
        arguments=lambda: {"X": rows[:40].copy()},
        answers=lambda fitted: {"labels": fitted.predict(rows[40:]), "score": fitted.score(rows[40:])},
        contract={},
    )


@specimen("clusternet")
def clusternet() -> Specimen:
    from models.discover.clusternet import ClusterNet

    small = {"max_clusters": 4, "n_points": 48, "batch_size": 2, "pretrain_steps": 3}
    return Specimen(
        make=lambda: ClusterNet(**small, random_state=0),
        arguments=lambda: {"X": load_digits().data[:60, [20, 43]]},
        answers=lambda fitted: {
            "groups": fitted.predict(load_digits().data[60:120, [20, 43]]),
            "probabilities": fitted.predict_proba(load_digits().data[60:120, [20, 43]]),
        },
        contract={
            "check_estimators_overwrite_params": "a pipeline fits the very steps it was given",
            "check_dont_overwrite_parameters": "a pipeline fits the very steps it was given",
            "check_estimator_sparse_tag": "PCA, which projects the rows, takes sparse ones",
            "check_estimator_sparse_array": "PCA, which projects the rows, takes sparse ones",
            "check_estimator_sparse_matrix": "PCA, which projects the rows, takes sparse ones",
            "check_fit2d_1sample": "PCA refuses one row in words of its own",
            "check_fit2d_1feature": "PCA refuses one column in words of its own",
            "check_methods_subset_invariance": "the points of a plot are grouped together, at least 8 of them",
        },
        contract_on=lambda: make_pipeline(PCA(2), ClusterNet(**small, random_state=0)),  # a plot has two columns
    )


@specimen("rs2")
def rs2() -> Specimen:
    from models.curate.rs2 import RS2Trainer

    return Specimen(
        make=lambda: RS2Trainer(trained_classifier(), fraction=0.5, n_rounds=3, batch_size=12, random_state=0),
        arguments=lambda: {"X": images(0, 60)[:, None], "y": labels(0, 60)},
        answers=lambda fitted: {"classes": fitted.predict(images(60, 90)[:, None])},
        labels="y",
    )


@specimen("select")
def select() -> Specimen:
    from models.curate.curation_strategies import EmbeddingLookup, ExpertSubset, LabelledSet
    from models.curate.select_benchmark import CurationBenchmark
    from models.curate.shift_evaluations import Accuracy, ShiftTrainer

    suite = {"base": [Accuracy(images(200, 260), labels(200, 260))]}
    return Specimen(
        make=lambda: CurationBenchmark(trainer=ShiftTrainer(2), size=30, eval_suite=suite, seeds=(0,)),
        arguments=lambda: {
            "strategies": [ExpertSubset(), EmbeddingLookup()],
            "gold": LabelledSet(images(0, 60), labels(0, 60)),
            "pool": LabelledSet(images(60, 160), np.full(100, -1)),
        },
        answers=lambda fitted: {"table": fitted.report_.table, "markdown": fitted.report_.to_markdown()},
        rows=(),
    )


def subset_specimen(make: Callable[[], BaseEstimator], labelled: bool = True) -> Specimen:
    """An example of a selection made once."""
    given: dict[str, Any] = {"X": images(0, 60)} | ({"y": labels(0, 60)} if labelled else {})
    return Specimen(
        make=make,
        arguments=lambda: {name: value.copy() for name, value in given.items()},
        answers=lambda fitted: {"kept": fitted.select(images(0, 60)), "rows": fitted.indices_},
        labels="y" if labelled else None,
    )


@specimen("random-subset")
def random_subset() -> Specimen:
    from models.curate.baselines import RandomSubset

    return subset_specimen(lambda: RandomSubset(0.2, random_state=0), labelled=False)


@specimen("stratified-subset")
def stratified_subset() -> Specimen:
    from models.curate.baselines import StratifiedSubset

    return subset_specimen(lambda: StratifiedSubset(0.2, random_state=0))


@specimen("k-centre")
def k_centre() -> Specimen:
    from models.curate.baselines import KCentre

    return subset_specimen(lambda: KCentre(0.2, random_state=0), labelled=False)


@specimen("herding")
def herding() -> Specimen:
    from models.curate.baselines import Herding

    return subset_specimen(lambda: Herding(0.2))


@specimen("margin")
def margin() -> Specimen:
    from models.curate.trained_scores import Margin

    return subset_specimen(lambda: Margin(0.2, epochs=2, n_models=2, batch_size=16, random_state=0))


@specimen("el2n")
def el2n() -> Specimen:
    from models.curate.trained_scores import EL2N

    return subset_specimen(lambda: EL2N(0.2, epochs=2, n_models=2, batch_size=16, random_state=0))


@specimen("grand")
def grand() -> Specimen:
    from models.curate.trained_scores import GraNd

    return subset_specimen(lambda: GraNd(0.2, epochs=2, n_models=2, batch_size=16, random_state=0))


@specimen("forgetting")
def forgetting() -> Specimen:
    from models.curate.trained_scores import Forgetting

    return subset_specimen(lambda: Forgetting(0.2, epochs=3, batch_size=16, random_state=0))


def texts() -> list[str]:
    """Sentences of what scikit-learn tells about its data sets, some of them twice."""
    from sklearn.datasets import load_breast_cancer, load_iris, load_wine

    told = " ".join(" ".join(load().DESCR.split()) for load in (load_digits, load_iris, load_wine, load_breast_cancer))
    found = [part.strip() + "." for part in told.split(". ") if len(part.split()) > 5]
    return [*found, *(text.upper() for text in found[:3]), ""]


@specimen("survey")
def survey() -> Specimen:
    from models.curate.survey import TextCurationPipeline

    return Specimen(
        make=lambda: TextCurationPipeline((("gopher-quality", {"min_words": 8}), "exact", "minhash")),
        arguments=lambda: {"X": texts()},
        answers=lambda fitted: {"kept": fitted.transform(texts()), "report": fitted.report_.to_mlflow()},
        rows=(),
    )


@specimen("minhash-dedup")
def minhash_dedup() -> Specimen:
    from models.curate.text_minhash import MinHashDedup

    return Specimen(
        make=lambda: MinHashDedup(verify=0.5),
        arguments=lambda: {"X": texts()},
        answers=lambda fitted: {"groups": fitted.groups(), "kept": fitted.indices_},
        rows=(),
    )


@specimen("dsir")
def dsir() -> Specimen:
    from models.curate.text_resampling import DSIR

    return Specimen(
        make=lambda: DSIR(budget=5, min_tokens=5, target_smoothing=1.0, random_state=0),
        arguments=lambda: {"X": texts(), "target": ["handwritten digits of people", "images of digits"]},
        answers=lambda fitted: {"weights": fitted.score(texts()), "drawn": fitted.draw(3)},
        rows=(),
    )


@specimen("local-graph")
def local_graph() -> Specimen:
    from sklearn.neighbors import kneighbors_graph

    from models.label_noise.local_graph import LabelFlowDiffusion

    def make() -> BaseEstimator:
        return LabelFlowDiffusion(mass_factors=(0.5, 1.0), target_volume=60.0, random_state=0)

    def arguments() -> dict[str, Any]:
        near = kneighbors_graph(load_digits().data[:150], 6)
        return {
            "A": near.maximum(near.T).toarray(),
            "seeds": np.flatnonzero(load_digits().target[:150] == 0)[:2],
            "labels": (load_digits().target[:150] == 0).astype(np.int64),
        }

    return Specimen(
        make=make,
        arguments=arguments,
        answers=lambda fitted: {"labels": fitted.correct_labels()},
        rows=("A",),
    )


@specimen("filtering-laws")
def filtering_laws() -> Specimen:
    import pandas as pd

    from models.curate.filtering_laws import DataFilteringLaw, pool_curve

    def runs() -> pd.DataFrame:
        budgets = (500.0, 1000.0, 2000.0, 4000.0)
        curves = {"good": (-0.3, 2.0), "poor": (-0.15, 4.0)}
        rows = [
            {
                "pool": name,
                "samples_seen": n,
                "pool_size": 1000.0,
                "error": float(pool_curve(n, 1000.0, 0.02, *curve, 0.1)),
            }
            for name, curve in curves.items()
            for n in budgets
        ]
        return pd.DataFrame(rows)

    return Specimen(
        make=lambda: DataFilteringLaw(1.0, a=0.02, d=0.1, n_bootstrap=2, random_state=0),
        arguments=lambda: {"runs": runs()},
        answers=lambda fitted: {
            "one": fitted.predict("good", [1000.0, 5000.0]),
            "both": fitted.predict_mixture(["good", "poor"], 5000.0),
            "choice": fitted.choice_probability(5000.0),
        },
        rows=(),
    )


@specimen("projektor")
def projektor() -> Specimen:
    from models.curate.projektor import Projektor

    def pilots() -> list[tuple[np.ndarray, np.ndarray]]:
        rows, found = load_digits().data[:300] / 16, labels(0, 300)
        return [(rows[found != skipped], found[found != skipped]) for skipped in (0, 1)]

    return Specimen(
        make=lambda: Projektor(n0=20, n1=40, step=0.25, reps=1, ot_solver="exact", random_state=0),
        arguments=lambda: {
            "sources": pilots(),
            "X_val": load_digits().data[300:360] / 16,
            "y_val": labels(300, 360),
        },
        answers=lambda fitted: {
            "scores": fitted.predict([[0.5, 0.5], [0.9, 0.1]], 80),
            "interval": fitted.score_interval([[0.5, 0.5]], 80),
            "mixture": fitted.select(80)[0],
        },
        rows=("X_val",),
        labels="y_val",
    )


@specimen("ambient")
def ambient() -> Specimen:
    from models.curate.ambient import AmbientDiffusion
    from models.networks.denoiser import MLPDenoiser

    def new_denoiser() -> MLPDenoiser:
        with isolated_seed(0):
            return MLPDenoiser(64, width=16, depth=1, n_classes=3)

    def noisy() -> dict[str, Any]:
        noise = np.random.default_rng(0).standard_normal((100, 64), dtype=np.float32)
        levels = np.repeat(np.float32([0.0, 0.3]), 50)
        X = (load_digits().data[:100] / 8 - 1).astype(np.float32) + levels[:, None] * noise
        return {"X": X, "noise_std": levels, "y": labels(0, 100)}

    return Specimen(
        make=lambda: AmbientDiffusion(new_denoiser(), batch_size=32, n_steps=8, random_state=0),
        arguments=noisy,
        answers=lambda fitted: {
            "drawn": fitted.sample(4, n_steps=4),
            "cleaned": fitted.denoise(noisy()["X"][:4], 0.3, labels(0, 4)),
        },
        labels="y",
    )


@specimen("dfn")
def dfn() -> Specimen:
    from models.curate.dfn import DataFilteringNetwork

    def pairs(start: int, stop: int) -> tuple[np.ndarray, list[str]]:
        found = (load_digits().data[start:stop] / 16).astype(np.float32)
        return found, [f"the number {label}" for label in load_digits().target[start:stop]]

    return Specimen(
        make=lambda: DataFilteringNetwork(embed_dim=4, batch_size=20, epochs_or_samples=2.0, random_state=0),
        arguments=lambda: {"trusted_pairs": pairs(0, 60)},
        answers=lambda fitted: {"scores": fitted.score_pairs(pairs(60, 90)), "kept": fitted.select(pairs(60, 90), 0.5)},
        rows=(),
    )


@specimen("dwa")
def dwa() -> Specimen:
    from models.curate.dwa import DWADistiller

    return Specimen(
        make=lambda: DWADistiller(trained_classifier(), ipc=2, n_iter=3, jitter=1, rho=0.1, random_state=0),
        arguments=lambda: {"X": images(0, 60)[:, None], "y": labels(0, 60)},
        answers=lambda fitted: {
            "images": fitted.transform()[0],
            "told": fitted.soft_labels(images(60, 90)[:, None], 20.0),
        },
        labels="y",
    )


@specimen("divergen")
def divergen() -> Specimen:
    from models.curate.divergen import DiverGen, real_cutouts

    def scenes(start: int, stop: int) -> np.ndarray:
        grey = np.round(images(start, stop) * 255).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
        return grey[..., None].repeat(3, axis=3)

    def objects(start: int, stop: int) -> list[dict[str, Any]]:
        masks = scenes(start, stop)[..., 0] > 80
        return [{"labels": [kind], "masks": mask[None]} for kind, mask in zip(labels(start, stop), masks, strict=True)]

    return Specimen(
        make=lambda: DiverGen(real_cutouts(scenes(20, 26), objects(20, 26)), n_steps=4, batch_size=3, random_state=0),
        arguments=lambda: {"X": scenes(0, 8), "y": objects(0, 8)},
        answers=lambda fitted: {"maps": fitted.predict(scenes(30, 34))},
        rows=(),
    )
