"""Choose among noisy pairs with a network trained on a few good ones, and judge it by the data it chooses.

A. Fang, A. Madappally Jose, A. Jain, L. Schmidt, A. Toshev and V. Shankar, "Data Filtering Networks", ICLR 2024,
arXiv:2309.17425.

A filter data set trains a filter network; that network keeps part of a pool, the induced data set; a model trained on
it is the induced model. A filter that is better at its own task may induce a worse model, so filters are ranked by the
model they induce. Step by step: (1) a contrastive loss, (2) training on trusted pairs, (3) fine-tuning and averaging,
(4) scores, (5) the best share of the pool, (6) rules before the scores, (7) the induced model, (8) diagnosis.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from models.augment import View
from models.base import check_labels, isolated_seed, seed_from
from models.curate.pair_filters import (
    BinaryFilter,
    PairFilter,
    ReconstructionFilter,
    ScoreHistogram,
    best_pairs,
    default_pair_encoder,
    side_shapes,
    trusted_ones,
)
from models.curate.pairs import (
    HFClipScorer,
    Mask,
    OpenClipScorer,
    Pairs,
    PairScorer,
    as_pairs,
    basic_filter,
    cosine,
)
from models.losses import target_contrastive
from models.networks.pair_encoder import LARGEST_SCALE, BagOfWords, ContrastivePairEncoder
from models.registry import register
from models.training import Row, StepTrainer, warmup_cosine

__all__ = [
    "BagOfWords",
    "BinaryFilter",
    "ContrastivePairEncoder",
    "DataFilteringNetwork",
    "HFClipScorer",
    "OpenClipScorer",
    "PairScorer",
    "Pairs",
    "ReconstructionFilter",
    "ScoreHistogram",
    "basic_filter",
    "best_pairs",
    "induced_benchmark",
    "zero_shot_accuracy",
]


Train = Callable[[Pairs], Any]
Evaluate = Callable[[Any], float]

EPOCHS = 32.0
"""Passes over the trusted pairs by default, as CLIP's over its own."""


# ---- the equations -----------------------------------------------------------------------------------------


def pair_loss(u: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE, ``(CE(s U V^T, I) + CE(s V U^T, I)) / 2`` (step 1).

    Parameters
    ----------
    u, v : Tensor, (B, d)
        Row i of both is a pair; all other rows of the batch are taken for strangers, so equal captions set a floor.
    scale : Tensor or float
        s.
    """
    own = torch.eye(len(u), device=u.device)
    temperature = 1 / torch.as_tensor(scale, device=u.device)
    return (target_contrastive(u, v, own, temperature) + target_contrastive(v, u, own, temperature)) / 2


def averaged_weights(before: nn.Module, after: nn.Module, alpha: float) -> dict[str, Tensor]:
    """``(1 - alpha) before + alpha after`` for every weight (step 3); 0 and 1 give the one or the other exactly."""
    other = after.state_dict()
    return {
        name: torch.lerp(value, other[name], alpha) if value.is_floating_point() else other[name]
        for name, value in before.state_dict().items()
    }


def zero_shot_accuracy(
    scorer: PairScorer, a: Any, labels: ArrayLike, prompts: Sequence[Any], chunk: int = 4096
) -> float:
    """Share of rows whose class has the prompt of highest cosine.

    Parameters
    ----------
    scorer : PairScorer
    a : array, (n, ...)
        Side a.
    labels : array of int, (n,)
        Number of the right prompt.
    prompts : sequence, (n_classes,)
        Side b, one a class, worded as in training.
    """
    numbers = check_labels(
        labels, len(a), n_classes=len(prompts), allow_unlabelled=False, minimum_classes=1, name="labels"
    )
    classes = torch.nn.functional.normalize(scorer.encode_b(prompts).float(), dim=1)
    found = [
        (scorer.encode_a(a[start : start + chunk]).float() @ classes.T).argmax(1).cpu()
        for start in range(0, len(a), chunk)
    ]
    return float((torch.cat(found).numpy() == numbers).mean())


def marked(mask: ArrayLike, n: int, name: str) -> Mask:
    """A mask of the pairs of a pool.

    Raises
    ------
    ValueError
        If it is of another length, holds anything but True and False (or 1 and 0), or marks nothing.
    """
    found = np.asarray(mask)
    if found.shape != (n,) or not np.isin(found, (0, 1)).all() or not found.any():
        raise ValueError(f"{name} must mark some of {n} pairs with True, got {found.dtype} {found.shape}.")
    return found.astype(bool)


def clip_adamw(lr: float, weight_decay: float) -> Callable[[nn.Module], Optimizer]:
    """Network -> AdamW as CLIP is trained with: nothing decays that has fewer than two axes (step 2)."""

    def make(network: nn.Module) -> Optimizer:
        parameters = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.98), eps=1e-6)

    return make


class PairTrainer(StepTrainer):
    """Symmetric InfoNCE on (a, b), with a scale of 100 at most.

    Parameters
    ----------
    network : ContrastivePairEncoder
    augment : callable, optional
        Batch of side a -> batch, drawn anew each time.
    """

    def __init__(self, network: nn.Module, augment: View | None, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.augment = augment

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Side a augmented, side b."""
        a, b = super().fetch(index)
        return (self.augment(a) if self.augment else a), b

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Step 1."""
        u, v, scale = self.network(*batch)
        return pair_loss(u, v, scale), {}

    def train_step(self, batch: tuple[Tensor, ...], index: Tensor) -> Row:
        """A step, after which theta is put back below ln 100."""
        terms = super().train_step(batch, index)
        theta: Any = self.plain_network.log_scale
        with torch.no_grad():
            theta.clamp_(max=math.log(LARGEST_SCALE))
        return terms


# ---- the filter --------------------------------------------------------------------------------------------


@register(
    "dfn",
    stage="curate",
    summary="Keeps the best-aligned pairs of a noisy pool by a contrastive network trained on a few trusted pairs.",
    paper="Data Filtering Networks",
    year=2024,
    link="https://arxiv.org/abs/2309.17425",
    licence="none published",
    accepts=("image", "text", "embedding"),
    taxonomy={
        "goal": "distribution matching",
        "utility": "cosine of both sides of a pair in a network of trusted pairs",
        "unit": "data point",
        "mechanism": "the share of highest scores",
        "stage_of_training": "pretraining",
    },
)
class DataFilteringNetwork(PairFilter):
    """Score pairs by how well their sides agree, in the eyes of a network trained on trusted pairs, and keep the best.

    Choose a filter by the model that its data induce (:func:`induced_benchmark`), never by its own accuracy, and audit
    the trusted pairs: a quarter of noise among them costs more than a smaller set. Filters have tastes; ``report_``
    tells what share of each language, source or class is kept. Remove copies, and test images, before.

    Parameters
    ----------
    scorer : PairScorer, optional
        A :class:`ContrastivePairEncoder` is copied and trained; any other, such as a published CLIP, scores as it is.
        By default small towers that fit the sides.
    embed_dim : int, default=512
        Dimensions of the joint space of the default towers.
    epochs_or_samples : int, float or None, default=None
        An int is a number of pairs seen, a float a number of passes; None is 32 passes. 0 leaves the network as it is.
    batch_size : int, default=16384
        At most as many as there are trusted pairs.
    lr, weight_decay : float, default=5e-4, 0.2
        Of AdamW.
    warmup_steps : int, default=2000
        At most a tenth of all steps.
    init : ContrastivePairEncoder, optional
        Start from its weights; without a `scorer` its towers are taken as well.
    finetune_pairs : Pairs or tuple, optional
        A few very clean pairs: a labelled set with captions made of its class names, for one. Training goes on with
        them, and weights before and after are averaged.
    ensemble_alpha : float, default=0.5
        Weight of those after.
    keep_fraction : float, default=0.15
        Share of the pool to keep.
    threshold : float, optional
        Lowest score to keep instead; a cosine means something else in every model, so prefer a share.
    augment : callable, optional
        Batch of side a -> batch, drawn anew each time.
    prefilter : callable, optional
        Pairs -> mask; what fails is never kept. See :func:`basic_filter`. The share is of the whole pool all the same.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    scorer_ : PairScorer
        The trained copy, or the scorer given.
    logit_scale_ : float
        Learnt scale of the cosine, 1 for a scorer that was not trained.
    loss_curve_ : list of float
        Mean loss of each pass.
    filter_accuracy_ : float
        What :meth:`record_accuracy` found, for the record only; nan before.
    n_trusted_ : int
    scores_, indices_, threshold_, kept_fraction_, n_unscored_, scores_quantiles_, report_
        Of the pool last selected from: see :class:`~models.curate.pair_filters.PairFilter`.

    Raises
    ------
    ValueError
        For fewer than two trusted pairs or NaN among them, sides of another length or kind, a share outside (0, 1], an
        empty pool, rows of another shape than in ``fit``.

    References
    ----------
    Fang et al. (2024), sections 3 and 4; Radford et al., arXiv:2103.00020, for the loss and the optimiser; Gadre et
    al., arXiv:2304.14108, for rules and thresholds.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> names, which = ["cat", "dog", "fish"], rng.integers(3, size=90)
    >>> images = (np.eye(3)[which] + 0.1 * rng.normal(size=(90, 3))).astype(np.float32)
    >>> captions = [f"a photo of a {names[i]}" for i in which]
    >>> method = DataFilteringNetwork(embed_dim=8, batch_size=30, lr=0.01, random_state=0).fit((images, captions))
    >>> wrong = [f"a photo of a {names[i - 1]}" for i in which[3:6]]
    >>> method.select((images[:6], captions[:3] + wrong), keep_fraction=0.5).tolist()
    [True, True, True, False, False, False]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "scorer": [None, HasMethods(["encode_a", "encode_b", "score"])],
        "embed_dim": [Interval(Integral, 1, None, closed="left")],
        "epochs_or_samples": [
            None,
            Interval(Integral, 0, None, closed="left"),
            Interval(Real, 0, None, closed="neither"),
        ],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "warmup_steps": [Interval(Integral, 0, None, closed="left")],
        "init": [None, ContrastivePairEncoder],
        "finetune_pairs": [None, Pairs, tuple],
        "ensemble_alpha": [Interval(Real, 0, 1, closed="both")],
        "keep_fraction": [Interval(Real, 0, 1, closed="right")],
        "threshold": [None, Real],
        "augment": [None, callable],
        "prefilter": [None, callable],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        scorer: PairScorer | None = None,
        *,
        embed_dim: int = 512,
        epochs_or_samples: int | float | None = None,
        batch_size: int = 16384,
        lr: float = 5e-4,
        weight_decay: float = 0.2,
        warmup_steps: int = 2000,
        init: ContrastivePairEncoder | None = None,
        finetune_pairs: Pairs | tuple[Any, Any] | None = None,
        ensemble_alpha: float = 0.5,
        keep_fraction: float = 0.15,
        threshold: float | None = None,
        augment: View | None = None,
        prefilter: Callable[[Pairs], Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.scorer = scorer
        self.embed_dim = embed_dim
        self.epochs_or_samples = epochs_or_samples
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.init = init
        self.finetune_pairs = finetune_pairs
        self.ensemble_alpha = ensemble_alpha
        self.keep_fraction = keep_fraction
        self.threshold = threshold
        self.augment = augment
        self.prefilter = prefilter
        self.random_state = random_state

    # ---- training --------------------------------------------------------------------------------------------

    def fit(self, trusted_pairs: Any) -> DataFilteringNetwork:
        """Train on the trusted pairs (steps 1-3).

        Parameters
        ----------
        trusted_pairs : Pairs or tuple (a, b)
        """
        self._validate_params()
        trusted = trusted_ones(trusted_pairs)
        finetune = None if self.finetune_pairs is None else trusted_ones(self.finetune_pairs, "finetune_pairs")
        self.filter_accuracy_, self.logit_scale_ = math.nan, 1.0
        self.loss_curve_: list[float] = []
        self.n_trusted_ = len(trusted)
        with isolated_seed(self.random_state) as seed:
            self.scorer_ = self._started(trusted)
            if isinstance(self.scorer_, ContrastivePairEncoder):
                self._check_fits(trusted)
                self._train(self.scorer_, trusted, "data filtering network", seed)
                if finetune is not None:
                    self._check_fits(finetune)
                    before = copy.deepcopy(self.scorer_)
                    self._train(self.scorer_, finetune, "fine-tuning the filter", seed)
                    self.scorer_.load_state_dict(averaged_weights(before, self.scorer_, self.ensemble_alpha))
                self.scorer_.eval().requires_grad_(False)
                self.logit_scale_ = float(self.scorer_.scale)
        return self

    def _started(self, trusted: Pairs) -> PairScorer:
        """The network before training, a new one or a copy."""
        if self.scorer is not None and not isinstance(self.scorer, ContrastivePairEncoder):
            if self.init is not None or self.finetune_pairs is not None:
                raise ValueError("init and finetune_pairs train a ContrastivePairEncoder; this scorer stays as it is.")
            return self.scorer
        start = self.scorer if self.scorer is not None else self.init
        encoder = copy.deepcopy(start) if start is not None else default_pair_encoder(trusted, self.embed_dim)
        encoder.requires_grad_(True)
        if self.scorer is not None and self.init is not None:
            try:
                encoder.load_state_dict(self.init.state_dict())
            except RuntimeError as error:
                raise ValueError(f"The weights of init do not fit the scorer: {error}") from None
        return encoder

    def _check_fits(self, pairs: Pairs) -> None:
        """Whether the towers take these sides: their first row goes through."""
        scorer: Any = self.scorer_
        side_shapes(pairs)
        try:
            cosine(scorer.encode_a(pairs.a[:1]), scorer.encode_b(pairs.b[:1]))
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(f"The sides of the pairs do not fit the network's towers: {error}") from None

    def _train(self, encoder: ContrastivePairEncoder, pairs: Pairs, label: str, seed: int) -> None:
        wanted = EPOCHS if self.epochs_or_samples is None else self.epochs_or_samples
        samples = wanted * len(pairs) if isinstance(wanted, (float, np.floating)) else wanted
        size = min(self.batch_size, len(pairs))
        steps = -(-int(samples) // size)
        if not steps:
            return
        trainer = PairTrainer(
            encoder,
            self.augment,
            n_steps=steps,
            batch_size=size,
            drop_last=True,
            optimizer=clip_adamw(self.lr, self.weight_decay),
            schedule=warmup_cosine(min(self.warmup_steps, steps // 10)),
            label=label,
            seed=seed,
        ).fit(encoder.read(pairs.a, "a"), encoder.read(pairs.b, "b"))
        self.loss_curve_ += [row["loss"] for row in trainer.history]

    # ---- answers ---------------------------------------------------------------------------------------------

    def _scores_of(self, pairs: Pairs) -> Tensor:
        """Step 4."""
        if isinstance(self.scorer_, ContrastivePairEncoder):
            self._check_fits(pairs)
        return cosine(self.scorer_.encode_a(pairs.a), self.scorer_.encode_b(pairs.b))

    def fit_transform(self, trusted_pairs: Any, pool: Any) -> Pairs:
        """Train on the trusted pairs and give the kept pairs of the pool."""
        return self.fit(trusted_pairs).transform(pool)

    def record_accuracy(self, a: Any, labels: ArrayLike, prompts: Sequence[Any]) -> float:
        """The filter's own :func:`zero_shot_accuracy`, kept as ``filter_accuracy_``. Do not choose a filter by it."""
        check_is_fitted(self, "scorer_")
        self.filter_accuracy_ = zero_shot_accuracy(self.scorer_, a, labels, prompts)
        return self.filter_accuracy_

    # ---- what the data are worth -----------------------------------------------------------------------------

    def induced_score(self, pool: Any, mask: Mask, train_fn: Train, eval_fn: Evaluate) -> float:
        """Train on the kept pairs and evaluate: what a filter is judged by (step 7).

        Parameters
        ----------
        pool : Pairs or tuple (a, b)
        mask : array of bool, (n,)
        train_fn : callable
            Pairs -> model, by the same recipe and the same number of pairs seen for every filter.
        eval_fn : callable
            Model -> figure, higher is better.
        """
        everything = as_pairs(pool, "pool")
        return float(eval_fn(train_fn(everything.take(marked(mask, len(everything), "mask")))))

    def poison_sweep(
        self,
        trusted_pairs: Any,
        pool: Any,
        fractions: Sequence[float],
        train_fn: Train,
        eval_fn: Evaluate,
        own_fn: Callable[[Any], float] | None = None,
    ) -> pd.DataFrame:
        """What noise among the trusted pairs costs: a share of them is replaced by random pairs of the pool (step 8).

        Parameters
        ----------
        trusted_pairs, pool : Pairs or tuple (a, b)
        fractions : sequence of float
            In [0, 1].
        train_fn, eval_fn : callable
            As in :meth:`induced_score`.
        own_fn : callable, optional
            Scorer -> its own accuracy; ``eval_fn`` by default.

        Returns
        -------
        DataFrame
            A row a fraction: ``poison``, ``own`` and ``induced``.
        """
        trusted, everything = trusted_ones(trusted_pairs), as_pairs(pool, "pool")
        if any(not 0 <= fraction <= 1 for fraction in fractions):
            raise ValueError(f"fractions must lie in [0, 1], got {list(fractions)}.")
        rng = np.random.default_rng(seed_from(self.random_state))
        clean_first = rng.permutation(len(trusted))
        random_pairs = rng.choice(len(everything), len(trusted), replace=len(everything) < len(trusted))
        rows = []
        for fraction in fractions:
            bad = round(fraction * len(trusted))
            given = trusted.take(clean_first[bad:]).joined(everything.take(random_pairs[:bad]))
            method = clone(self).fit(given)
            own = (own_fn or eval_fn)(method.scorer_)
            induced = self.induced_score(everything, method.select(everything), train_fn, eval_fn)
            rows.append({"poison": fraction, "own": float(own), "induced": induced})
        return pd.DataFrame(rows)

    def compare_uses(
        self, trusted_pairs: Any, pool: Any, train_fn: Train, eval_fn: Evaluate, other_mask: Mask | None = None
    ) -> pd.DataFrame:
        """Whether the trusted pairs serve better as a filter's training data or as the model's (step 8).

        Parameters
        ----------
        trusted_pairs, pool : Pairs or tuple (a, b)
        train_fn, eval_fn : callable
            As in :meth:`induced_score`.
        other_mask : array of bool, (n,), optional
            What the pool is filtered by where this filter is not used; by default it is not filtered.

        Returns
        -------
        DataFrame
            ``use`` ("filter only", "train only", "both"), ``pairs`` and ``induced``, best first.
        """
        trusted, everything = trusted_ones(trusted_pairs), as_pairs(pool, "pool")
        others = everything
        if other_mask is not None:
            others = everything.take(marked(other_mask, len(everything), "other_mask"))
        kept = clone(self).fit(trusted).transform(everything)
        uses = {"filter only": kept, "train only": others.joined(trusted), "both": kept.joined(trusted)}
        rows = [
            {"use": use, "pairs": len(pairs), "induced": float(eval_fn(train_fn(pairs)))} for use, pairs in uses.items()
        ]
        return pd.DataFrame(rows).sort_values("induced", ascending=False, ignore_index=True)


def induced_benchmark(
    pool: Any,
    masks: Mapping[str, Mask],
    train_fn: Train,
    eval_fn: Evaluate,
    *,
    proxies: Mapping[str, Mapping[str, float]] | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> pd.DataFrame:
    """Rank filters by the model that their data induce, beside no filter and chance (step 7).

    Parameters
    ----------
    pool : Pairs or tuple (a, b)
    masks : mapping of str to array of bool, (n,)
        What each filter keeps.
    train_fn, eval_fn : callable
        As in :meth:`DataFilteringNetwork.induced_score`: one recipe, and as many pairs seen, for all.
    proxies : mapping of str to mapping of str to float, optional
        What else is known of a filter, its own accuracy for one: shown, never ranked by.
    random_state : int, RandomState or None
        Of the random set, which is as large as the first filter's.

    Returns
    -------
    DataFrame
        ``filter``, ``pairs``, the proxies, ``induced``; the best induced model first.

    Raises
    ------
    ValueError
        If there is no mask, or one is of another length or keeps nothing.

    Examples
    --------
    >>> pool = (np.array([[1.0], [2.0], [9.0], [9.0]]), np.zeros((4, 1)))
    >>> found = induced_benchmark(pool, {"small": [True, True, False, False]}, lambda kept: -kept.a.mean(), float)
    >>> found["filter"][0]
    'small'
    """
    everything = as_pairs(pool, "pool")
    if not masks:
        raise ValueError("masks is empty: give at least one filter's mask.")
    chosen = {name: marked(mask, len(everything), f"The mask of {name!r}") for name, mask in masks.items()}
    size = int(next(iter(chosen.values())).sum())
    random = np.zeros(len(everything), dtype=bool)
    random[np.random.default_rng(seed_from(random_state)).choice(len(everything), size, replace=False)] = True
    chosen = {**chosen, "no filter": np.ones(len(everything), dtype=bool), "random, same size": random}
    rows = []
    for name, mask in chosen.items():
        known = dict((proxies or {}).get(name, {}))
        induced = float(eval_fn(train_fn(everything.take(mask))))
        rows.append({"filter": name, "pairs": int(mask.sum()), **known, "induced": induced})
    found = pd.DataFrame(rows).sort_values("induced", ascending=False, kind="stable", ignore_index=True)
    return found[[*(column for column in found.columns if column != "induced"), "induced"]]
