"""LAF: edit a trained classifier so that its features no longer carry given samples, without any label.

Shen, S., Zhang, C., Zhao, Y., Bialkowski, A., Chen, W., Xu, M. "Label-Agnostic Forgetting: A
Supervision-Free Unlearning in Deep Models". ICLR 2024, arXiv 2404.00506.

Two variational autoencoders describe the original embeddings: one those of all data, one those of the
samples to forget. The extractor is then moved, batch by batch, to fit the first and leave the second,
and after each such step its embeddings of the remaining samples are drawn back to the original ones.
The head is not touched; a short repair on a few labelled samples may follow.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import check_labels, isolated_seed, predict_in_batches
from models.distributed import portion
from models.networks.vae import VAE, fit_vae, squared_error
from models.registry import register
from models.training import Row, Trainer, adam
from models.unlearn.baselines import fine_tune
from models.unlearn.split import Inputs, SplitView, check_split, joined, stack_inputs


def squashed(s: Tensor, form: str = "rational") -> Tensor:
    """rho(s): ``exp(s / (s + 1))``, between 1 and e, for "rational"; s itself for "plain".

    Written as ``exp(1 - 1 / (s + 1))``, which also holds at infinity.
    """
    return torch.exp(1 - 1 / (s + 1)) if form == "rational" else s


def unlearning_loss(remain: Tensor, forget: Tensor, form: str = "rational") -> Tensor:
    """L_UE, the extractor unlearning loss: sum of rho(s) over the remaining batch minus that over the forget batch.

    Parameters
    ----------
    remain, forget : Tensor, (B_r,) and (B_f,)
        Squared distances s(x; v) = ||v(g(x)) - g(x)||^2 to the reconstruction by the remaining VAE h and by the
        forget VAE h_f.
    form : {"rational", "plain"}
    """
    return squashed(remain, form).sum() - squashed(forget, form).sum()


def drift(embeddings: Tensor, original: Tensor) -> Tensor:
    """d(x) = 1 - cos(g(x), g0(x)), (B, d) x 2 -> (B,): 0 where the extractor has not turned the embedding."""
    return 1 - F.cosine_similarity(embeddings, original, dim=1)


def alignment_loss(remain: Tensor, forget: Tensor, temperature: float) -> Tensor:
    """L_RA, the representation alignment loss: sum_r log(exp(d_r) / sum_f exp(d_f / tau)).

    Parameters
    ----------
    remain, forget : Tensor, (B_r,) and (B_f,)
        The drifts d. The temperature divides the forget side only.
    temperature : float
    """
    return remain.sum() - len(remain) * torch.logsumexp(forget / temperature, dim=0)


class _AlternatingTrainer(Trainer):
    """Walk pairs of batches; unlearn, then align, each with its own Adam over the same parameters.

    ``fit`` takes X_f, X_r and their original embeddings. An index counts through X_f first, then X_r.
    """

    def __init__(self, network: SplitView, *, method: LabelAgnosticForgetting, vaes: tuple[VAE, VAE], **rest: Any):
        super().__init__(network, optimizer=adam(method.lr_unlearn), **rest)
        self.method, self.vaes = method, vaes

    def configure(self) -> None:
        """Two optimisers on one network."""
        optimizers = [adam(rate)(self.plain_network) for rate in (self.method.lr_unlearn, self.method.lr_align)]
        self.network, self.optimizer, self.align_optimizer = self.fabric.setup(self.plain_network, *optimizers)
        self.network.mark_forward_method("features")

    def iterate(self, epoch: int, counting: bool = False) -> Iterator[Tensor]:
        """Shuffled pairs of batches up to the end of the shorter side; short last batches are kept."""
        n_forget, n_remain = len(self.tensors[0]), len(self.tensors[1])
        sides = []
        for n in (n_forget, n_remain):
            order = torch.arange(n) if counting else torch.randperm(n, generator=self.generator)
            sides.append(order.split(self.batch_size))
        for forget, remain in zip(*sides, strict=False):
            yield torch.cat([forget, remain + n_forget])

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """x_f, x_r, g0(x_f), g0(x_r)."""
        n_forget = len(self.tensors[0])
        forget, remain = index[index < n_forget], index[index >= n_forget] - n_forget
        rows = (forget, remain, forget, remain)
        return tuple(tensor[i].to(self.device) for tensor, i in zip(self.tensors, rows, strict=True))

    def divide(self, index: Tensor) -> Tensor:
        """Each side of the pair is divided by itself; none is taken of a side too short for all."""
        n_forget = len(self.tensors[0])
        sides = portion(index[index < n_forget]), portion(index[index >= n_forget])
        return torch.cat(sides) if all(map(len, sides)) else index[:0]

    def train_step(self, batch: tuple[Tensor, ...], index: Tensor) -> Row:
        """One unlearning step, then one alignment step on fresh embeddings."""
        unlearn = self.loss_of(self.unlearning, *batch[:2])
        self._descend(self.optimizer, unlearn)
        align = self.loss_of(self.alignment, *batch)
        self._descend(self.align_optimizer, align)
        terms = {"loss_unlearn": float(unlearn.detach()), "loss_align": float(align.detach())}
        return {"loss": sum(terms.values()), **terms}

    def unlearning(self, x_forget: Tensor, x_remain: Tensor) -> Tensor:
        """L_UE of a pair of batches."""
        remain_vae, forget_vae = self.vaes
        g_forget, g_remain = self.network.features(x_forget), self.network.features(x_remain)
        s_remain = squared_error(remain_vae(g_remain)[0], g_remain)
        s_forget = squared_error(forget_vae(g_forget)[0], g_forget)
        return unlearning_loss(s_remain, s_forget, self.method.squash)

    def alignment(self, x_forget: Tensor, x_remain: Tensor, original_forget: Tensor, original_remain: Tensor) -> Tensor:
        """L_RA of a pair of batches and their original embeddings."""
        g_forget, g_remain = self.network.features(x_forget), self.network.features(x_remain)
        d_remain, d_forget = drift(g_remain, original_remain), drift(g_forget, original_forget)
        return alignment_loss(d_remain, d_forget, self.method.temperature)

    def after_epoch(self, row: Row) -> None:
        """Say how far it is, when asked to."""
        if self.method.verbose:
            print(f"epoch {self.epoch + 1}: L_UE {row['loss_unlearn']:.4f}, L_RA {row['loss_align']:.4f}", flush=True)

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        optimizer.step()


@register(
    "laf",
    stage="unlearn",
    summary="Removes samples from a trained classifier's features without any label; optional short repair",
    paper="Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models",
    year=2024,
    link="https://arxiv.org/abs/2404.00506",
    licence="MIT",
    accepts=("image", "table", "embedding"),
    skips_checks={"one_class": "labels only serve the repair, which may be of one class"},
)
class LabelAgnosticForgetting(BaseEstimator):
    """Label-agnostic forgetting of samples by a trained classifier.

    Parameters
    ----------
    model : nn.Module, optional
        The trained classifier: with ``features`` and ``head`` (as ``SplitClassifier``), or returning
        (logits, embedding). It is never changed.
    extractor, head : nn.Module, optional
        The same in two parts, X -> (n, d) and (n, d) -> (n, K), instead of `model`.
    latent_dim : int
        Width of the VAEs' code; published: 8 for small networks, 16 for ResNet-18.
    vae_hidden : tuple of int
    vae_epochs, vae_lr, vae_kl_weight
        Training of both VAEs with Adam.
    vae_sigmoid : bool
        End the VAEs' decoder with a sigmoid as the published code does. Embeddings are not bounded to [0, 1],
        so the distances then saturate.
    epochs : int
        Passes over the shorter of the two sets; published: 20 for small networks, 40 for ResNet-18.
    lr_unlearn, lr_align : float
        Adam's rates of the two alternating steps; published: 5e-5 and 1e-4 for small networks, 1e-5 and 4e-5
        (5e-5 to remove a class) for ResNet-18. 0 switches a step off.
    temperature : float
        tau, dividing the forget side of the alignment loss; published: 20, but 5 for random samples with small
        networks and for noisy labels with ResNet-18.
    batch_size : int
        Of each side.
    remain_vae_data : {"all", "remain"}
        What the remaining VAE is fitted on: everything (published) or X_remain alone.
    squash : {"rational", "plain"}
        Form of rho, see :func:`squashed`.
    repair_epochs : int
        Epochs of cross-entropy on the labelled part of X_repair; 0 = none, and no label is needed.
    repair_lr : float
    repair_scope : {"all", "head"}
        Which parameters repair moves.
    freeze_batch_norm : bool
        Edit in eval mode: batch-normalisation statistics stay and dropout is off. False trains as the published
        code does, where the statistics drift with the samples to forget.
    device : str
    random_state : int, RandomState or None
        Of VAE initialisation, shuffling and VAE noise.
    verbose : int
        Print the two losses after each epoch.

    Attributes
    ----------
    model_ : nn.Module
        The edited classifier, in the form it was given (extractor and head joined), in eval mode.
    teacher_ : nn.Module
        The frozen original.
    vae_remain_, vae_forget_ : VAE
    history_ : list of dict
        Per epoch the means over steps of "loss_unlearn" and "loss_align".
    n_iter_ : int
        Pairs of batches walked.
    n_classes_ : int
    fit_seconds_ : float

    Notes
    -----
    The cost follows the forget set: ``epochs * min(|X_f|, |X_r|) / batch_size`` steps, after one embedding pass
    over everything and two small VAEs. Spread over several machines, the log-sum-exp runs over each machine's
    own forget batch. An accuracy of 0 on removed samples is not the aim unless retraining gives that too:
    compare with ``models.unlearn.report.unlearning_report``.

    References
    ----------
    Shen et al., ICLR 2024, arXiv 2404.00506: extractor unlearning loss L_UE, representation alignment loss L_RA
    and the algorithm that alternates them.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> extractor, head = nn.Linear(4, 8), nn.Linear(8, 3)
    >>> X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    >>> laf = LabelAgnosticForgetting(extractor=extractor, head=head, epochs=2, vae_epochs=1, random_state=0)
    >>> laf.fit(X[:20], X[20:]).predict(X).shape
    (60,)
    """

    _parameter_constraints = {  # noqa: RUF012
        "model": [nn.Module, None],
        "extractor": [nn.Module, None],
        "head": [nn.Module, None],
        "latent_dim": [Interval(Integral, 1, None, closed="left")],
        "vae_hidden": [tuple, list],
        "vae_epochs": [Interval(Integral, 0, None, closed="left")],
        "vae_lr": [Interval(Real, 0, None, closed="neither")],
        "vae_kl_weight": [Interval(Real, 0, None, closed="left")],
        "vae_sigmoid": ["boolean"],
        "epochs": [Interval(Integral, 0, None, closed="left")],
        "lr_unlearn": [Interval(Real, 0, None, closed="left")],
        "lr_align": [Interval(Real, 0, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "remain_vae_data": [StrOptions({"all", "remain"})],
        "squash": [StrOptions({"rational", "plain"})],
        "repair_epochs": [Interval(Integral, 0, None, closed="left")],
        "repair_lr": [Interval(Real, 0, None, closed="neither")],
        "repair_scope": [StrOptions({"all", "head"})],
        "freeze_batch_norm": ["boolean"],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model: nn.Module | None = None,
        extractor: nn.Module | None = None,
        head: nn.Module | None = None,
        latent_dim: int = 8,
        vae_hidden: tuple[int, ...] = (128, 32),
        vae_epochs: int = 10,
        vae_lr: float = 1e-3,
        vae_kl_weight: float = 0.025,
        vae_sigmoid: bool = False,
        epochs: int = 20,
        lr_unlearn: float = 5e-5,
        lr_align: float = 1e-4,
        temperature: float = 20.0,
        batch_size: int = 32,
        remain_vae_data: str = "all",
        squash: str = "rational",
        repair_epochs: int = 0,
        repair_lr: float = 1e-4,
        repair_scope: str = "all",
        freeze_batch_norm: bool = True,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.extractor = extractor
        self.head = head
        self.latent_dim = latent_dim
        self.vae_hidden = vae_hidden
        self.vae_epochs = vae_epochs
        self.vae_lr = vae_lr
        self.vae_kl_weight = vae_kl_weight
        self.vae_sigmoid = vae_sigmoid
        self.epochs = epochs
        self.lr_unlearn = lr_unlearn
        self.lr_align = lr_align
        self.temperature = temperature
        self.batch_size = batch_size
        self.remain_vae_data = remain_vae_data
        self.squash = squash
        self.repair_epochs = repair_epochs
        self.repair_lr = repair_lr
        self.repair_scope = repair_scope
        self.freeze_batch_norm = freeze_batch_norm
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X_forget: Inputs,
        X_remain: Inputs,
        X_repair: Inputs | None = None,
        y_repair: ArrayLike | Tensor | None = None,
    ) -> LabelAgnosticForgetting:
        """Edit a copy of the classifier so that it forgets `X_forget`.

        Parameters
        ----------
        X_forget, X_remain : array, tensor, Dataset or DataLoader, (n_f, ...) and (n_r, ...)
            No labels; of a data set's tuples only the first entry is read.
        X_repair : as above, (m, ...), optional
            Read only when ``repair_epochs > 0``.
        y_repair : array, (m,), optional
            -1 = unlabelled, ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a classifier that can not be split, embeddings that are not (n, d), empty or non-finite inputs,
            or a repair without any label.
        """
        self._validate_params()
        started = time.perf_counter()
        original = joined(self.model, self.extractor, self.head)
        remain = stack_inputs(X_remain, name="X_remain")
        forget = stack_inputs(X_forget, name="X_forget", shape=tuple(remain.shape[1:]))
        with isolated_seed(self.random_state) as seed:
            self.teacher_ = copy.deepcopy(original).to(self.device).eval().requires_grad_(False)
            self.input_shape_ = tuple(remain.shape[1:])
            self.n_classes_ = check_split(SplitView(self.teacher_), remain[:2].to(self.device))
            repair = self._repair_rows(X_repair, y_repair)
            student = SplitView(copy.deepcopy(original).to(self.device), frozen=self.freeze_batch_norm)
            self._forget(student, forget, remain, seed)
            self.model_ = student.network
            if repair is not None:
                self._repair(*repair, seed)
        self.fit_seconds_ = time.perf_counter() - started
        return self

    def predict(self, X: Inputs) -> NDArray[np.int64]:
        """Classes (n,) by the edited classifier."""
        return self.predict_proba(X).argmax(axis=1).astype(np.int64)

    def predict_proba(self, X: Inputs) -> NDArray[np.float32]:
        """Softmax outputs (n, K) of the edited classifier."""
        check_is_fitted(self, "model_")
        logits = predict_in_batches(SplitView(self.model_), self._rows(X), device=self.device)
        return F.softmax(logits, dim=1).numpy()

    def transform(self, X: Inputs) -> NDArray[np.float32]:
        """Embeddings (n, d) by the edited extractor."""
        check_is_fitted(self, "model_")
        return predict_in_batches(SplitView(self.model_).features, self._rows(X), device=self.device).numpy()

    # ---- steps -----------------------------------------------------------------------------------------

    def _forget(self, student: SplitView, forget: Tensor, remain: Tensor, seed: int) -> None:
        """Fit both VAEs on the original embeddings, then alternate the two steps."""
        teacher = SplitView(self.teacher_)
        e_forget, e_remain = (predict_in_batches(teacher.features, x, device=self.device) for x in (forget, remain))
        everything = e_remain if self.remain_vae_data == "remain" else torch.cat([e_remain, e_forget])
        self.vae_remain_ = self._vae(everything, "remaining VAE", seed)
        self.vae_forget_ = self._vae(e_forget, "forget VAE", seed)
        trainer = _AlternatingTrainer(
            student,
            method=self,
            vaes=(self.vae_remain_, self.vae_forget_),
            epochs=self.epochs,
            batch_size=self.batch_size,
            label="forget",
            seed=seed,
            device=self.device,
        )
        trainer.fit(forget, remain, e_forget, e_remain)
        student.zero_grad(set_to_none=True)
        self.history_, self.n_iter_ = trainer.history, trainer.step

    def _vae(self, embeddings: Tensor, label: str, seed: int) -> VAE:
        return fit_vae(
            embeddings,
            latent_dim=self.latent_dim,
            hidden=self.vae_hidden,
            sigmoid=self.vae_sigmoid,
            kl_weight=self.vae_kl_weight,
            epochs=self.vae_epochs,
            lr=self.vae_lr,
            batch_size=self.batch_size,
            label=label,
            seed=seed,
            device=self.device,
        )

    def _repair_rows(self, X: Inputs | None, y: ArrayLike | Tensor | None) -> tuple[Tensor, NDArray[np.int64]] | None:
        """What repair trains on, checked before any work; None when no repair is asked for."""
        if self.repair_epochs == 0:
            return None
        if X is None or y is None:
            raise ValueError(
                f"repair_epochs={self.repair_epochs} needs X_repair and y_repair with at least one label >= 0; "
                "pass them, or set repair_epochs=0 to forget without labels."
            )
        rows = stack_inputs(X, name="X_repair", shape=self.input_shape_)
        return rows, check_labels(y, len(rows), n_classes=self.n_classes_, minimum_classes=1, name="y_repair")

    def _repair(self, rows: Tensor, labels: NDArray[np.int64], seed: int) -> None:
        """LAF+R: cross-entropy on the labelled part."""
        self.model_ = fine_tune(
            self.model_,
            rows,
            labels,
            epochs=self.repair_epochs,
            lr=self.repair_lr,
            batch_size=self.batch_size,
            scope=self.repair_scope,
            freeze_batch_norm=self.freeze_batch_norm,
            random_state=seed,
            device=self.device,
        )

    def _rows(self, X: Inputs) -> Tensor:
        return stack_inputs(X, shape=self.input_shape_)


LAF = LabelAgnosticForgetting
