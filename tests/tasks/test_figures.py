"""Pictures that can be read: numbers on axes apart from each other, names that say where they were cut."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tasks.figures import cluster_sizes, embedding_map, plan_figure, trade_off


def numbers_below(axis):
    """The texts below an axis with the places they take."""
    FigureCanvasAgg(axis.figure).draw()
    low, high = axis.get_xlim()
    ticks = zip([*axis.get_xticks(), *axis.get_xticks(minor=True)],
                [*axis.get_xticklabels(), *axis.get_xticklabels(minor=True)], strict=True)  # fmt: skip
    shown = [text for value, text in ticks if low <= value <= high and text.get_text()]
    return {text.get_text(): text.get_window_extent() for text in shown}


@pytest.mark.parametrize(("first", "budget"), [(28, 600), (38, 20_000), (300, 2_000_000)])
def test_rows_seen_are_plain_numbers_that_do_not_touch(first, budget):
    seen = np.geomspace(first, budget * 1.3, 60)
    choice = {"choice": "a", "predicted": 0.5, "low": 0.4, "high": 0.6, "outcomes": [0.5], "filtering_laws": [0.5, 0.1]}
    figure = plan_figure({"a": (seen, seen / seen.max())}, [], [choice | {"projektor": [0.5, 0.1]}], budget)
    places = numbers_below(figure.axes[0])
    assert len(places) >= 3
    assert not any("10^" in text for text in places)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(places.values(), 2))


@pytest.mark.parametrize("fastest", [0.002, 0.04, 30.0])
def test_seconds_are_plain_numbers_that_do_not_touch(fastest):
    names, baseline = ["quick", "slow"], [True, False]
    figure = trade_off(
        names, [fastest, 40.0], [0.5, 0.6], baseline, chosen="slow", limit=60, y_label="accuracy", higher_is_better=True
    )
    places = numbers_below(figure.axes[0])
    assert len(places) >= 2
    assert not any(one.overlaps(other) for one, other in itertools.combinations(places.values(), 2))


def test_names_of_candidates_stay_inside():
    names = ["hdbscan", "gaussian-mixture", "spectral", "k-means", "faster-pam"]
    seconds, values = [0.02, 0.034, 0.079, 0.154, 50.0], [0.72, 0.813, 0.813, 0.867, 0.853]
    figure = trade_off(
        names, seconds, values, [True] * 5, chosen="k-means", limit=60, y_label="accuracy", higher_is_better=True
    )
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    for text in axis.texts:
        place = text.get_window_extent()
        assert axis.bbox.x0 <= place.x0 < place.x1 <= axis.bbox.x1, text.get_text()


def test_more_than_ten_groups_can_be_told_apart():
    figure = embedding_map(np.zeros((12, 2)), np.arange(-1, 11), [f"g{n}" for n in range(11)], "noise")
    axis = figure.axes[0]
    looks = {(tuple(dots.get_facecolor()[0]), len(dots.get_paths()[0].vertices)) for dots in axis.collections}
    assert len(looks) == 12
    assert axis.get_legend().get_texts()[0].get_text() == "noise"


def test_a_name_says_that_it_was_cut():
    figure = cluster_sizes(["x" * 50, "short"], [1, 2], [0.1, 0.2])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["x" * 39 + "…", "short"]
