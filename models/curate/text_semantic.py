"""Near duplicates by meaning: rows whose embeddings point the same way.

A. Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic deduplication", 2023, arXiv
2303.09540.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.utils._param_validation import Interval, StrOptions

from models.base import check_embeddings
from models.curate.text_documents import KEEP, CorpusFilter, Decision, Document, as_documents
from models.selection import Budget, kept_rows, top_rows

Floats = NDArray[np.float64]
BLOCK = 1024
"""Rows compared with those before them at once."""


def unit_rows(X: Floats) -> Floats:
    """Rows scaled to length 1; rows of zeros stay."""
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)


def nearest_before(rows: Floats) -> Floats:
    """Of each row the largest cosine with an earlier one, (n,); -1 of the first. 2 where they are equal to the bit."""
    best = np.full(len(rows), -1.0)
    for start in range(0, len(rows), BLOCK):
        part = np.minimum(rows[start : start + BLOCK] @ rows[: start + BLOCK].T, 1.0)
        part[np.arange(part.shape[1])[None, :] >= start + np.arange(len(part))[:, None]] = -1.0
        best[start : start + len(part)] = part.max(axis=1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    best[first[inverse.ravel()] != np.arange(len(rows))] = 2.0
    return best


class SemanticDedup(CorpusFilter):
    """Drops rows whose embedding nearly agrees with that of a row which stays, cluster by cluster.

    Parameters
    ----------
    embed : callable, optional
        Texts (list of str) -> embeddings (n, d). Without one, ``fit`` takes embeddings.
    eps : float, default=0.05
        A row is dropped when its cosine with an earlier one of its cluster is above 1 - eps; 0 drops equal rows only.
    budget : int or float, optional
        Rows to keep, or their fraction, in place of `eps`: those least like any before them.
    n_clusters : int, default=50_000
        Fewer where there are not 10 rows a cluster. Only rows of one cluster are compared.
    keep : {"hard", "easy"}, default="hard"
        Order inside a cluster: rows far from its centre first and therefore kept, or those near to it.
    random_state : int, default=0

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Largest cosine with an earlier row of the cluster; 2 for a row equal to one, -1 for the first.
    clusters_ : array of int64, (n,)
    indices_ : array of int64, (kept,)
    decisions_ : list of Decision
        The value of rule "semantic_duplicate" is the score.

    References
    ----------
    Abbas et al., arXiv 2303.09540, section 3.1 and algorithm in appendix A.

    Examples
    --------
    >>> X = np.array([[1.0, 0.0], [0.9999, 0.01], [0.0, 1.0]])
    >>> SemanticDedup(n_clusters=1).fit(X).indices_.size
    2
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "embed": [callable, None],
        "eps": [Interval(Real, 0, 2, closed="both")],
        "budget": [Interval(Real, 0, None, closed="left"), None],
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "keep": [StrOptions({"hard", "easy"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        embed: Callable[[list[str]], Any] | None = None,
        eps: float = 0.05,
        budget: Budget | None = None,
        n_clusters: int = 50_000,
        keep: str = "hard",
        random_state: int = 0,
    ) -> None:
        self.embed = embed
        self.eps = eps
        self.budget = budget
        self.n_clusters = n_clusters
        self.keep = keep
        self.random_state = random_state

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Find what to drop among documents, or rows (n, d) if there is no `embed`."""
        self._validate_params()
        if self.embed is None:
            matrix = check_embeddings(X)  # type: ignore[arg-type]
            documents = [Document(str(row), "") for row in range(len(matrix))]
        else:
            documents = as_documents(X)
            matrix = check_embeddings(self.embed([document.text for document in documents]))
        rows = unit_rows(matrix)
        self.scores_ = self._scores(rows, np.array([document.id for document in documents]))
        if self.budget is None:
            kept = self.scores_ <= 1 - self.eps
        else:
            kept = np.zeros(len(rows), dtype=bool)
            kept[top_rows(self.scores_, kept_rows(self.budget, len(rows)), largest=False)] = True
        return self._decide_by_id(
            documents,
            [
                KEEP if stays else Decision(False, "semantic_duplicate", float(score))
                for stays, score in zip(kept, self.scores_, strict=True)
            ],
        )

    def _scores(self, rows: Floats, ids: NDArray[Any]) -> Floats:
        n_clusters = max(1, min(self.n_clusters, len(rows) // 10))
        kmeans = MiniBatchKMeans(n_clusters, random_state=self.random_state, n_init=3).fit(rows)
        self.clusters_ = kmeans.predict(rows).astype(np.int64)
        centres = unit_rows(kmeans.cluster_centers_.astype(np.float64))
        closeness = (rows * centres[self.clusters_]).sum(axis=1).round(12)
        scores = np.empty(len(rows))
        for cluster in range(n_clusters):
            members = np.flatnonzero(self.clusters_ == cluster)
            sign = 1 if self.keep == "hard" else -1
            order = members[np.lexsort((ids[members], sign * closeness[members]))]
            scores[order] = nearest_before(rows[order])
        return scores
