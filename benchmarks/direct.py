"""The main job without the platform: the eight methods called one after another, as a script would."""

from __future__ import annotations

import copy
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from PIL import Image

from flows.config import load_config
from models import augment
from models.metrics import membership_attack
from models.networks.convnet import ConvEncoder
from models.networks.heads import ProjectingClassifier, SplitClassifier
from models.registry import build_method
from models.supervised import probabilities, train_classifier
from models.unlearn.report import relearning_curve, unlearning_report
from models.validate.near_duplicates import near_duplicates
from models.validate.tables import FrameTable
from tasks.compress import latencies
from tasks.evaluate import ATTACKS
from tasks.pretrain import PARAMETERS


def read(data: Path, split: str) -> tuple[torch.Tensor, np.ndarray, pd.DataFrame]:
    """Images, labels and the frame of one split, without the rows that can not be used."""
    frame = pq.read_table(data / split).to_pandas()
    kept, images = [], []
    for row, cell in enumerate(frame["image"]):
        try:
            pixels = np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("L"))
        except (OSError, SyntaxError):
            continue
        if pixels.shape == (28, 28) and pixels.std() >= 4 and -1 <= frame["label"][row] < 8:
            kept.append(row)
            images.append(pixels)
    frame = frame.iloc[kept].reset_index(drop=True)
    return torch.from_numpy(np.stack(images))[:, None].float() / 255, frame["label"].to_numpy(), frame


def main(data: Path) -> dict[str, Any]:
    """Run the methods with the flow's default parameters; returns the seconds each took."""
    config, began = load_config(), time.perf_counter()
    taken: dict[str, float] = {}

    def lap(name: str) -> None:
        taken[name] = time.perf_counter() - began - sum(taken.values())

    (X, y, frame), (U, _, _) = read(data, "train"), read(data, "unlabelled")
    (X_test, y_test, _), (T, _, _) = read(data, "test"), read(data, "target")
    lap("read")
    tables = {"train": X, "unlabelled": U, "test": X_test, "target": T}
    build_method("r2d2", verify="exact", random_state=0).fit(
        [FrameTable(n, pd.DataFrame({"content": [i.numpy().tobytes() for i in x]})) for n, x in tables.items()]
    )
    near = {later for later, _, _ in near_duplicates(X.numpy())}
    keep = np.array([row for row in range(len(X)) if row not in near])
    X, y, frame = X[keep], y[keep], frame.iloc[keep]
    build_method("separability", random_state=0, drop_duplicates=True).fit(X.flatten(1).double().numpy())
    lap("validate")
    net = config.network

    def encoder() -> ConvEncoder:
        return ConvEncoder(net.channels, 1, stem_stride=net.stem_stride)

    views = {"weak": augment.weak(2, False), "strong": augment.strong(1, False, scale=(0.5, 1.0))}
    views["contrastive"] = augment.contrastive(1, False, scale=(0.4, 1.0))
    noise = build_method(
        "lsa", backbone=ProjectingClassifier(encoder(), 8), n_classes=8, augment=views, random_state=0,
        **config.label_noise.parameters,
    ).fit(X.numpy(), y)  # fmt: skip
    corrected = noise.corrected_label_proba_.argmax(1)
    labels = np.where(noise.is_noisy_, corrected, y)
    labels[noise.is_ood_ | (noise.is_noisy_ & (noise.confidence_ < 0.5))] = -1
    lap("label_noise")
    parameters = PARAMETERS["g-simclr"]
    simclr = build_method("g-simclr", encoder=noise.network_.encoder, random_state=0, **parameters)
    simclr.fit(torch.cat([X[torch.from_numpy(~noise.is_ood_)], U]))
    lap("pretrain")
    erased = set(pq.read_table(data.parent / "erasure" / f"{data.name}.parquet")["id"].to_pylist())
    forget = frame["id"].isin(erased).to_numpy()

    def classifier(base: Any, rows: np.ndarray, given: np.ndarray, epochs: int, **extra: Any) -> SplitClassifier:
        model = SplitClassifier(base, 8, net.embedding_dim, normalised_head=True)
        train_classifier(model, X[torch.from_numpy(rows)], given[rows], epochs=epochs, seed=0, **extra)
        return model

    tune = config.finetune
    extra = {"lr": tune.lr, "label_smoothing": tune.label_smoothing, "augment": augment.PadCrop(2)}
    tuned = classifier(copy.deepcopy(simclr.encoder_), np.flatnonzero(labels >= 0), labels, tune.epochs, **extra)
    rows = np.flatnonzero((labels >= 0) & ~forget)
    retrained = classifier(copy.deepcopy(simclr.encoder_), rows, labels, tune.epochs, **extra)
    lap("finetune")
    adapted = build_method("glc", model=tuned, random_state=0, **config.adapt.parameters).fit(T).model_
    reference = build_method("glc", model=retrained, random_state=0, **config.adapt.parameters).fit(T).model_
    lap("adapt")
    remain = ~forget & (labels >= 0)
    laf = build_method("laf", model=adapted, random_state=0, **config.unlearn.parameters)
    laf.fit(X[torch.from_numpy(forget)], X[torch.from_numpy(remain)])
    seen = torch.from_numpy(forget & (labels >= 0))
    unlearning_report(
        adapted, reference, laf.model_, X_remain=X[torch.from_numpy(remain)], y_remain=labels[remain],
        X_forget=X[seen], y_forget=labels[seen.numpy()], X_test=X_test, y_test=y_test,
    )  # fmt: skip
    for model in (adapted, reference, laf.model_):
        relearning_curve(model, X[seen], labels[seen.numpy()])
    lap("unlearn")
    small = build_method("udfc", random_state=0, **config.compress.parameters).fit(laf.model_, X[:2]).transform()
    lap("compress")
    naive = classifier(encoder(), np.flatnonzero(y >= 0), y, config.naive.epochs, lr=config.naive.lr)
    lap("naive")
    halves = [np.array_split(np.random.default_rng(0).permutation(len(X_test)), 2) for _ in range(ATTACKS)]
    for model in (naive, small):
        p, outside, _ = (probabilities(model, part) for part in (X, X_test, T))
        for number, (known, fresh) in enumerate(halves):
            membership_attack(p[~forget], outside[known], p[forget], outside[fresh], number)
    latencies({"naive": naive, "chain": small}, X[:32], repeats=300)
    lap("evaluate")
    return {"seconds": taken, "total": sum(taken.values())}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
