"""A Ray cluster of two workers on this machine: the same code, the same results, nothing beyond the loopback."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import networkx as nx
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.datasets import load_digits, load_iris
from torch import nn

from benchmarks.evidence import Evidence
from infra import datasets as ds
from infra.errors import ConfigurationError
from infra.model_store import ModelStore
from infra.runner import Runner, runner, use_runner
from models.base import isolated_seed
from models.networks.convnet import ConvEncoder
from models.state import pack
from models.training import ClassifierTrainer, sgd
from models.validate.r2d2 import R2D2
from models.validate.tables import FrameTable
from tasks.curate_text import TextPlan, curate_text
from tasks.discover import Case, fit_case
from tasks.embed import Shard, embed_shard
from tasks.rowset import Rowset

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers, started once; they end with the module."""
    found = Runner("ray", 2, tmp_path_factory.mktemp("state"))
    before = dict(os.environ)
    _ = found.ray
    yield found
    found.ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def fit(seed):
    torch.set_num_threads(1)  # sums in another order are other sums
    digits = load_digits()
    X, y = torch.tensor(digits.data[:200] / 16).float(), torch.tensor(digits.target[:200])
    with isolated_seed(seed):
        network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        ClassifierTrainer(network, epochs=2, batch_size=20, optimizer=sgd(0.05), seed=seed).fit(X, y)
    return {key: value.clone() for key, value in network.state_dict().items()}


def where(_):
    time.sleep(0.5)
    return os.getpid(), os.environ["CLEARWELL_RUNNER__ADDRESS"]


def test_work_is_divided_over_two_workers_which_do_not_divide_again(cluster):
    found = cluster.map(where, range(4))
    assert len({pid for pid, _ in found}) == 2
    assert os.getpid() not in {pid for pid, _ in found}
    assert {address for _, address in found} == {"local"}


def test_seeds_of_a_benchmark_give_what_they_give_here(cluster, home, monkeypatch):
    """Bit for bit: each seed is one process's work."""
    expected = [fit(seed) for seed in (0, 1, 2)]
    monkeypatch.setattr("benchmarks.evidence.runner", lambda: cluster)
    for mine, theirs in zip(Evidence("none", (0, 1, 2)).map(fit), expected, strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_containment_is_the_same_with_a_parent_on_each_worker(cluster):
    digits = pd.DataFrame(load_digits().data[:400, 10:20])
    tables = [FrameTable(f"part {start}", digits[start:]) for start in range(0, 200, 40)]
    alone = R2D2(verify="exact", random_state=0).fit(tables)
    with cluster.parallel() as workers:
        assert workers == 2
        divided = R2D2(verify="exact", random_state=0, n_jobs=workers).fit(tables)
    assert nx.utils.graphs_equal(divided.graph_, alone.graph_)
    assert len(alone.graph_.edges) == 10
    assert divided.rows_read_ == alone.rows_read_


def test_an_embedding_pass_by_ray_data_equals_the_local_one(cluster, tmp_path):
    digits = load_digits()
    kinds = {"id": Value("string"), "image": Image(decode=False), "label": ClassLabel(names=list("0123456789"))}
    columns = {
        "id": [f"r{row}" for row in range(150)],
        "image": [ds.encode((image * 15).astype(np.uint8)) for image in digits.images[:150]],
        "label": digits.target[:150].tolist(),
    }
    ds.write_split(Dataset.from_dict(columns, features=Features(kinds)), tmp_path / "data", "train", shard_rows=40)
    with isolated_seed(0):
        network = ConvEncoder(channels=(4, 8), in_channels=1, stem_stride=1)
    ref = ModelStore(tmp_path).save("encoder", *pack(network))
    schema = ds.infer_schema(tmp_path / "data")
    found = {}
    for name, chosen in (("local", Runner()), ("ray", cluster)):
        target = tmp_path / name
        (target / "train").mkdir(parents=True)
        shards = [Shard(tmp_path, tmp_path / "data", "train", n, target, schema, ref, 32) for n in range(4)]
        assert chosen.map_shards(embed_shard, shards) == [40, 40, 40, 30]
        found[name] = pq.read_table(target / "train").to_pandas()
    assert found["ray"]["id"].tolist() == columns["id"]
    assert len(ds.infer_schema(tmp_path / "ray").features) == 8
    pd.testing.assert_frame_equal(found["ray"], found["local"], rtol=1e-6, atol=1e-6)
    assert found["local"].filter(like="e").std(numeric_only=True).min() > 0


def test_a_training_by_ray_train_on_two_workers_is_that_of_one_process(cluster):
    divided, alone = cluster.train(fit, 0, processes=2), fit(0)
    for key in alone:
        torch.testing.assert_close(divided[key], alone[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigurationError, match="over 3 processes does not fit the 2 workers of 'ray'"):
        cluster.train(fit, 0, processes=3)


def test_nothing_listens_beyond_the_loopback(cluster):
    session = cluster.ray._private.worker._global_node.get_session_dir_path()
    ours = {os.getpid()}
    for process in psutil.process_iter(["cmdline"]):
        if any(session in part for part in process.info["cmdline"] or ()):
            ours |= {process.pid, *(child.pid for child in process.children(recursive=True))}
    listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    assert len(listening) >= 3
    beyond = [c.laddr for c in listening if c.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
    assert beyond == []


def test_the_cluster_answers_to_its_token_only(cluster, tmp_path):
    """A stranger who knows the address can not run a task; who has the token can."""
    address = cluster.ray.get_runtime_context().gcs_address
    options = f"address={address!r}, logging_level='ERROR', log_to_driver=False"
    code = f"import ray; ray.init({options}); print(ray.get(ray.remote(lambda: 3).remote()))"
    other = tmp_path / "token"
    other.write_text("0" * 64)
    answers = {}
    for name, token in (("ours", os.environ["RAY_AUTH_TOKEN_PATH"]), ("another", str(other))):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "RAY_AUTH_TOKEN_PATH": token},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        answers[name] = (done.returncode, done.stdout.strip())
    assert answers["ours"] == (0, "3")
    assert answers["another"][0] != 0
    assert answers["another"][1] == ""
    assert oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode)[-3:] == "600"


def test_without_ray_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs Ray, which is not installed.*pip install 'clearwell\[ray\]'"):
        Runner("ray")
    assert Runner().map(json.dumps, [1, 2]) == ["1", "2"]


def test_the_choice_of_the_command_line_is_a_setting(home):
    use_runner("local", 2)
    assert (runner().address, runner().workers) == ("local", 2)
    with pytest.raises(ConfigurationError, match="got 'nowhere'"):
        use_runner("nowhere")


def test_texts_are_curated_on_the_cluster_as_here(cluster, tmp_path, monkeypatch):
    texts = [f"The {i % 60} words of that text and the name of number {i % 60} are here" for i in range(150)]
    ds.write_split(Dataset.from_dict({"text": texts}), tmp_path / "data", "train", shard_rows=30)
    plan = TextPlan((), minhash=None, target=("the name of number 7",), dsir={"budget": 20, "min_tokens": 3})
    here = curate_text(tmp_path / "data", "train", tmp_path / "here", plan)
    monkeypatch.setattr("tasks.curate_text.runner", lambda: cluster)
    there = curate_text(tmp_path / "data", "train", tmp_path / "there", plan)
    assert np.array_equal(here.keep, there.keep)
    assert here.funnel == there.funnel
    assert here.kept == 20


def test_numbers_of_groups_and_seeds_are_tried_on_the_cluster_as_here(cluster):
    matrix = load_iris().data
    rows = Rowset(matrix, None, np.full(len(matrix), -1), np.zeros(len(matrix), np.int64))
    cases = [Case("faster-pam", rows, k, seed) for k in (2, 3, 4) for seed in (0, 1)]
    here = [fit_case(case) for case in cases]
    for mine, theirs in zip(cluster.map(fit_case, cases), here, strict=True):
        assert np.array_equal(mine.labels, theirs.labels)
        assert (mine.n_clusters, mine.silhouette) == (theirs.n_clusters, theirs.silhouette)
