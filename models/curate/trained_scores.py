"""How hard each row is for a network trained for a moment: margin, EL2N, GraNd and forgetting events.

Papers stand beside the classes; defaults follow C. Guo, B. Zhao and Y. Bai, "DeepCore: A Comprehensive Library for
Coreset Selection in Deep Learning", DEXA 2022, arXiv:2204.08499. All four keep the hardest rows, which at small budgets
is worse than chance (Guo et al., 2022, section 4): they are here to be compared with.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from models.base import check_labels, isolated_seed, predict_in_batches
from models.registry import register
from models.selection import BUDGET, Budget, Selector, kept_rows
from models.supervised import ClassifierSpec, make_classifier
from models.training import ClassifierTrainer, Row, cosine, sgd
from models.unlearn.split import stack_inputs

Floats = NDArray[np.float64]
MEASURED_ELSEWHERE = "baselines are measured beside the methods that have to beat them"


def margins(probabilities: ArrayLike) -> Floats:
    """Likeliest minus second likeliest probability of each row (n, K)."""
    ranked = np.sort(np.asarray(probabilities, dtype=np.float64), axis=1)
    return ranked[:, -1] - ranked[:, -2]


def el2n(probabilities: ArrayLike, y: NDArray[np.int64]) -> Floats:
    """L2 norm of the error: ||p - onehot(y)|| of each row (Paul et al., 2021, definition 2.3)."""
    error = np.array(probabilities, dtype=np.float64)
    error[np.arange(len(error)), y] -= 1
    return np.linalg.norm(error, axis=1)


def gradient_norms(network: nn.Module, X: Tensor, y: Tensor, batch_size: int = 64) -> Floats:
    """L2 norm of the gradient of each row's cross-entropy in all weights (Paul et al., 2021, definition 2.1)."""
    network.eval()
    weights = {name: value.detach() for name, value in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(weights: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, (weights, buffers), (x[None],)), target[None])

    of_each = vmap(grad(loss), in_dims=(None, 0, 0))
    norms = []
    for x, target in zip(X.split(batch_size), y.split(batch_size), strict=True):
        parts = [torch.linalg.vector_norm(part.flatten(1), dim=1) for part in of_each(weights, x, target).values()]
        norms.append(torch.linalg.vector_norm(torch.stack(parts).double(), dim=0).cpu())
    return torch.cat(norms).numpy()


class _Trained(Selector):
    """Shared by the scores of trained networks: the mean over `n_models` short trainings; the hardest rows are kept."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "budget": BUDGET,
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "n_models": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }
    trainer: ClassVar[type[ClassifierTrainer]] = ClassifierTrainer
    needs_every_label: ClassVar[bool] = True

    def __init__(
        self,
        budget: Budget = 0.1,
        model: ClassifierSpec = None,
        epochs: int = 10,
        n_models: int = 10,
        lr: float = 0.1,
        batch_size: int = 128,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.budget = budget
        self.model = model
        self.epochs = epochs
        self.n_models = n_models
        self.lr = lr
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> Any:
        """Train, score every row, and keep the hardest.

        Parameters
        ----------
        X : array or tensor, (n, ...)
        y : array of int, (n,)

        Raises
        ------
        ValueError
            For no rows, NaN or infinite entries, no labels, fewer than two classes, a budget of 0 or above the data,
            a model that does not take the rows, or scores that are not finite.
        """
        self._validate_params()
        rows = stack_inputs(X)
        keep = kept_rows(self.budget, len(rows))
        if y is None:
            raise ValueError(f"y must give the labels that {type(self).__name__} trains with, got None.")
        labels = check_labels(y, len(rows), allow_unlabelled=not self.needs_every_label)
        classes = np.unique(labels[labels >= 0])
        targets = torch.from_numpy(np.where(labels >= 0, np.searchsorted(classes, labels), -1))
        total = np.zeros(len(rows))
        with isolated_seed(self.random_state) as seed:
            for number in range(self.n_models):
                network = make_classifier(self.model, tuple(rows.shape[1:]), len(classes))
                trainer = self.trainer(
                    network,
                    epochs=self.epochs,
                    batch_size=self.batch_size,
                    optimizer=sgd(self.lr, 0.9, 5e-4, nesterov=True),
                    schedule=cosine,
                    label=type(self).__name__.lower(),
                    seed=seed + number,
                    device=self.device,
                )
                trainer.fit(rows, targets)
                total += self.judge(trainer, rows, targets) / self.n_models
        return self._keep_top(total, keep)

    def judge(self, trainer: Any, rows: Tensor, targets: Tensor) -> Floats:
        """Score of each row (n,), larger for harder ones, by a trained network."""
        raise NotImplementedError(f"{type(self).__name__} must score the rows: override judge.")


def _probabilities(trainer: ClassifierTrainer, rows: Tensor) -> NDArray[np.float32]:
    return predict_in_batches(trainer.plain_network, rows, device=trainer.device).softmax(dim=1).numpy()


TRAINED: dict[str, Any] = {
    "stage": "curate",
    "accepts": ("image", "table", "embedding"),
    "skips_checks": {"tested_and_measured": MEASURED_ELSEWHERE},
}
PLACE = {
    "goal": "diversification",
    "unit": "data point",
    "mechanism": "ranking by a trained network",
    "stage_of_training": "supervised training",
}


@register(
    "margin",
    summary="Keeps the rows between whose two likeliest classes a briefly trained network hesitates.",
    paper="Selection via Proxy: Efficient Data Selection for Deep Learning",
    year=2020,
    link="https://arxiv.org/abs/1906.11829",
    licence="Apache-2.0",
    taxonomy={**PLACE, "utility": "gap between the two likeliest classes"},
    **TRAINED,
)
class Margin(_Trained):
    """Keep the rows of the smallest margin between the two likeliest classes.

    Unlabelled rows (-1) are scored too.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep: the hardest.
    model : callable or nn.Module, optional
        Makes the network (rows -> logits); a module is copied, weights included. None is a network of two hidden
        layers of 256 units.
    epochs : int, default=10
    n_models : int, default=10
        Trainings the scores are averaged over.
    lr : float, default=0.1
        Of SGD with Nesterov momentum 0.9, weight decay 5e-4 and a cosine schedule.
    batch_size : int, default=128
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    scores_ : array of float64, (n,)
        1 minus the margin.
    indices_ : array of int64, (kept,)

    References
    ----------
    C. Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning", ICLR 2020, section 3.1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> Margin(50, epochs=1, n_models=1, random_state=0).fit(X[:200] / 16, y[:200]).indices_.shape
    (50,)
    """

    needs_every_label: ClassVar[bool] = False

    def judge(self, trainer: Any, rows: Tensor, targets: Tensor) -> Floats:
        """1 minus the margin."""
        return 1 - margins(_probabilities(trainer, rows))


@register(
    "el2n",
    summary="Keeps the rows that briefly trained networks still get most wrong.",
    paper="Deep Learning on a Data Diet: Finding Important Examples Early in Training",
    year=2021,
    link="https://arxiv.org/abs/2107.07075",
    licence="Apache-2.0",
    taxonomy={**PLACE, "utility": "norm of the error early in training"},
    **TRAINED,
)
class EL2N(_Trained):
    """Keep the rows of the largest error ||p - onehot(y)|| early in training.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep: the hardest.
    model : callable or nn.Module, optional
        Makes the network (rows -> logits); a module is copied, weights included. None is a network of two hidden
        layers of 256 units.
    epochs : int, default=10
    n_models : int, default=10
        Trainings the scores are averaged over.
    lr : float, default=0.1
        Of SGD with Nesterov momentum 0.9, weight decay 5e-4 and a cosine schedule.
    batch_size : int, default=128
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Mean error over the models, in [0, sqrt(2)].
    indices_ : array of int64, (kept,)

    References
    ----------
    M. Paul, S. Ganguli and G. K. Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021, definition 2.3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> EL2N(50, epochs=1, n_models=1, random_state=0).fit(X[:200] / 16, y[:200]).indices_.shape
    (50,)
    """

    def judge(self, trainer: Any, rows: Tensor, targets: Tensor) -> Floats:
        """Length of the error."""
        return el2n(_probabilities(trainer, rows), targets.numpy())


@register(
    "grand",
    summary="Keeps the rows that would move the weights of briefly trained networks most.",
    paper="Deep Learning on a Data Diet: Finding Important Examples Early in Training",
    year=2021,
    link="https://arxiv.org/abs/2107.07075",
    licence="Apache-2.0",
    taxonomy={**PLACE, "utility": "norm of the gradient early in training"},
    **TRAINED,
)
class GraNd(_Trained):
    """Keep the rows of the largest gradient of the loss in all weights, early in training.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep: the hardest.
    model : callable or nn.Module, optional
        Makes the network (rows -> logits); a module is copied, weights included. None is a network of two hidden
        layers of 256 units.
    epochs : int, default=10
    n_models : int, default=10
        Trainings the scores are averaged over.
    lr : float, default=0.1
        Of SGD with Nesterov momentum 0.9, weight decay 5e-4 and a cosine schedule.
    batch_size : int, default=128
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Mean norm over the models.
    indices_ : array of int64, (kept,)

    References
    ----------
    M. Paul, S. Ganguli and G. K. Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021, definition 2.1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> GraNd(50, epochs=1, n_models=1, random_state=0).fit(X[:200] / 16, y[:200]).indices_.shape
    (50,)
    """

    def judge(self, trainer: Any, rows: Tensor, targets: Tensor) -> Floats:
        """Length of the gradient."""
        device = trainer.device
        return gradient_norms(trainer.plain_network.to(device), rows.to(device), targets.to(device))


class ForgettingTrainer(ClassifierTrainer):
    """Counts how often each row, right when it was last trained on, is wrong now."""

    def prepare(self, *tensors: Tensor) -> None:
        """Nothing has been learned yet."""
        n = len(tensors[0])
        self.was_right, self.learned, self.events = torch.zeros(n), torch.zeros(n), torch.zeros(n)
        super().prepare(*tensors)

    def row_state(self) -> list[tuple[Tensor, int]]:
        """What is kept of each row."""
        return [(self.was_right, 0), (self.learned, 0), (self.events, 0)]

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Cross-entropy; the batch's predictions before the step are what is counted."""
        x, y = batch
        logits = self.network(x)
        right = (logits.argmax(1) == y).float().cpu()
        self.events[index] += self.was_right[index] * (1 - right)
        self.learned[index] = torch.maximum(self.learned[index], right)
        self.was_right[index] = right
        return self.criterion(logits, y), {"train_accuracy": float(right.mean())}


@register(
    "forgetting",
    summary="Keeps the rows that a network forgets most often while it trains, and those it never learns.",
    paper="An Empirical Study of Example Forgetting during Deep Neural Network Learning",
    year=2019,
    link="https://arxiv.org/abs/1812.05159",
    licence="MIT",
    taxonomy={**PLACE, "utility": "times forgotten during training"},
    **TRAINED,
)
class Forgetting(_Trained):
    """Keep the rows of most forgetting events.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep: the hardest.
    model : callable or nn.Module, optional
        Makes the network (rows -> logits); a module is copied, weights included. None is a network of two hidden
        layers of 256 units.
    epochs : int, default=200
    n_models : int, default=1
        Trainings the scores are averaged over.
    lr : float, default=0.1
        Of SGD with Nesterov momentum 0.9, weight decay 5e-4 and a cosine schedule.
    batch_size : int, default=128
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Mean number of events; a row that was never right counts as `epochs`, more than can happen to any other.
    indices_ : array of int64, (kept,)

    References
    ----------
    M. Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019,
    algorithm 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> Forgetting(50, epochs=2, random_state=0).fit(X[:200] / 16, y[:200]).indices_.shape
    (50,)
    """

    trainer: ClassVar[type[ClassifierTrainer]] = ForgettingTrainer

    def __init__(
        self,
        budget: Budget = 0.1,
        model: ClassifierSpec = None,
        epochs: int = 200,
        n_models: int = 1,
        lr: float = 0.1,
        batch_size: int = 128,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(budget, model, epochs, n_models, lr, batch_size, device, random_state)

    def judge(self, trainer: Any, rows: Tensor, targets: Tensor) -> Floats:
        """Events, or `epochs` where nothing was learned."""
        return torch.where(trainer.learned > 0, trainer.events, float(self.epochs)).double().numpy()
