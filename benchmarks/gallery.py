"""Pictures of what each discover method does on the same 2-D data, for the documentation.

python -m benchmarks.gallery docs/img [METHOD ...]     discover-METHOD.png for each, baselines included
"""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import cluster, datasets, mixture
from sklearn.preprocessing import StandardScaler

from models.registry import list_methods
from tasks.discover import Case, fit_case
from tasks.figures import PALETTE
from tasks.rowset import Rowset

ROWS = 300
PARAMETERS: dict[str, dict[str, Any]] = {
    "ppp": {"k_range": range(2, 6)},
    "ila-sdp": {"solver": "low-rank", "n_init": 1},
    "tell": {"epochs": 30, "batch_size": 64, "warmup_epochs": 10, "center_init": "kmeans"},
    "mlc": {"tcr_epochs": 10, "epochs": 10, "batch_size": 150, "feature_dim": 16, "eta": 0.3},
    "sp2ot": {"epochs": 10, "batch_size": 150},
    "gcd-gmm": {"psi_scale": "within", "normalize": False},
    "gcd-gpc": {"epochs": 5},
}
"""Fewer epochs than the published defaults, which are for tens of thousands of images."""
NOVEL_ONLY = ("ncd-k-means", "ncd-spectral", "tabular-ncd")
"""They take every row without a label for one of a new class."""
BASELINES: dict[str, Callable[[int], Any]] = {
    "k-means": lambda k: cluster.KMeans(k, n_init=10, random_state=0),
    "Gaussian mixture": lambda k: mixture.GaussianMixture(k, random_state=0),
    "HDBSCAN": lambda k: cluster.HDBSCAN(min_cluster_size=15, copy=True),
    "spectral": lambda k: cluster.SpectralClustering(k, affinity="nearest_neighbors", random_state=0),
}


def shapes() -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """The data: points and the groups they were drawn from."""
    blobs, of_blobs = datasets.make_blobs(ROWS, random_state=170)
    stretched = blobs @ np.array([[0.6, -0.6], [-0.4, 0.8]])
    found = {
        "rings": datasets.make_circles(ROWS, factor=0.5, noise=0.05, random_state=30),
        "moons": datasets.make_moons(ROWS, noise=0.05, random_state=30),
        "unequal spread": datasets.make_blobs(ROWS, cluster_std=[1.0, 2.5, 0.5], random_state=170),
        "stretched": (stretched, of_blobs),
        "blobs": datasets.make_blobs(ROWS, random_state=8),
        "one cloud": (np.random.default_rng(30).random((ROWS, 2)), np.zeros(ROWS, dtype=np.int64)),
    }
    return {name: (StandardScaler().fit_transform(X), np.asarray(y)) for name, (X, y) in found.items()}


def rows_for(X: NDArray[np.float64], y: NDArray[np.int64]) -> Rowset:
    """What a method sees: half of the rows of all groups but the last are labelled, for methods that ask for labels."""
    rng = np.random.default_rng(0)
    known = np.where((y < max(y.max(), 1)) & (rng.random(len(y)) < 0.5), y, -1)
    sources = max(int(y.max()) + 1, 2)  # three quarters of a group's rows come from one source, the rest from any
    domains = np.where(rng.random(len(y)) < 0.75, y, rng.integers(0, sources, len(y)))
    return Rowset(X, None, known.astype(np.int64), np.unique(domains, return_inverse=True)[1].astype(np.int64))


def novel_rows(X: NDArray[np.float64]) -> Rowset:
    """Every row of the data is of a class without a name; two groups of named classes lie beside them."""
    beside, named = datasets.make_blobs(ROWS // 2, centers=[(3.5, 3.5), (3.5, -3.5)], cluster_std=0.3, random_state=0)
    labels = np.concatenate([np.full(len(X), -1), named]).astype(np.int64)
    return Rowset(np.concatenate([X, beside]), None, labels, np.zeros(len(labels), dtype=np.int64))


def groups(name: str, X: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels that a method or baseline gives."""
    k = max(int(y.max()) + 1, 2)
    if name in BASELINES:
        return np.asarray(BASELINES[name](k).fit_predict(X), dtype=np.int64)
    if name in NOVEL_ONLY:
        labels = fit_case(Case(name, novel_rows(X), k + 2, 0, PARAMETERS.get(name, {}))).labels
        return np.unique(labels[: len(X)], return_inverse=True)[1]
    return fit_case(Case(name, rows_for(X, y), k, 0, PARAMETERS.get(name, {}))).labels


def picture(name: str, target: Path) -> None:
    """One row of panels, one a data set."""
    from matplotlib.figure import Figure

    data = shapes()
    figure = Figure(figsize=(2.0 * len(data), 2.3))
    for axis, (title, (X, y)) in zip(figure.subplots(1, len(data)), data.items(), strict=True):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(title, fontsize=9)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = groups(name, X, y)
        except ValueError as error:
            said = textwrap.fill(str(error).split(". ")[0], 22)
            axis.text(0.5, 0.5, said, fontsize=7, ha="center", va="center", transform=axis.transAxes)
            continue
        colours = ["#bbbbbb" if group < 0 else PALETTE[int(group) % 10] for group in found]
        axis.scatter(X[:, 0], X[:, 1], s=5, c=colours)
        axis.set_xlabel(f"{len(np.unique(found[found >= 0]))} groups", fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(target / f"discover-{name.lower().replace(' ', '-')}.png", dpi=90)


def main(target: Path, names: list[str]) -> None:
    """Draw the methods named, or all of them and the baselines."""
    for name in names or [*(card.name for card in list_methods("discover")), *BASELINES]:
        picture(name, target)
        print(f"discover-{name.lower().replace(' ', '-')}.png", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
