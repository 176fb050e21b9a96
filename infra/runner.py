"""Where work runs that can be divided: in this process, in several on this machine, or on a Ray cluster.

What is mapped is the same function over the same items, in the same order, whoever runs it. Functions and values cross
between processes as joblib and Ray carry them (cloudpickle, inside one cluster of one user); nothing of it is stored.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import ConfigurationError, ServerError
from infra.settings import Settings, settings

Item = TypeVar("Item")
Result = TypeVar("Result")
LOCAL, RAY = "local", "ray"
_CLUSTER = re.compile(r"ray://[^\s/:]+:\d+")


class Runner:
    """Maps functions over items, and starts the processes of one training.

    Parameters
    ----------
    address : str
        "local", "ray" (a cluster on this machine for as long as this process runs) or "ray://host:port".
    workers : int, optional
        Processes at once. By default 1 when local, and what the cluster has on Ray.
    state : Path, optional
        Folder for the token of a cluster on this machine.

    Raises
    ------
    ConfigurationError
        For another address, fewer than one worker, or when Ray is asked for and not installed.
    """

    def __init__(self, address: str = LOCAL, workers: int | None = None, state: Path | None = None) -> None:
        if address not in (LOCAL, RAY) and not _CLUSTER.fullmatch(address):
            raise ConfigurationError(
                f"A runner is {LOCAL!r}, {RAY!r} or 'ray://host:port', got {address!r}. "
                "A cluster's client port is 10001 unless it was started with another."
            )
        if workers is not None and workers < 1:
            raise ConfigurationError(f"A runner needs at least 1 worker, got {workers}.")
        if address != LOCAL and importlib.util.find_spec("ray") is None:
            raise ConfigurationError(
                f"The runner {address!r} needs Ray, which is not installed. Install it with "
                "`pip install 'clearwell[ray]'`, or leave `--runner` out."
            )
        self.address, self.wanted = address, workers
        self.state = state or Path(tempfile.gettempdir()) / f"clearwell-{os.getuid()}"

    @property
    def is_local(self) -> bool:
        """Whether everything stays on this machine without a cluster."""
        return self.address == LOCAL

    @cached_property
    def workers(self) -> int:
        """Processes at once."""
        if self.is_local:
            return self.wanted or 1
        cpus = int(self.ray.cluster_resources().get("CPU", 1))
        return min(self.wanted or cpus, cpus)

    @cached_property
    def ray(self) -> Any:
        """Ray, connected; the cluster of this machine is started, and ends with this process."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        if self.address == RAY:
            _use_loopback(self.state)
        import ray

        if ray.is_initialized():
            return ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        options["runtime_env"] = {"env_vars": {"CLEARWELL_RUNNER__ADDRESS": LOCAL}}  # a worker does not divide again
        if self.address == RAY:
            options |= {"address": "local", "num_cpus": self.wanted, "include_dashboard": False}
        else:
            options |= {"address": self.address}
        for attempt in (1, 2):  # on a busy machine Ray gives up on itself after 30 s, and leaves parts behind
            try:
                ray.init(**options)
                break
            except Exception as error:
                ray.shutdown()
                if attempt == 2 or self.address != RAY:
                    raise ServerError(
                        f"Ray at {self.address!r} does not answer: {str(error).rstrip('.')}. Look at the cluster with "
                        "`ray status`, check address and token (RAY_AUTH_TOKEN_PATH), or run with `--runner local`."
                    ) from error
        atexit.register(ray.shutdown)
        return ray

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
    ) -> list[Result]:
        """``[function(item) for item in items]``.

        Parameters
        ----------
        function : callable
        items : iterable
        workers : int, optional
            Processes at once on this machine, for work that is worth it whatever the setting.
        """
        from sklearn.utils.parallel import Parallel, delayed

        given = list(items)
        count = min(max(self.workers, workers or 1) if self.is_local else self.workers, len(given))
        if count <= 1 and self.is_local:
            return [function(item) for item in given]
        with self.parallel():
            jobs = Parallel(n_jobs=count, batch_size=1, **({"max_nbytes": None} if self.is_local else {}))
            return list(jobs(delayed(function)(item) for item in given))

    def map_shards(self, function: Callable[[Item], int], items: Iterable[Item]) -> list[int]:
        """As :meth:`map`, on Ray through Ray Data: each worker takes the next shard as it comes free."""
        given = list(items)
        if self.is_local or not given:
            return self.map(function, given)
        return self._inside(_map_by_ray_data, function, given, min(self.workers, len(given)))

    @contextmanager
    def parallel(self) -> Iterator[int | None]:
        """Let scikit-learn's ``Parallel`` inside the block run on the workers; yields the ``n_jobs`` to give it."""
        if self.is_local:
            yield self.workers
            return
        _ = self.ray
        import joblib
        from ray.util.joblib import register_ray

        register_ray()
        with joblib.parallel_config("ray", n_jobs=self.workers):
            yield self.workers

    def train(self, function: Callable[..., Result], *args: Any, processes: int = 1) -> Result:
        """``function(*args)`` in a process group of that size, which every trainer in it divides its batches over.

        All processes do the same and the first one's result is returned; 1 process is this one.
        """
        if processes <= 1:
            return function(*args)
        if not self.is_local:
            if processes > self.workers:
                raise ConfigurationError(
                    f"A training over {processes} processes does not fit the {self.workers} workers of "
                    f"{self.address!r}. Lower `runner.processes`, or raise the workers."
                )
            return self._inside(_train_by_ray, function, args, processes)
        with tempfile.TemporaryDirectory() as folder:
            meeting = f"file://{folder}/meeting"
            ranks = [_Rank(function, args, rank, processes, meeting) for rank in range(processes)]
            return Runner(LOCAL, processes).map(_Rank.run, ranks)[0]

    def _inside(self, work: Callable[..., Result], *args: Any) -> Result:
        """``work(*args)`` on the cluster itself: Ray Data and Ray Train do not start from a client of it."""
        ray = self.ray
        if self.address == RAY:
            return work(*args)
        return ray.get(ray.remote(num_cpus=0)(work).remote(*args))


def _map_by_ray_data(function: Callable[[Any], int], items: list[Any], workers: int) -> list[int]:
    import ray.data

    def one(row: dict[str, Any]) -> dict[str, int]:
        return {"number": row["id"], "found": function(items[int(row["id"])])}

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.range(len(items), override_num_blocks=len(items)).map(one, concurrency=workers).take_all()
    found = {int(row["number"]): int(row["found"]) for row in rows}
    return [found[number] for number in range(len(items))]


def _train_by_ray(function: Callable[..., Any], args: tuple[Any, ...], processes: int) -> Any:
    """Ray Train makes the process group, over as many machines as it takes."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    outbox = Queue(actor_options={"num_cpus": 0})

    def rank(config: Mapping[str, Any]) -> None:
        from torch.distributed import get_rank

        found = function(*args)
        if get_rank() == 0:
            outbox.put(found)

    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            rank,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=processes, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(storage_path=folder),
        ).fit()
        found = outbox.get(timeout=60)
    outbox.shutdown()
    return found


class _Rank:
    """One process of a training on this machine."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], rank: int, size: int, meeting: str) -> None:
        self.function, self.args = function, args
        self.rank, self.size, self.meeting = rank, size, meeting

    def run(self) -> Any:
        import torch.distributed as dist

        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        dist.init_process_group("gloo", init_method=self.meeting, rank=self.rank, world_size=self.size)
        try:
            found = self.function(*self.args)
        finally:
            dist.destroy_process_group()
        return found if self.rank == 0 else None


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def _use_loopback(state: Path) -> None:
    """Before Ray is imported: its servers listen on this machine alone, and answer to the token only."""
    token = state / "ray" / "token"
    if not token.exists():
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
    chosen = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's way to ask for no address but the loopback
    }
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


@cache
def _runner(address: str, workers: int | None, state: Path) -> Runner:
    return Runner(address, workers, state)


def use_runner(address: str | None, workers: int | None = None) -> None:
    """Choose for this process and those it starts, before anything else is read from the settings."""
    chosen = {"ADDRESS": address, "WORKERS": None if workers is None else str(workers)}
    for name, value in chosen.items():
        if value is not None:
            os.environ[f"CLEARWELL_RUNNER__{name}"] = value
    settings.cache_clear()
    _ = runner()  # says at once what is wrong with it


def task_runner() -> Any:
    """What Prefect submits a flow's tasks to: this process, several, or Ray."""
    chosen = runner()
    if not chosen.is_local:
        from prefect_ray import RayTaskRunner

        _ = chosen.ray
        return RayTaskRunner()
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    # Methods seed the generators of their process, so that two stages never share one.
    return ThreadPoolTaskRunner(max_workers=1) if chosen.workers == 1 else ProcessPoolTaskRunner(chosen.workers)


def runner(current: Settings | None = None) -> Runner:
    """The runner that the settings name; one a process, so that its cluster is started once."""
    found = current or settings()
    return _runner(found.runner.address, found.runner.workers, found.state)
