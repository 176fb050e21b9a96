"""Erasure of rows: the plan, the list of what has to go, its deletion, the search that proves it, the certificate.

    plan -> data -> models -> retire -> list -> delete -> search -> certificate

The steps are noted in a journal beside the ledger, and every one of them can be done again. Ids never enter a database:
they stand in ``.clearwell/erasures/<request>/rows.json``, which its owner alone can read, until the certificate is
filed.
"""

from __future__ import annotations

import difflib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from infra import datasets as ds
from infra import traces
from infra.data_remote import DataRemote
from infra.errors import ConfigurationError, DataError, ErasureError, StoreError
from infra.files import draft_folder, publish
from infra.journal import Journal, Unfinished
from infra.model_registry import CHAMPION
from infra.places import ROOM, Finding, Places
from infra.project import Project
from infra.references import DatasetRef, ModelRef, Reference
from infra.working_copy import DATA, PIN, names

KIND = "erasure"
LEASE = "erasure"
BESIDE = ("-truth", "-erasure", "-quarantine")  # versions that hang on a dataset of the same name
Copies = Literal["ask", "erase", "keep"]


class Rows(Reference):
    """What an erasure under way has to know of the rows; removed with its last step.

    Attributes
    ----------
    salt : str
    ids : tuple of str
    fingerprints : tuple of traces.Fingerprint
        Of the rows to erase.
    control : tuple of traces.Fingerprint
        Of a row that stays: a search that does not find it proves nothing.
    """

    salt: str
    ids: tuple[str, ...]
    fingerprints: tuple[traces.Fingerprint, ...]
    control: tuple[traces.Fingerprint, ...]


class Affected(Reference):
    """A registered model version whose data held the rows, and what becomes of it."""

    name: str
    version: str
    aliases: tuple[str, ...]
    data: str
    action: Literal["unlearn or retrain", "retire"]


class Plan(Reference):
    """What an erasure will do. It names no id.

    Attributes
    ----------
    subjects : int
        Ids.
    datasets : tuple of str
        Datasets of which a new version is made.
    rows : dict
        Dataset -> split -> rows.
    copies : dict of str to int
        Rows of the same bytes under other ids: dataset -> how many; they are erased too, or stay.
    versions : tuple of DatasetRef
        Dataset versions that hold the rows or name their ids, and will not be rebuildable.
    models : tuple of Affected
    places : dict of str to int
        Place -> files or objects in it that hold something of the rows.
    working_copy : bool
        Whether ``data/`` is rewritten.
    out_of_reach : tuple of str
        What clearwell can not reach, in words.
    reason : str
    accept_no_champion : bool
        Whether to go on when no model passes the gates: the alias then falls away.
    """

    subjects: int
    datasets: tuple[str, ...]
    rows: dict[str, dict[str, int]]
    copies: dict[str, int] = Field(default_factory=dict)
    copies_stay: bool = False
    versions: tuple[DatasetRef, ...]
    models: tuple[Affected, ...]
    places: dict[str, int]
    working_copy: bool
    out_of_reach: tuple[str, ...] = ()
    reason: str = ""
    accept_no_champion: bool = False


class Erasures:
    """The erasures of one project.

    Parameters
    ----------
    project : Project
    """

    def __init__(self, project: Project) -> None:
        self.project, self.root = project, project.root
        self.home = project.settings.state / ROOM
        self.places = Places(project)

    @cached_property
    def journal(self) -> Journal:
        """Where steps are noted."""
        return Journal(self.project.ledger.engine)

    # ---- before

    def examine(
        self, ids: Collection[str], data: str | None = None, copies: Copies = "ask", reason: str = "",
        accept_no_champion: bool = False,
    ) -> tuple[Plan, Rows]:  # fmt: skip
        """What has to be done to forget these ids. Nothing is changed.

        Raises
        ------
        ConfigurationError
            If there are no ids.
        ErasureError
            If the working copy can not be rewritten: it is a link, or files that are no Parquet hold something.
        DataError
            If an id is unknown, if the same bytes stand under other ids and `copies` does not say what to do, or if a
            class would lose its last row.
        """
        wanted = {str(identity) for identity in ids if str(identity).strip()}
        if not wanted:
            raise ConfigurationError("No ids were given. Name them, or a file with one id a line: `--ids FILE`.")
        if (self.root / DATA).is_symlink():
            raise ErasureError(
                f"{DATA} is a link to {(self.root / DATA).resolve()}, and an erasure replaces the folder: what the "
                "link leads to would stay. Move the folder to where the link is, then try again."
            )
        if self.project.object_store is not None:  # versions that only the store has may hold rows as well
            DataRemote(self.project.versions, self.project.object_store).pull()
        sources = self._sources(data)
        everywhere = [*sources.values(), *self._older(sources)]
        self._require_known(wanted, everywhere, sources)
        salt = secrets.token_hex(16)
        same = _copies(sources, wanted)
        if any(same.values()) and copies == "ask":
            listed = ", ".join(f"{i} ({name})" for name, found in same.items() for i in sorted(found)[:5])
            raise DataError(
                f"{sum(map(len, same.values()))} further ids have the same bytes as rows to erase: {listed}. "
                "Erase these too with --with-copies, or let them stay with --keep-copies (they may be somebody "
                "else's; the search then leaves these bytes out).",
                copies={name: sorted(found) for name, found in same.items()},
            )
        if copies == "erase":
            wanted |= set().union(*same.values())
        counts = {name: _count(folder, wanted) for name, folder in sources.items()}
        touched = {name: count for name, count in counts.items() if count}
        for name in touched:
            _require_classes(name, sources[name], wanted)
        rows = self._rows(salt, wanted, sources, everywhere, same if copies == "keep" else {})
        found = self.places.search(traces.Search(salt, rows.fingerprints))
        versions = self.versions_in(found.findings)
        models = tuple(self._affected(versions))
        trained_on = {model.data.partition("@")[0] for model in models if CHAMPION in model.aliases}
        plan = Plan(
            subjects=len(wanted),
            datasets=tuple(dict.fromkeys([*touched, *sorted(trained_on & set(sources))])),
            rows=touched,
            copies={name: len(each) for name, each in same.items() if each},
            copies_stay=copies == "keep",
            versions=tuple(versions),
            models=models,
            places=dict(Counter({f.where: f.place for f in found.findings}.values())),
            working_copy=any(f.where.startswith(f"{DATA}/") for f in found.findings),
            out_of_reach=tuple(self.places.out_of_reach()),
            reason=reason,
            accept_no_champion=accept_no_champion,
        )
        self._require_rewritable(found.findings)
        return plan, rows

    def begin(self, plan: Plan, rows: Rows) -> str:
        """Write the plan down; returns the request, under which it is carried out and continued.

        Raises
        ------
        ErasureError
            If another erasure is not finished.
        """
        unfinished = self.journal.open(KIND)
        if unfinished:
            raise ErasureError(
                f"The erasure {unfinished[0].id} is not finished. Continue it first: `clearwell forget --resume`.",
                request=unfinished[0].id,
            )
        shutil.rmtree(self.home, ignore_errors=True)  # of attempts that were killed before their plan was written
        room = self.home / secrets.token_hex(8)
        room.mkdir(parents=True, mode=0o700)
        file = room / "rows.json"
        file.touch(mode=0o600)
        file.write_text(rows.model_dump_json())
        subject = f"{plan.subjects} ids of {', '.join(plan.datasets)}"
        made = self.journal.begin(KIND, subject, {"plan": plan.model_dump(mode="json"), "room": room.name})
        room.rename(self.home / made)
        return made

    def open(self, request: str = "") -> Unfinished:
        """The journal of a request, by default of the only one that is not finished.

        Raises
        ------
        ErasureError
            If there is none.
        """
        for found in self.journal.open(KIND):
            if request in ("", found.id):
                room = self.home / found.plan["room"]
                if room.exists():
                    room.rename(self.home / found.id)
                return found
        raise ErasureError(f"There is no unfinished erasure {request!r}.".replace(" ''", ""), request=request)

    def rows(self, request: str) -> Rows:
        """The rows of a request."""
        return Rows.model_validate_json((self.home / request / "rows.json").read_text())

    def _sources(self, data: str | None) -> dict[str, Path]:
        """Dataset -> folder of its newest rows: the working copy, else the newest version that no stage made."""
        versions = self.project.versions
        found = {name: self.root / DATA / name for name in names(self.root)}
        for ref in versions.list():
            base = ref.name
            if base not in found and not base.endswith(BESIDE) and not versions.source(ref).startswith(f"{base}@"):
                found[base] = versions.path(ref)
        if data is None:
            return found
        if data not in found:
            raise DataError(f"There is no dataset {data!r}. Known: {', '.join(found) or 'none'}.", data=data)
        return {data: found[data]}

    def _older(self, sources: dict[str, Path]) -> list[Path]:
        """Folders of all versions of these datasets: rows may have left the newest and not the others."""
        found, versions = [], self.project.versions
        for ref in versions.list():
            with suppress(StoreError):  # bytes that are lost can not be read; they are searched as they are
                if ref.name in sources:
                    found.append(versions.path(ref))
        return found

    def _require_known(self, wanted: set[str], everywhere: Sequence[Path], sources: dict[str, Path]) -> None:
        known = {identity for folder in everywhere for identity in _all_ids(folder)}
        unknown = sorted(wanted - known)
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(known)[:50_000], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{len(unknown)} of {len(wanted)} ids are in none of the datasets {', '.join(sources) or '(none)'}: "
                f"{', '.join(unknown[:5])}.{hint} Nothing was changed.",
                unknown=unknown,
            )

    def _require_rewritable(self, findings: Iterable[Finding]) -> None:
        wrong = sorted(
            {f.where for f in findings if f.where.startswith(f"{DATA}/") and not f.where.endswith(".parquet")}
        )
        if wrong:
            raise ErasureError(
                f"{', '.join(wrong[:5])} of the working copy hold something of these rows, and clearwell rewrites "
                "Parquet only. Take the rows out of these files by hand, then try again.",
                files=wrong,
            )

    def _rows(
        self,
        salt: str,
        wanted: set[str],
        sources: dict[str, Path],
        everywhere: Sequence[Path],
        stay: dict[str, set[str]],
    ) -> Rows:
        others = [i for folder in sources.values() for i in _all_ids(folder) if i not in wanted]
        text = "\n".join(others)
        marks: list[traces.Fingerprint] = []
        for identity in sorted(wanted):
            marks += traces.of_id(salt, identity, apart=identity in text)
        kept = _contents(sources.values(), set().union(*stay.values())) if stay else []
        shared = {_bytes(cell) for _, cell in kept}
        for identity, cell in _contents(everywhere, wanted):
            if _bytes(cell) not in shared:
                marks += _of_cell(salt, identity, cell)
        control: list[traces.Fingerprint] = []
        staying = [name for name in sources if _all_ids(sources[name]) - wanted]
        for name in staying[:1]:
            content = dict(_contents([sources[name]], set(others[:2000])))
            chosen = next((i for i in others if i in content), others[0])
            control = traces.of_id(salt, chosen, apart=True) + _of_cell(salt, chosen, content.get(chosen))
        unique = {mark.digest: mark for mark in marks}
        return Rows(salt=salt, ids=tuple(sorted(wanted)), fingerprints=tuple(unique.values()), control=tuple(control))

    def versions_in(self, findings: Iterable[Finding]) -> list[DatasetRef]:
        """Dataset versions of which a shard is among the findings, in their folder or in a cache of DVC."""
        wheres = [f.where for f in findings]
        objects = {object_name(where) for where in wheres} - {""}
        found = []
        for ref in self.project.versions.list():
            listed = {entry["md5"] for entry in self.listing(ref.version)}
            if objects & listed or any(where.startswith(f"{ref.uri}/") for where in wheres):
                found.append(ref)
        return found

    def listing(self, oid: str) -> list[dict[str, str]]:
        """Files of a version by its DVC name, as far as a cache knows it."""
        for cache in self.places.caches:
            path = cache / "files" / "md5" / oid[:2] / oid[2:]
            if path.exists():
                return list(json.loads(path.read_text()))
        return []

    def _affected(self, versions: Sequence[DatasetRef]) -> Iterator[Affected]:
        """Registered versions that learnt from the rows, or of whose data nobody can tell any more."""
        registry = self.project.registry
        held = {ref.version for ref in versions}
        known = {ref.version for ref in self.project.versions.list()}
        for model in self.project.tracker.client.search_registered_models():
            for version in registry.versions(model.name):
                data = version["tags"].get("clearwell.data_version", "")
                if "clearwell.retired" in version["tags"] or (data in known and data not in held):
                    continue
                yield Affected(
                    name=model.name,
                    version=version["version"],
                    aliases=tuple(version["aliases"]),
                    data=version["tags"].get("clearwell.data", ""),
                    action="unlearn or retrain" if CHAMPION in version["aliases"] else "retire",
                )

    # ---- the data

    def rewrite(self, request: str) -> None:
        """Give the working copy, and `data.dvc`, a version without the rows."""
        rows, data = self.rows(request), self.root / DATA
        aside, new = self.home / request / "before", self.home / request / "data"
        if not data.exists() and aside.exists() and new.exists():  # killed between the two renames
            new.rename(data)
        if data.exists():
            held = {
                f.where for f in self.places.search(traces.Search(rows.salt, rows.fingerprints), only=DATA).findings
            }
            if held:
                shutil.rmtree(new, ignore_errors=True)
                with draft_folder(self.home / request) as draft:
                    _copy_without(data, draft, {Path(where).relative_to(DATA).as_posix() for where in held}, rows.ids)
                    publish(draft, new)
                shutil.rmtree(aside, ignore_errors=True)
                data.rename(aside)
                new.rename(data)
        shutil.rmtree(aside, ignore_errors=True)
        self._repin()

    def _repin(self) -> None:
        if not (self.root / PIN).exists() or not (self.root / ".dvc" / "config").exists():
            return
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        with Repo(str(self.root)) as repo:
            repo.add([str(self.root / DATA)])
            if repo.config.get("core", {}).get("remote") or repo.config.get("remote"):
                try:
                    repo.push([str(self.root / PIN)])
                except DvcException as error:
                    raise ErasureError(
                        f"The new version of {DATA} could not be pushed: {error}. Mend the remote (`dvc remote list`), "
                        "then continue with `clearwell forget --resume`."
                    ) from error

    def renew(self, name: str, request: str) -> DatasetRef:
        """The version of a dataset of which there is no working copy, without the rows."""
        rows = self.rows(request)
        source = self._sources(name)[name]

        def write(target: Path) -> int:
            held = {path.relative_to(source).as_posix() for path in source.rglob("*.parquet")}
            _copy_without(source, target, held, rows.ids)
            return ds.count_rows(target)

        return self.project.versions.add(name, write, source="erasure")

    def without(self, ref: DatasetRef, request: str) -> DatasetRef:
        """A version of what `ref` is, without the rows."""
        rows, source = self.rows(request), self.project.versions.path(ref)

        def write(target: Path) -> int:
            held = {path.relative_to(source).as_posix() for path in source.rglob("*.parquet")}
            _copy_without(source, target, held, rows.ids)
            return ds.count_rows(target)

        return self.project.versions.add(ref.name, write, source=f"{ref.name}@erasure")

    def id_list(self, name: str, request: str) -> DatasetRef:
        """The ids as a dataset version, for the stages; it goes with the rows."""
        ids = list(self.rows(request).ids)

        def write(target: Path) -> int:
            (target / "ids").mkdir()
            pq.write_table(pa.table({"id": ids}), target / "ids" / "part-00000.parquet")
            return len(ids)

        return self.project.versions.add(f"{name}-erasure", write, source="erasure")

    def rows_in(self, ref: DatasetRef, request: str) -> dict[str, int]:
        """Split -> rows of the request in a version."""
        return _count(self.project.versions.path(ref), set(self.rows(request).ids))

    def speaks_of(self, truth: DatasetRef, data: DatasetRef) -> bool:
        """Whether a truth knows every row of a version."""
        known, versions = _all_ids(self.project.versions.path(truth)), self.project.versions
        return _all_ids(versions.path(data)) <= known

    def network_of(self, digest: str) -> ModelRef | None:
        """The network that was compressed to the model `digest`, if it is still there."""
        for _, result, inputs in self.project.cache.records():
            if result.stage == "compress" and result.model is not None and result.model.digest == digest:
                found = model_ref("network", inputs.get("model", ""))
                if self.project.models.intact(found):
                    return found
        return None


def model_ref(name: str, digest: str) -> ModelRef:
    """Reference of a stored model by its digest."""
    return ModelRef(name=name, uri=f".clearwell/models/{digest[:20]}", digest=digest)


def _of_cell(salt: str, identity: str, cell: Any) -> list[traces.Fingerprint]:
    if isinstance(cell, str):
        return traces.of_text(salt, identity, cell)
    content = _bytes(cell)
    return traces.of_image(salt, identity, content, ds.decode(cell)) if content and len(content) >= 16 else []


def _bytes(cell: Any) -> bytes:
    if isinstance(cell, str):
        return cell.encode()
    return bytes((cell or {}).get("bytes") or b"")


def _tables(folder: Path, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """The named columns of every shard, as far as it has them, with the shard's split."""
    for path in sorted(folder.glob("*/*.parquet")):
        present = [name for name in columns if name in pq.read_schema(path).names]
        if "id" in present:
            yield path.parent.name, pq.read_table(path, columns=present)


def _all_ids(folder: Path) -> set[str]:
    return {str(i) for _, table in _tables(folder, ["id"]) for i in table["id"].to_pylist() if i is not None}


def _count(folder: Path, ids: set[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for split, table in _tables(folder, ["id"]):
        hits = sum(str(i) in ids for i in table["id"].to_pylist())
        if hits:
            found[split] += hits
    return dict(found)


def _contents(folders: Iterable[Path], ids: set[str]) -> list[tuple[str, Any]]:
    """Image or text cell of every row of these ids, equal ones once."""
    found: dict[tuple[str, bytes], Any] = {}
    for folder in folders:
        for _, table in _tables(folder, ["id", "image", "text"]):
            mask = pc.is_in(table["id"].cast(pa.string()), pa.array(sorted(ids), pa.string()))
            for row in table.filter(mask).to_pylist():
                cell = row.get("image") or row.get("text")
                if cell:
                    found.setdefault((str(row["id"]), _bytes(cell)), cell)
    return [(identity, cell) for (identity, _), cell in found.items()]


def _copies(sources: dict[str, Path], ids: set[str]) -> dict[str, set[str]]:
    """Other ids whose image or text is byte for byte that of a row to erase."""
    own = {_bytes(cell) for _, cell in _contents(sources.values(), ids)} - {b""}
    found: dict[str, set[str]] = {}
    for name, folder in sources.items():
        for _, table in _tables(folder, ["id", "image", "text"]):
            for row in table.to_pylist():
                cell = row.get("image") or row.get("text")
                if cell and row["id"] is not None and str(row["id"]) not in ids and _bytes(cell) in own:
                    found.setdefault(name, set()).add(str(row["id"]))
    return found


def _require_classes(name: str, folder: Path, ids: set[str]) -> None:
    """Refuse to take the last training row of a class: no model could know it any more."""
    if not (folder / "train").exists():
        return
    before: Counter[int] = Counter()
    gone: Counter[int] = Counter()
    for split, table in _tables(folder, ["id", "label"]):
        if split == "train" and "label" in table.column_names:
            for identity, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
                before[label] += 1
                gone[label] += str(identity) in ids
    lost = [label for label, count in before.items() if label is not None and label >= 0 and gone[label] == count]
    if lost:
        labels = ds.read_split(folder, "train").features["label"]
        called = ", ".join(labels.names[label] if hasattr(labels, "names") else str(label) for label in lost)
        raise DataError(
            f"Erasing these ids would leave no training row of {called} in {name!r}, and no model could know "
            "it any more. Add rows of it first, or import the data without this class under the same name.",
            labels=lost,
        )


def _copy_without(source: Path, target: Path, held: set[str], ids: Sequence[str]) -> None:
    """Copy a folder; the Parquet files in `held` without the rows of `ids`, and without their names elsewhere."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        name = path.relative_to(source).as_posix()
        new = target / name
        new.parent.mkdir(parents=True, exist_ok=True)
        if name in held and path.suffix == ".parquet":
            table = _table_without(pq.read_table(path), ids)
            if table.num_rows or path.parent.name != "erasure":  # an empty list of ids is none
                pq.write_table(table, new)
        else:
            shutil.copyfile(path, new)


def _table_without(table: pa.Table, ids: Sequence[str]) -> pa.Table:
    named = pa.array(list(ids), pa.string())
    if "id" in table.column_names:
        mask = pc.is_in(table["id"].cast(pa.string()), named)
        table = table.filter(pc.invert(pc.fill_null(mask, False)))
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            column = table.column(number)
            for identity in ids:
                hit = pc.fill_null(pc.match_substring(column, identity), False)
                if pc.any(hit).as_py():
                    column = pc.if_else(hit, pc.replace_substring(column, identity, ""), column)
            table = table.set_column(number, field, column)
    return table


def object_name(where: str) -> str:
    """DVC's name of an object from where it stands in a cache or remote; empty elsewhere."""
    parts = Path(where.partition("?version=")[0]).parts
    if len(parts) >= 4 and parts[-4:-2] == ("files", "md5"):
        return parts[-2] + parts[-1]
    return ""
