"""Deletion of what an erasure lists: bytes of rows, what names them, and what was learnt or drawn from them.

Rows are found by their fingerprints. Figures and weights show rows without holding their bytes; they are found by
descent: a stage's record says what it read and what it made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from infra import traces
from infra.data_remote import PINS
from infra.erasure import Erasures, object_name
from infra.errors import ErasureError
from infra.places import Searched
from infra.references import DatasetRef, Reference
from infra.registered_files import ARTIFACT
from infra.settings import Tracking
from infra.tracking import Tracker

ROUNDS = 3


class Doomed(Reference):
    """Everything that goes, listed before the first of it does, so that a killed deletion knows how to go on.

    Attributes
    ----------
    paths : tuple of str
        Files, folders and versions of objects.
    versions : tuple of DatasetRef
    objects : tuple of str
        DVC's names of what goes from caches and remotes.
    runs : dict of str to list of str
        MLflow run -> its artifacts that go.
    logged_models : tuple of str
    models : tuple of str
        Digests of models that learnt from the rows.
    """

    paths: tuple[str, ...] = ()
    versions: tuple[DatasetRef, ...] = ()
    objects: tuple[str, ...] = ()
    runs: dict[str, list[str]] = Field(default_factory=dict)
    logged_models: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


class Deletion:
    """Lists, deletes and searches for one request.

    Parameters
    ----------
    erasures : Erasures
    request : str
    """

    def __init__(self, erasures: Erasures, request: str) -> None:
        self.erasures, self.request = erasures, request
        self.project, self.places, self.root = erasures.project, erasures.places, erasures.root
        self.rows = erasures.rows(request)

    def search(self) -> Searched:
        """Search all places for the rows."""
        return self.places.search(traces.Search(self.rows.salt, self.rows.fingerprints))

    def control(self) -> Searched:
        """Search all places for a row that stays."""
        return self.places.search(traces.Search(self.rows.salt, self.rows.control))

    def listed(self, kept: Collection[str], retired: Collection[tuple[str, str]]) -> Doomed:
        """What has to go.

        Parameters
        ----------
        kept : collection of str
            Digests of models that forgot the rows.
        retired : collection of (name, version)
            Registered versions whose bytes go.
        """
        found = self.search().findings
        versions = self.erasures.versions_in(found)
        lost = {ref.version for ref in versions}
        records, models, runs = self._descent(lost, set(kept))
        models |= self._weights_of(retired) - set(kept)
        runs |= self._runs_on(lost, self.project.tracker)
        paths = {unit for f in found if not self.places.is_database(f.where) for unit in self.places.unit(f.where)}
        paths |= {unit for ref in versions for unit in self.places.unit(f"{ref.uri}/x/x")} | set(records)
        paths |= {f".clearwell/models/{digest[:20]}" for digest in models}
        paths |= set(self._reports(lost, runs)) | {".clearwell/data_docs"} | set(self._from_before(lost, runs))
        return Doomed(
            paths=tuple(sorted(paths)),
            versions=tuple(versions),
            objects=tuple(sorted(({object_name(f.where) for f in found} | lost) - {""})),
            runs={run: names for run in sorted(runs) if (names := self._artifacts(run, retired))},
            logged_models=tuple(self._logged_models(runs)),
            models=tuple(sorted(models)),
        )

    def delete(self, doomed: Doomed, certificate: str) -> dict[str, int]:
        """Delete what is listed, then whatever the search still finds; returns how much of what.

        Raises
        ------
        ErasureError
            If something can not be taken away.
        """
        counts = {"files, folders and object versions": 0, "DVC objects and lists": 0, "runs with artifacts": 0}
        for ref in doomed.versions:
            self._tombstone(ref, certificate)
        for run, names in doomed.runs.items():
            self._delete_artifacts(run, names)
            counts["runs with artifacts"] += 1
        for model in doomed.logged_models:
            self._delete_logged_model(model)
        for where in doomed.paths:
            counts["files, folders and object versions"] += self.places.remove(where)
        counts["DVC objects and lists"] = self._delete_objects(doomed)
        for folder in self.places.site_caches:
            self.places.remove(str(folder))
        for _ in range(ROUNDS):
            self.places.disks.settle()
            found = self.search().findings
            if not found:
                return counts
            for where in dict.fromkeys(f.where for f in found):
                if self.places.is_database(where):
                    self.places.redact(where, self.rows.ids)
                for unit in self.places.unit(where) if not self.places.is_database(where) else ():
                    counts["files, folders and object versions"] += self.places.remove(unit)
            self.places.rewrite(f.where for f in found)
        self.places.disks.settle()
        left = sorted({f.where for f in self.search().findings})
        if left:
            raise ErasureError(
                f"Something of the rows is still in {len(left)} places after {ROUNDS} rounds: {', '.join(left[:5])}. "
                "Delete it there, then continue with `clearwell forget --resume`.",
                places=left,
            )
        return counts

    # ---- what descends from the rows

    def _descent(self, lost: set[str], kept: set[str]) -> tuple[set[str], set[str], set[str]]:
        """Records, models and runs that were made from lost versions, or from models that were."""
        tainted, records, runs, models = set(lost), set[str](), set[str](), set[str]()
        known = [
            (folder.relative_to(self.root).as_posix(), result, set(inputs.values()))
            for folder, result, inputs in self.project.cache.records()
        ]
        before = -1
        while before != len(tainted) + len(records):
            before = len(tainted) + len(records)
            for folder, result, read in known:
                made = {ref.version for ref in result.references if isinstance(ref, DatasetRef)}
                if (read | made) & tainted:
                    records.add(folder)
                    runs.add(result.run_id)
                    if result.model is not None and result.model.digest not in kept:
                        models.add(result.model.digest)
                        tainted.add(result.model.digest)
        return records, models, runs - {""}

    def _weights_of(self, retired: Collection[tuple[str, str]]) -> set[str]:
        client = self.project.tracker.client
        tags = [client.get_model_version(name, version).tags for name, version in retired]
        return {tag["clearwell.model"] for tag in tags if "clearwell.model" in tag}

    def _runs_on(self, lost: set[str], tracker: Tracker) -> set[str]:
        """Runs that read or wrote a lost version, and the flow runs above them."""
        digests, found = {version[:32] for version in lost}, set()
        for run in _all_runs(tracker):
            used = {each.dataset.digest for each in run.inputs.dataset_inputs} if run.inputs else set()
            if used & digests:
                found |= {run.info.run_id, run.data.tags.get("mlflow.parentRunId", run.info.run_id)}
        return found

    def _from_before(self, lost: set[str], runs: set[str]) -> Iterator[str]:
        """Artifacts, in folders, of runs that were made without the stack: its tracking server does not know them."""
        settings = self.project.settings
        tracking = Tracking(experiment=settings.tracking.experiment)
        before = settings.model_copy(update={"tracking": tracking})
        if before.tracking_uri == settings.tracking_uri or not (settings.state / "mlflow.db").exists():
            return
        for run in runs | self._runs_on(lost, Tracker(before)):
            folder = self.root / tracking.artifacts / run
            if folder.exists():
                yield folder.relative_to(self.root).as_posix()

    def _artifacts(self, run: str, retired: Collection[tuple[str, str]]) -> list[str]:
        """Artifacts of a run that go: all of them, but for the model of a registered version that lives."""
        from mlflow.exceptions import MlflowException

        client = self.project.tracker.client
        try:
            names = [file.path for file in client.list_artifacts(run)]
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # it was made without the stack, see _from_before
                return []
            raise
        versions = client.search_model_versions(f"run_id = '{run}'")
        living = [v for v in versions if (v.name, str(v.version)) not in retired and "clearwell.retired" not in v.tags]
        return [name for name in names if not (living and name == ARTIFACT)]

    def _logged_models(self, runs: set[str]) -> list[str]:
        tracker = self.project.tracker
        found = tracker.client.search_logged_models([tracker.experiment], max_results=1000)
        return [model.model_id for model in found if model.source_run_id in runs]

    def _reports(self, lost: set[str], runs: set[str]) -> Iterator[str]:
        """Folders of reports that name a lost version, in full or shortened, or a run that goes."""
        names = {version[:12] for version in lost} | runs
        for file in (self.root / "reports").glob("*/summary.json"):
            text = file.read_text()
            if any(name in text for name in names):
                yield file.parent.relative_to(self.root).as_posix()

    # ---- taking it away

    def _tombstone(self, ref: DatasetRef, certificate: str) -> None:
        self.project.versions.bury(ref, f"rows of it were erased; certificate {certificate}")

    def _delete_artifacts(self, run: str, names: Collection[str]) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        tracker = self.project.tracker
        there = {file.path for file in tracker.client.list_artifacts(run)}
        repository = get_artifact_repository(
            tracker.client.get_run(run).info.artifact_uri, tracking_uri=self.project.settings.tracking_uri
        )
        for name in names:
            if name in there:
                repository.delete_artifacts(name)
        self._purge_bucket(f"{run}/artifacts/", names)

    def _delete_logged_model(self, model: str) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client = self.project.tracker.client
        try:
            found = client.get_logged_model(model)
        except MlflowException:  # deleted by an attempt before
            return
        get_artifact_repository(
            found.artifact_location, tracking_uri=self.project.settings.tracking_uri
        ).delete_artifacts()
        client.delete_logged_model(model)
        self._purge_bucket(f"models/{model}/artifacts/", [""])

    def _purge_bucket(self, within: str, names: Collection[str]) -> None:
        """Every version of what MLflow deleted in a bucket that keeps old versions, and the marks of deletion."""
        store = self.project.object_store
        if store is None:
            return
        for found in list(store.versions(store.buckets.artifacts)):
            _, inside, rest = found.key.partition(within)
            if inside and any(not name or rest == name or rest.startswith(f"{name}/") for name in names):
                store.client.delete_object(Bucket=found.bucket, Key=found.key, VersionId=found.version)

    def _delete_objects(self, doomed: Doomed) -> int:
        """Delete objects from DVC's caches and remotes, with every list of files that names one of them."""
        gone, count = set(doomed.objects), 0
        for base in [*self.places.caches, *self.places.local_remotes.values()]:
            for path in sorted((base / "files" / "md5").glob("??/*")):
                name = object_name(str(path))
                if name in gone or (name.endswith(".dir") and _names_any(path.read_bytes(), gone)):
                    path.chmod(0o600)
                    path.unlink()
                    count += 1
        pins = [f"{ref.name}/{PurePosixPath(ref.uri).name}.dvc" for ref in doomed.versions]
        return count + self._delete_from_bucket(gone, pins)

    def _delete_from_bucket(self, gone: set[str], pins: Collection[str]) -> int:
        store = self.project.object_store
        if store is None:
            return 0
        count = sum(store.purge(store.buckets.data, f"{PINS}/{pin}") for pin in pins)
        for found in list(store.versions(store.buckets.data)):
            name = object_name(found.key)
            listed = name.endswith(".dir") and not found.deleted
            if name in gone or (listed and _names_any(store.read(found.bucket, found.key, found.version), gone)):
                store.client.delete_object(Bucket=found.bucket, Key=found.key, VersionId=found.version)
                count += 1
        return count


def _all_runs(tracker: Tracker) -> Iterator[Any]:
    token = None
    while True:
        page = tracker.client.search_runs([tracker.experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _names_any(listing: bytes, objects: set[str]) -> bool:
    try:
        return any(entry["md5"] in objects for entry in json.loads(listing))
    except (ValueError, TypeError, KeyError):
        return False
