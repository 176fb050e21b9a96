"""A champion at work: scoring new rows, noticing drift in what lands, being adapted to it. Real digits, real models."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from infra import datasets as ds
from infra.arrivals import SEEN, Place
from infra.errors import ConfigurationError, DatasetFormatError, PromotionError, StoreError
from infra.project import Project
from infra.registered import find_registered
from infra.settings import settings
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.supervised import train_classifier
from tasks.adapt import AdaptConfig, adapt
from tasks.arrivals import collect, with_target
from tasks.champion import find_model
from tasks.compress import CompressConfig, compress
from tasks.drift import DriftConfig, announce, drift, drift_reference
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.register import RegisterConfig, register
from tasks.score import ScoreConfig, log_probabilities, score
from tasks.stage import Desk, RunContext

GENTLE = CompressConfig(parameters={"prune_ratio": 0.1, "weight_bits": 8})
NAMES = [str(digit) for digit in range(10)]
FEATURES = Features({"id": Value("string"), "image": Image(), "label": ClassLabel(names=NAMES),
                     "domain": Value("string"), "split": Value("string"), "source": Value("string")})  # fmt: skip


def images(name, pixels, labels, domain="clean", split="target"):
    names = [f"{name}-{number}" for number in range(len(pixels))]
    cells = [ds.encode(image) for image in pixels]
    columns = {"id": names, "image": cells, "label": labels, "domain": [domain] * len(names)}
    return Dataset.from_dict(
        {**columns, "split": [split] * len(names), "source": ["sklearn"] * len(names)}, features=FEATURES
    )


def enlarged_digits():
    """Real digits, enlarged: train, test and two later batches, the second from another scanner."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    pixels = np.kron(X[order].reshape(-1, 8, 8) / 16 * 255, np.ones((2, 2))).astype(np.uint8)
    y = y[order]
    other = 255 - gaussian_filter(pixels[1400:].astype(float), (0, 1, 1)).astype(np.uint8)
    return SimpleNamespace(
        train=images("train", pixels[:800], y[:800], split="train"),
        test=images("test", pixels[800:1200], y[800:1200], split="test"),
        later=images("later", pixels[1200:1400], y[1200:1400]),
        other=images("other", other, y[1400:], "other"),
        arrays=(pixels[:800, None].astype(np.float32) / 255, y[:800]),
    )


def small_classifier(digits):
    """A classifier of the clean digits."""
    torch.manual_seed(0)
    encoder = ConvEncoder(channels=(8, 16), in_channels=1, stem_stride=1)
    network = SplitClassifier(encoder, 10, embedding_dim=16, normalised_head=True)
    X, y = digits.arrays
    train_classifier(network, torch.from_numpy(X), y, epochs=6, lr=0.1)
    return network.eval()


def champion_of_digits(project, digits, network):
    """Register the network as champion of the dataset "digits"."""

    def write(folder):
        return sum(ds.write_split(getattr(digits, split), folder, split) for split in ("train", "test"))

    data = project.versions.add("digits", write)
    run = RunContext(parent=project.tracker.open("lifecycle"))
    model = Desk(project, "finetune", project.root).save_network(network)
    small = compress.fn(data, model, GENTLE, run)
    judged = evaluate.fn(data, data, None, None, {"chain": small.model}, EvaluateConfig(), run)
    done = register.fn(data, small.model, [small, judged], judged, RegisterConfig(), run)
    return SimpleNamespace(
        project=project, data=data, run=run, model=model, small=small.model, home=project.root, registered=done
    )


@pytest.fixture(scope="module")
def digits():
    return enlarged_digits()


@pytest.fixture(scope="module")
def scene(tmp_path_factory, empty_tracking, digits):
    """A project whose champion was made from the digits, in force for all tests here: making it takes seconds."""
    home, before = tmp_path_factory.mktemp("watching"), dict(os.environ)
    (home / ".clearwell").mkdir()
    os.environ["CLEARWELL_ROOT"] = str(home)
    (home / "mlflow.yaml").write_text("gates: [{metric: source_accuracy, split: test, at_least: 0.5}]")
    settings.cache_clear()
    shutil.copyfile(empty_tracking, home / ".clearwell" / "mlflow.db")
    made = champion_of_digits(Project(), digits, small_classifier(digits))
    assert made.registered.evidence["alias"] == "champion", made.registered.evidence["refused"]
    yield made
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()


def land(scene, rows, name, where="incoming/digits"):
    folder = scene.home / where
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(str(folder / name))


def look(scene, where="incoming/digits"):
    config = DriftConfig()
    batch = collect.fn(where, "digits-incoming", 50)
    if batch.data is None:
        return batch, None
    champion = find_model.fn("digits-classifier")
    reference = drift_reference.fn(champion, config, scene.run)
    found = drift.fn(batch.data, champion, reference.model, config, scene.run)
    return batch, announce.fn(where, batch, champion, found)


def test_a_registered_version_leads_back_to_what_it_was_made_from(scene):
    found = find_registered(scene.project, "digits-classifier")
    assert (found.version, found.model.digest, found.origin, found.data) == (
        "1", scene.small.digest, scene.model, scene.data)  # fmt: skip
    assert found.domains == ("test",)
    assert find_registered(scene.project, "digits-classifier@1") == found
    assert find_registered(scene.project, "digits-classifier@candidate") == found
    with pytest.raises(PromotionError, match="No version of 'digits-classifier' is shadow"):
        find_registered(scene.project, "digits-classifier@shadow")
    with pytest.raises(PromotionError, match="no registered model 'other'"):
        find_registered(scene.project, "other")


def test_a_model_that_another_machine_made_is_fetched_and_checked(scene):
    folder = scene.project.models.path(scene.small)
    shutil.rmtree(folder)
    found = find_registered(scene.project, "digits-classifier")
    assert scene.project.models.intact(found.model)
    artifacts = scene.home / ".clearwell" / "artifacts"
    program = next(artifacts.glob("**/model/artifacts/program.pt2"))
    whole = program.read_bytes()
    program.write_bytes(whole[:-1] + b"x")
    shutil.rmtree(folder)
    with pytest.raises(StoreError, match="were changed"):
        find_registered(scene.project, "digits-classifier")
    program.write_bytes(whole)
    assert find_registered(scene.project, "digits-classifier") == found


def test_scores_are_a_version_with_unknown_rows_flagged(scene, digits):
    champion = find_registered(scene.project, "digits-classifier")
    result = score.fn(scene.data, champion, ScoreConfig(), scene.run)
    assert result.data.name == "digits-scored"
    folder = scene.project.versions.path(result.data)
    rows = ds.read_split(folder, "test")
    assert ds.ids(rows) == ds.ids(digits.test)
    predicted, unknown = ds.labels(rows, "prediction"), np.asarray(rows["unknown"])
    assert rows.features["prediction"].names == NAMES
    assert ((predicted == -1) == unknown).all()
    assert (predicted == ds.labels(digits.test))[~unknown].mean() > 0.8
    assert np.asarray(rows["prediction_confidence"]).min() > 0.1
    assert result.metrics["unknown"] == unknown.sum() + result.metrics["train.unknown"]
    again = score.fn(scene.data, champion, ScoreConfig(), scene.run)
    assert (again.cached, again.data) == (True, result.data)
    assert ds.infer_schema(folder).kind == "image"


def test_rows_that_can_not_be_read_are_unknown_and_stop_nobody(scene, digits):
    champion = find_registered(scene.project, "digits-classifier")
    schema = ds.infer_schema(scene.project.versions.path(scene.data))
    cells = [dict(cell) for cell in digits.test.cast_column("image", Image(decode=False))["image"][:30]]
    cells[7] = {"bytes": b"no image", "path": None}
    rows = Dataset.from_dict({"id": [str(n) for n in range(30)], "image": cells}).cast_column(
        "image", Image(decode=False)
    )
    found = log_probabilities(scene.project, champion, rows, schema, batch_rows=16)
    assert np.ptp(found[7]) == 0
    assert np.ptp(np.delete(found, 7, axis=0), axis=1).min() > 0.1


def test_rows_of_another_shape_are_refused_in_words(scene):
    def write(folder):
        table = Dataset.from_dict({"id": ["a", "b"], "x": [0.5, 1.5], "y": [1.0, 2.0]})
        return ds.write_split(table, folder, "train")

    table = scene.project.versions.add("table", write)
    champion = find_registered(scene.project, "digits-classifier")
    with pytest.raises(DatasetFormatError, match=r"shaped \(2,\), which digits-classifier version 1 does not"):
        score.fn(table, champion, ScoreConfig(), scene.run)


def test_clean_rows_are_no_drift_and_rows_of_another_scanner_are(scene, digits):
    land(scene, digits.later, "monday.parquet")
    batch, told = look(scene)
    assert (batch.data.rows, told["drifted"], told["event"]) == (200, False, "")
    land(scene, digits.other.select(range(150)), "tuesday.parquet")
    batch, told = look(scene)
    assert batch.data.rows == 150
    assert told["drifted"]
    assert told["domain_auc"] > 0.75
    filed = [entry["payload"] for entry in scene.project.ledger.entries("drift")]
    assert [entry["drifted"] for entry in filed] == [False, True]
    assert filed[1]["batch"] == str(batch.data)
    assert collect.fn("incoming/digits", "digits-incoming", 50).files == ()  # everything was looked at


def test_an_adapted_model_knows_both_domains(scene, digits):
    land(scene, digits.other.select(range(150, 380)), "wednesday.parquet")
    batch, told = look(scene)
    assert told["drifted"]
    champion = find_model.fn("digits-classifier")
    joined = with_target.fn(champion.data, batch.data)
    target = ds.read_split(scene.project.versions.path(joined), "target")
    assert set(ds.labels(target)) == {-1}  # the labels of what arrived are left behind
    assert target.features["label"].names == NAMES
    config = AdaptConfig(parameters={"epochs": 1, "silhouette_max": 200})
    adapted = adapt.fn(joined, champion.origin, config, scene.run)
    small = compress.fn(joined, adapted.model, GENTLE, scene.run)
    judged = evaluate.fn(joined, joined, None, None, {"chain": small.model}, EvaluateConfig(), scene.run)
    run = RunContext(parent=scene.project.tracker.open("adapt"))
    done = register.fn(joined, small.model, [adapted, small, judged], judged, RegisterConfig(promote=False), run)
    assert (done.evidence["version"], done.evidence["alias"]) == ("2", "candidate")
    candidate = find_model.fn("digits-classifier@candidate")
    assert candidate.domains == ("test", "target")
    assert candidate.origin == adapted.model
    found = drift.fn(batch.data, candidate, drift_reference.fn(candidate, DriftConfig(), run).model, DriftConfig(), run)
    assert (found.evidence["drifted"], found.evidence["nearest"]) == (False, "target")


def test_few_rows_wait_for_more(scene, digits):
    place = "incoming/few"
    land(scene, digits.later.select(range(30)), "a.parquet", place)
    batch, told = look(scene, place)
    assert (batch.rows, batch.data, told) == (30, None, None)
    land(scene, digits.later.select(range(30, 60)), "b.parquet", place)
    assert look(scene, place)[0].data.rows == 60


def test_what_is_no_data_is_noted_once_and_stops_nobody(scene, digits):
    place = "incoming/mixed"
    land(scene, digits.later.select(range(100)), "good.parquet", place)
    (scene.home / place / "bad.parquet").write_bytes(b"PAR1 nothing")
    (scene.home / place / ".half.parquet").write_bytes(b"still being written")
    batch, _ = look(scene, place)
    assert [arrival.name for arrival in batch.files] == ["good.parquet"]
    refused = [entry["payload"] for entry in scene.project.ledger.entries(SEEN) if "refused" in entry["payload"]]
    assert [entry["name"] for entry in refused] == ["bad.parquet"]
    assert str(scene.home) not in refused[0]["refused"]
    assert look(scene, place)[0].files == ()


@pytest.mark.parametrize("where", ["../outside", "/etc", "", "a/../../b"])
def test_only_places_inside_the_project_can_be_watched(project, where):
    with pytest.raises(ConfigurationError, match="can not be watched"):
        Place(project, where)
