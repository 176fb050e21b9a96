import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_iris, make_blobs
from sklearn.metrics import adjusted_rand_score

from models.clustering import (
    count_by_silhouette,
    knn_graph,
    largest_first,
    match_labels,
    spectral_embedding,
    stability,
    typical_rows,
)


def test_the_silhouette_counts_blobs():
    X, _ = make_blobs(300, centers=5, cluster_std=0.5, random_state=3)
    found = count_by_silhouette(X, range(2, 9), random_state=0)
    assert found.n_clusters == 5
    assert sorted(found.scores) == list(range(2, 9))


def test_numbers_that_cannot_be_tried_are_left_out_or_refused():
    assert sorted(count_by_silhouette([[0.0], [1.0], [5.0], [6.0]], range(1, 10), random_state=0).scores) == [2, 3]
    with pytest.raises(ValueError, match="2 distinct rows allow 2 to 1"):
        count_by_silhouette([[0.0], [0.0], [1.0]], range(2, 9))


def test_spectral_embedding_is_constant_on_components_whatever_the_solver(monkeypatch):
    blocks = np.kron(np.eye(3), np.ones((4, 4)))
    dense = spectral_embedding(blocks, 3)
    for block in dense.reshape(3, 4, 3):
        np.testing.assert_allclose(block, block[:1].repeat(4, axis=0), atol=1e-10)
    X = load_iris().data
    affinity = np.exp(-((X[:, None] - X) ** 2).sum(-1))
    whole = spectral_embedding(affinity, 3, skip=1)
    monkeypatch.setattr("models.clustering.DENSE_ROWS", 10)
    np.testing.assert_allclose(spectral_embedding(sparse.csr_array(affinity), 3, skip=1), whole, atol=1e-6)
    with pytest.raises(ValueError, match="13 eigenvectors were asked of an affinity of 12 rows"):
        spectral_embedding(blocks, 12, skip=1)


def test_a_row_is_not_its_own_neighbour():
    graph = knn_graph([[0.0], [0.0], [3.0], [4.0]], 1).toarray()
    assert graph.diagonal().tolist() == [0, 0, 0, 0]
    assert graph[2, 3] == graph[3, 2] == 1
    with pytest.raises(ValueError, match="at least 3 rows"):
        knn_graph([[0.0], [1.0]], 2)


def test_matching_undoes_a_renaming_and_keeps_extra_clusters_apart():
    reference = np.array([0, 0, 1, 1, 2, 2])
    assert match_labels(reference, [2, 2, 0, 0, 1, 1]).tolist() == reference.tolist()
    assert match_labels(reference, [3, 3, 0, 0, 1, 2]).tolist() == [0, 0, 1, 1, 2, 3]


def test_names_go_by_size_then_by_the_centre():
    labels, order = largest_first([0, 1, 1, 2], np.array([[5.0, 0], [1, 1], [4, 9]]))
    assert order.tolist() == [1, 2, 0]
    assert labels.tolist() == [2, 0, 0, 1]


def test_typical_rows_begin_with_the_medoid():
    found = typical_rows([[0.0], [1.0], [1.2], [9.0], [50.0]], [0, 0, 0, 1, -1], n_rows=2)
    assert {cluster: rows.tolist() for cluster, rows in found.items()} == {0: [1, 2], 1: [3]}


def test_stability_is_the_mean_over_pairs():
    labellings = [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]
    assert stability(labellings) == pytest.approx((1 + 2 * adjusted_rand_score(labellings[0], labellings[2])) / 3)
    assert np.isnan(stability(labellings[:1]))
