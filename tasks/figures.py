"""Pictures a stage leaves: contact sheets, curves, maps, matrices. Matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import ArrayLike

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

MARKERS = ("o", "^", "s", "D", "v")
PALETTE = ("#2f6f8f", "#d1495b", "#66a182", "#edae49", "#7d5ba6", "#8d6a4f", "#4c6fb1", "#b56576", "#5f7d3a", "#999999")


def _short(text: str, most: int) -> str:
    """A name that fits its place, with a sign where it was cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _logarithmic(axis: Axes) -> None:
    """A logarithmic x axis with few plain numbers; call it when the limits are set."""
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def sample_sheet(images: ArrayLike, titles: Sequence[str], columns: int = 8) -> Figure:
    """A contact sheet of images (n, C, H, W) in [0, 1] with a line of text each."""
    pixels = np.asarray(images)
    rows = max(1, -(-len(pixels) // columns))
    figure = Figure(figsize=(columns * 1.05, rows * 1.25))
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(pixels):
            image = pixels[place].transpose(1, 2, 0)
            axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
            axis.set_title(titles[place], fontsize=8, pad=2)
    if not len(pixels):
        figure.text(0.5, 0.5, "none found", ha="center", va="center", fontsize=11, color="#666666")
    figure.tight_layout(pad=0.4)
    return figure


def curves(history: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """One panel a key, over epochs, one line a training."""
    present = [key for key in keys if any(key in row for row in history)]
    figure = Figure(figsize=(3.2 * max(1, len(present)), 2.5))
    axes = figure.subplots(1, max(1, len(present)), squeeze=False)[0]
    for axis, key in zip(axes, present, strict=False):
        for number, training in enumerate(dict.fromkeys(str(row.get("training", "")) for row in history)):
            points = [(row["epoch"] + 1, row[key]) for row in history if row.get("training") == training and key in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", ms=3, color=PALETTE[number % 10], label=training)
        axis.set_title(key.replace("_", " "), fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6, frameon=False)
    figure.tight_layout(pad=0.6)
    return figure


def embedding_map(points: ArrayLike, labels: ArrayLike, names: Sequence[str], rest: str = "unknown") -> Figure:
    """Two-dimensional points (n, 2) coloured by label, in another shape every ten; -1 in grey, called `rest`."""
    xy, which = np.asarray(points), np.asarray(labels)
    figure = Figure(figsize=(5.2, 4.4))
    axis = figure.subplots()
    for code in np.unique(which):
        chosen = which == code
        colour = "#bbbbbb" if code < 0 else PALETTE[int(code) % 10]
        axis.scatter(
            xy[chosen, 0],
            xy[chosen, 1],
            s=5,
            alpha=0.7,
            color=colour,
            marker=MARKERS[max(int(code), 0) // 10 % len(MARKERS)],
            label=rest if code < 0 else _short(names[int(code)], 40),
        )
    axis.set_xticks([])
    axis.set_yticks([])
    columns = -(-len(np.unique(which)) // 30)
    axis.legend(
        fontsize=7, frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5), ncols=max(columns, 1)
    )
    figure.tight_layout(pad=0.4)
    return figure


def confusion(table: ArrayLike, rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """A confusion matrix with counts, true classes downwards."""
    counts = np.asarray(table)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(0.45 * len(columns) + 1.6, 0.42 * len(rows) + 1.2))
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("true", fontsize=8)
    axis.set_title(title, fontsize=9)
    for i, j in np.ndindex(*counts.shape):
        if counts[i, j]:
            colour = "white" if share[i, j] > 0.55 else "#333333"
            axis.text(j, i, str(int(counts[i, j])), ha="center", va="center", fontsize=6, color=colour)
    figure.tight_layout(pad=0.4)
    return figure


def cluster_sizes(names: Sequence[str], sizes: Sequence[int], silhouettes: Sequence[float]) -> Figure:
    """Rows of each group beside its mean silhouette, one bar each."""
    figure = Figure(figsize=(7.5, 0.28 * max(len(names), 3) + 1.0))
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(names))
    colours = [PALETTE[place % 10] for place in places]
    left.barh(places, sizes, color=colours)
    left.set_yticks(places, [_short(name, 40) for name in names], fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("rows", fontsize=8)
    right.barh(places, silhouettes, color=colours)
    right.axvline(0, color="#333333", lw=0.6)
    right.set_xlabel("mean silhouette", fontsize=8)
    for axis in (left, right):
        axis.tick_params(axis="x", labelsize=7)
    figure.tight_layout(pad=0.5)
    return figure


def exemplar_sheet(groups: Sequence[ArrayLike], names: Sequence[str]) -> Figure:
    """A row of images (m, C, H, W) in [0, 1] for each group, the most typical first."""
    columns = max((len(np.asarray(group)) for group in groups), default=1)
    figure = Figure(figsize=(columns * 0.8 + 1.8, max(1, len(groups)) * 0.85))
    axes = figure.subplots(max(1, len(groups)), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (group, name) in enumerate(zip(groups, names, strict=True)):
        axes[row, 0].text(
            -0.15, 0.5, _short(name, 22), transform=axes[row, 0].transAxes, fontsize=7, ha="right", va="center"
        )
        for axis, pixels in zip(axes[row], np.asarray(group), strict=False):
            image = pixels.transpose(1, 2, 0)
            axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    figure.tight_layout(pad=0.3)
    return figure


def line(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> Figure:
    """One line with its points, the highest marked."""
    figure = Figure(figsize=(4.2, 2.6))
    axis = figure.subplots()
    axis.plot(x, y, marker="o", ms=4, color=PALETTE[0])
    best = int(np.nanargmax(np.asarray(y, dtype=float)))
    axis.plot(x[best], y[best], marker="o", ms=8, color=PALETTE[1])
    axis.set_xlabel(x_label, fontsize=8)
    axis.set_ylabel(y_label, fontsize=8)
    axis.tick_params(labelsize=7)
    figure.tight_layout(pad=0.5)
    return figure


def trade_off(
    names: Sequence[str],
    seconds: Sequence[float],
    values: Sequence[float],
    baseline: Sequence[bool],
    *,
    chosen: str,
    limit: float,
    y_label: str,
    higher_is_better: bool,
) -> Figure:
    """Value against seconds (logarithmic), a named point each; the line joins those that nothing faster beats."""
    figure = Figure(figsize=(8.2, 4.6))
    axis = figure.subplots()
    for name, x, y, simple in zip(names, seconds, values, baseline, strict=True):
        colour, marker = ("#8a979f", "s") if simple else (PALETTE[0], "o")
        if name == chosen:
            axis.scatter([x], [y], s=190, facecolors="none", edgecolors=PALETTE[1], linewidths=1.8, zorder=2)
        axis.scatter([x], [y], s=42, color=colour, marker=marker, zorder=3)
    front, best = [], None
    for x, y in sorted(zip(seconds, values, strict=True), key=lambda point: point[0]):
        if best is None or (y > best if higher_is_better else y < best):
            front.append((x, y))
            best = y
    if len(front) > 1:
        axis.step(*zip(*front, strict=True), where="post", color="#b9c6cd", lw=1.2, zorder=1)
    axis.axvline(limit, color=PALETTE[1], ls="--", lw=0.9)
    axis.set_xscale("log")
    axis.set_xlim(right=limit * 1.4)
    axis.set_xlabel("seconds, one thread (dashed: the budget)", fontsize=9)
    said = f"{y_label} ({'higher' if higher_is_better else 'lower'} is better)"
    axis.set_ylabel(fill(said, 48), fontsize=9)
    axis.margins(x=0.12, y=0.12)
    axis.tick_params(labelsize=8)
    _logarithmic(axis)
    figure.tight_layout(pad=0.5)
    _name_points(axis, names, seconds, values)
    return figure


def _name_points(axis: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float]) -> None:
    """A name beside each point, in the nearest place inside where no point and no other name stands."""
    height, letter, scale = 10.0, 4.9, axis.figure.dpi / 72  # all in points
    places = axis.transData.transform(np.column_stack([x, y])) / scale
    boxes = [(left - 5, base, 10.0) for left, base in places]
    for name, point, (left, base) in zip(names, zip(x, y, strict=True), places, strict=True):
        wide = letter * len(name)
        offsets = [
            (side, sign * (7.0 + step * height))
            for step in range(len(names))
            for sign in (1, -1)
            for side in (5.0, -5.0 - wide)
        ]
        crowded = {
            offset: left + offset[0] + wide > axis.bbox.x1 / scale
            or left + offset[0] < axis.bbox.x0 / scale
            or _hits(left, base, wide, height, offset, boxes)
            for offset in offsets
        }
        chosen = next((offset for offset in offsets if not crowded[offset]), offsets[0])
        boxes.append((left + chosen[0], base + chosen[1], wide))
        axis.annotate(name, point, chosen, textcoords="offset points", fontsize=8, va="center")


def _hits(
    left: float,
    base: float,
    wide: float,
    height: float,
    offset: tuple[float, float],
    boxes: Sequence[tuple[float, float, float]],
) -> bool:
    """Whether a name so placed would lie over one of the boxes (left, middle, width)."""
    start, middle = left + offset[0], base + offset[1]
    return any(
        start < other + length and other < start + wide and abs(middle - at) < height for other, at, length in boxes
    )


def bars(values: Mapping[str, float], label: str) -> Figure:
    """A named bar each, in the order given, the number beside it."""
    figure = Figure(figsize=(6.4, 0.26 * max(len(values), 2) + 0.8))
    axis = figure.subplots()
    places = range(len(values))
    drawn = axis.barh(places, list(values.values()), color=PALETTE[0])
    axis.bar_label(drawn, fontsize=7, padding=2, fmt="{:,.4g}")
    axis.set_yticks(places, [_short(name, 48) for name in values], fontsize=7)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    figure.tight_layout(pad=0.5)
    return figure


def histogram(groups: Mapping[str, ArrayLike], label: str) -> Figure:
    """Distributions of one number in several groups, over each other."""
    figure = Figure(figsize=(5.2, 2.6))
    axis = figure.subplots()
    values = [np.asarray(group, dtype=float) for group in groups.values()]
    joined = np.concatenate(values) if values else np.zeros(0)
    edges = np.histogram_bin_edges(joined if len(joined) else [0.0], 40)
    for number, (name, group) in enumerate(zip(groups, values, strict=True)):
        if len(group):
            axis.hist(group, bins=list(edges), alpha=0.6, color=PALETTE[number % 10], label=f"{name} ({len(group)})")
    axis.set_xlabel(label, fontsize=8)
    axis.set_ylabel("rows", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)
    figure.tight_layout(pad=0.5)
    return figure


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    level: float | None = None,
    level_name: str = "",
) -> Figure:
    """One line a series of (x, y) points; `level` is drawn across."""
    figure = Figure(figsize=(5.4, 3.0))
    axis = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        axis.plot(*zip(*sorted(points), strict=True), marker="o", ms=4, color=PALETTE[number % 10], label=name)
    if level is not None:
        axis.axhline(level, color="#666666", lw=1, ls="--", label=level_name)
    axis.set_xlabel(x_label, fontsize=8)
    axis.set_ylabel(y_label, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)
    figure.tight_layout(pad=0.5)
    return figure


def plan_figure(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    runs: Sequence[Mapping[str, Any]],
    trained: Sequence[Mapping[str, Any]],
    budget: float,
) -> Figure:
    """Left, pilot runs of each pool with the curve of the whole pool; right, choices predicted and reached.

    Parameters
    ----------
    curves : mapping
        Pool -> (rows seen, accuracy) of the whole pool.
    runs : sequence of mapping
        Pilot runs: pool, samples_seen, error.
    trained : sequence of mapping
        Choices: choice, predicted, low, high, outcomes, and [value, half] by filtering_laws and projektor.
    budget : float
    """
    figure = Figure(figsize=(11.5, max(3.6, 1.1 * len(trained) + 1.2)))
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    for number, (pool, (seen, accuracy)) in enumerate(curves.items()):
        colour = PALETTE[number % 10]
        own = [run for run in runs if run["pool"] == pool]
        left.plot(np.asarray(seen), np.asarray(accuracy), color=colour, lw=1.6, label=pool)
        left.scatter([r["samples_seen"] for r in own], [1 - r["error"] for r in own], s=13, color=colour, alpha=0.6)
    left.axvline(budget, color="#666666", ls="--", lw=1)
    left.set_xscale("log")
    _logarithmic(left)
    left.set_xlabel("rows seen in training (dashed: the budget)", fontsize=9)
    left.set_ylabel("accuracy", fontsize=9)
    left.set_title("Each pool alone: pilot runs, and the law for all of it", fontsize=10)
    left.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=min(4, len(curves)))
    for place, row in enumerate(trained):
        right.plot([row["low"], row["high"]], [place, place], color=PALETTE[0], lw=7, alpha=0.25, solid_capstyle="butt")
        right.scatter([row["predicted"]], [place], marker="|", s=260, lw=2.4, color=PALETTE[0], zorder=3)
        for name, marker in (("filtering_laws", "^"), ("projektor", "s")):
            right.scatter([row[name][0]], [place + 0.2], marker=marker, s=26, color="#8a979f", zorder=3)
        right.scatter(row["outcomes"], [place - 0.2] * len(row["outcomes"]), s=24, color=PALETTE[1], zorder=4)
    names = [("" if place else "recommended:\n") + fill(row["choice"], 32) for place, row in enumerate(trained)]
    right.set_yticks(range(len(trained)), names, fontsize=8)
    right.set_ylim(len(trained) - 0.4, -0.6)
    right.set_xlabel("accuracy", fontsize=9)
    right.set_title("Predicted, and what training reached", fontsize=10)
    right.grid(axis="x", color="#e4e9ec", lw=0.8)
    right.set_axisbelow(True)
    keys: list[Any] = [
        right.scatter([], [], marker="|", s=160, lw=2.4, color=PALETTE[0], label="predicted, with 90 % interval"),
        right.scatter([], [], marker="^", s=26, color="#8a979f", label="by filtering-laws"),
        right.scatter([], [], marker="s", s=26, color="#8a979f", label="by projektor"),
        right.scatter([], [], s=24, color=PALETTE[1], label="trained, each seed"),
    ]
    right.legend(handles=keys, fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axis in (left, right):
        axis.tick_params(axis="x", labelsize=8)
    figure.tight_layout(pad=0.8)
    return figure
