"""NCD spectral clustering: known and novel rows share one spectral embedding, which the known labels can tune.

C. Troisemaine, A. Reiffers-Masson, S. Gosselin, V. Lemaire and S. Vaton, "A Practical Approach to Novel Class
Discovery in Tabular Data", Data Mining and Knowledge Discovery, 2024, arXiv:2311.05440.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from models.base import isolated_seed, seed_from
from models.clustering import spectral_embedding
from models.constrained_kmeans import margins
from models.discover.hidden_classes import Labels, Matrix, PartlyNamed, Tuned, estimate_n_novel, named, partly_named
from models.metrics import hungarian_accuracy
from models.registry import register
from models.validate.persistence import h0_persistence

SigmaRule = Literal["exact", "released"]
MOST_ROWS = 20_000
"""The affinity is dense: n^2 numbers of 8 bytes, and an eigendecomposition."""

# The steps ---------------------------------------------------------------------------------------------------------


def bandwidth(rows: Matrix, min_weight: float, rule: SigmaRule = "exact", edge_quantile: float = 1.0) -> float:
    """Steps 1 and 2: sigma, by the longest edge e of the minimum spanning tree.

    "exact": sigma^2 = -e^2 / (2 ln s), so that this edge weighs s; "released": sigma^2 = -e^2 / ln s, so that it
    weighs sqrt(s), as the authors' code has it and their values of s expect.

    Raises
    ------
    ValueError
        If the edge has no length: the rows are equal; or for a weight outside (0, 1).
    """
    if not 0 < min_weight < 1:
        raise ValueError(f"min_weight must lie in (0, 1), got {min_weight}.")
    edge = float(np.quantile(h0_persistence(rows), edge_quantile))
    if edge == 0.0:
        raise ValueError(
            f"The tree edge of X that sets the bandwidth has length 0: (almost) all {len(rows)} rows are equal. "
            "Give rows that differ, or a larger edge_quantile."
        )
    return math.sqrt(-(edge**2) / ((2.0 if rule == "exact" else 1.0) * math.log(min_weight)))


def gaussian_affinity(rows: Matrix, sigma: float) -> Matrix:
    """Step 2: A_ij = exp(-d_ij^2 / (2 sigma^2)), A_ii = 0."""
    affinity = np.exp(euclidean_distances(rows, squared=True) / (-2 * sigma**2))
    np.fill_diagonal(affinity, 0.0)
    return (affinity + affinity.T) / 2


def embed(rows: Matrix, affinity: Matrix, n_components: int) -> Matrix:
    """Steps 3 and 4: eigenvectors 2 to u + 1 of the Laplacian, (n, u); copies of a row get the same point.

    Those vectors in which copies differ say nothing of the rows. They come late, but they come where u nears n.
    """
    vectors = spectral_embedding(affinity, n_components, skip=1)
    _, place, copies = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(copies), n_components))
    np.add.at(sums, place, vectors)
    return (sums / copies[:, None])[place]


def known_accuracy(embedding: Matrix, table: PartlyNamed, n_init: int, seed: int) -> float:
    """Step 5: how well k-means finds the known classes again among the known rows of the embedding."""
    found = KMeans(len(table.classes), n_init=n_init, random_state=seed).fit(embedding[~table.novel]).labels_
    return hungarian_accuracy(table.labels[~table.novel], found)


@register(
    "ncd-spectral",
    stage="discover",
    summary="Groups the unnamed rows of a table in a spectral embedding that the named rows have tuned",
    paper="A Practical Approach to Novel Class Discovery in Tabular Data",
    year=2024,
    link="https://arxiv.org/abs/2311.05440",
    licence="MIT",
    accepts=("table", "embedding"),
)
class NCDSpectralClustering(BaseEstimator):
    """k-means of the novel rows in the spectral embedding of all rows.

    Parameters
    ----------
    n_novel : int, optional
        Novel classes; when None, estimated by the silhouettes of the novel rows as they are given.
    n_components : int, optional
        Eigenvectors, after the trivial one; as many as known and novel classes when None (at most n - 1).
    min_weight : float, default=0.6
        Weight s in (0, 1) that the bandwidth leaves to the longest edge of the minimum spanning tree.
    n_init : int, default=10
        Starts of k-means.
    kmeans_on : {"novel", "all"}, default="novel"
        "novel": as many centres as novel classes, on the novel rows. "all": a centre for every class, known or novel,
        on all rows, of which the novel ones are read off; they may then fall into any number of clusters.
    sigma_rule : {"exact", "released"}, default="exact"
        "released" makes the published values of s, which go with a weight of sqrt(s), mean the same here.
    edge_quantile : float, default=1.0
        The edge of the tree that sets the bandwidth, by the quantile of its length. One far outlier makes the longest
        edge, and with it the bandwidth, huge: 0.99 guards against that.
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : int array
        Known labels.
    n_novel_, n_clusters_ : int
        Novel classes found, and known and novel ones together.
    labels_ : int array, (n,)
        The known label, or ``classes_.max() + 1 + j`` for novel cluster j.
    sigma_ : float
        Bandwidth.
    embedding_ : array, (n, n_components)
    known_accuracy_ : float
        Accuracy with which k-means finds the known classes in the embedding: what :func:`tune_on_known_rows` maximises.
    confidences_ : array, (n,)
        (second - first) / second distance to the centres in the embedding; 1 for known rows.
    n_features_in_ : int

    Notes
    -----
    The embedding belongs to the rows it was made of: there is no ``predict``.

    References
    ----------
    Troisemaine et al., 2024, section on NCD spectral clustering; Laplacian of Ng, Jordan and Weiss, NeurIPS 2001, whose
    normalisation of rows is left out.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.concatenate([np.linspace(start, start + 1, 6) for start in (0, 4, 8, 12)])[:, None]
    >>> y = np.repeat([0, 1, -1, -1], 6)
    >>> found = NCDSpectralClustering(2, random_state=0).fit(X, y)
    >>> len(set(found.labels_[12:18])), len(set(found.labels_[12:])), found.known_accuracy_
    (1, 2, 1.0)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_novel": [Interval(Integral, 1, None, closed="left"), None],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "min_weight": [Interval(Real, 0, 1, closed="neither")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "kmeans_on": [StrOptions({"novel", "all"})],
        "sigma_rule": [StrOptions({"exact", "released"})],
        "edge_quantile": [Interval(Real, 0, 1, closed="right")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_novel: int | None = None,
        n_components: int | None = None,
        min_weight: float = 0.6,
        n_init: int = 10,
        kmeans_on: Literal["novel", "all"] = "novel",
        sigma_rule: SigmaRule = "exact",
        edge_quantile: float = 1.0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_novel = n_novel
        self.n_components = n_components
        self.min_weight = min_weight
        self.n_init = n_init
        self.kmeans_on = kmeans_on
        self.sigma_rule = sigma_rule
        self.edge_quantile = edge_quantile
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> NCDSpectralClustering:
        """Find the novel classes.

        Parameters
        ----------
        X : array, (n, d), at most 20,000 rows
        y : int array, (n,)
            Known classes, -1 = novel.

        Raises
        ------
        ValueError
            Without y, for NaN, no row labelled -1, fewer than two known classes, more novel classes than distinct
            novel rows, more eigenvectors than n - 1, equal rows, or too many of them.
        """
        self._validate_params()
        table = partly_named(self, X, y, self.n_novel)
        n = len(table.rows)
        check_size(n)
        random = check_random_state(self.random_state)
        self.classes_ = table.classes
        self.n_novel_ = self.n_novel or estimate_n_novel(table.rows[table.novel], random_state=random).n_clusters
        wanted = len(self.classes_) + self.n_novel_
        self.sigma_ = bandwidth(table.rows, self.min_weight, self.sigma_rule, self.edge_quantile)
        with isolated_seed(seed_from(random)) as seed:
            affinity = gaussian_affinity(table.rows, self.sigma_)
            self.embedding_ = embed(table.rows, affinity, self.n_components or min(wanted, n - 1))
            self.known_accuracy_ = known_accuracy(self.embedding_, table, self.n_init, seed)
            clusters, confidences = self._clusters(table, seed)
        self.n_novel_ = len(np.unique(clusters)) if self.kmeans_on == "all" else self.n_novel_
        self.n_clusters_ = len(self.classes_) + self.n_novel_
        self.labels_ = named(table, clusters)
        self.confidences_ = np.ones(n)
        self.confidences_[table.novel] = confidences
        return self

    def fit_predict(self, X: ArrayLike, y: ArrayLike | None = None) -> Labels:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def _clusters(self, table: PartlyNamed, seed: int) -> tuple[Labels, Matrix]:
        """Step 6: cluster 0, 1, ... of each novel row, and its margin."""
        novel = self.embedding_[table.novel]
        on_novel = self.kmeans_on == "novel"
        k = self.n_novel_ + (0 if on_novel else len(self.classes_))
        fitted = KMeans(k, n_init=self.n_init, random_state=seed).fit(novel if on_novel else self.embedding_)
        distances = euclidean_distances(novel, fitted.cluster_centers_)
        clusters = distances.argmin(axis=1)
        if not on_novel:
            clusters = np.unique(clusters, return_inverse=True)[1]
        return clusters, margins(distances)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def check_size(n: int) -> None:
    """Refuse more rows than a dense affinity allows."""
    if n > MOST_ROWS:
        raise ValueError(
            f"X holds {n} rows; the dense affinity allows {MOST_ROWS}. Draw a sample, or use NCDKMeans or PBN."
        )


def tune_on_known_rows(
    X: ArrayLike,
    y: ArrayLike,
    min_weights: Iterable[float] = (0.2, 0.4, 0.6, 0.8),
    n_components: Iterable[int] = (5, 10, 20, 40),
    sigma_rule: SigmaRule = "exact",
    n_init: int = 10,
    random_state: int | np.random.RandomState | None = None,
) -> Tuned:
    """Step 5: the weight and number of eigenvectors in whose embedding k-means finds the known classes best.

    Parameters
    ----------
    X : array, (n, d)
    y : int array, (n,)
        Known classes, -1 = novel.
    min_weights : iterable of float
    n_components : iterable of int
        Those that are not between 1 and n - 1 are left out.
    sigma_rule, n_init, random_state
        As in :class:`NCDSpectralClustering`.

    Returns
    -------
    Tuned
        ``best_params`` ("min_weight" and "n_components") and one row for each pair, with its "score".

    Raises
    ------
    ValueError
        As :meth:`NCDSpectralClustering.fit`, or if nothing is left to try.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.concatenate([np.linspace(start, start + 1, 6) for start in (0, 4, 8, 12)])[:, None]
    >>> found = tune_on_known_rows(X, np.repeat([0, 1, -1, -1], 6), (0.3, 0.6), (2, 3), random_state=0)
    >>> sorted(found.best_params), len(found.trials)
    (['min_weight', 'n_components'], 4)
    """
    table = partly_named(NCDSpectralClustering(), X, y, None)
    check_size(len(table.rows))
    weights = list(min_weights)
    counts = sorted({count for count in n_components if 1 <= count < len(table.rows)})
    if not weights or not counts:
        raise ValueError(
            f"Nothing to try: give at least one of min_weights and, with {len(table.rows)} rows, one of n_components "
            f"between 1 and {len(table.rows) - 1}."
        )
    trials: list[dict[str, Any]] = []
    with isolated_seed(random_state) as seed:
        for weight in weights:
            affinity = gaussian_affinity(table.rows, bandwidth(table.rows, weight, sigma_rule))
            embedding = embed(table.rows, affinity, counts[-1])
            for count in counts:
                score = known_accuracy(embedding[:, :count], table, n_init, seed)
                trials.append({"min_weight": weight, "n_components": count, "score": score})
    best = max(trials, key=lambda trial: trial["score"])
    return Tuned({name: best[name] for name in ("min_weight", "n_components")}, trials)
