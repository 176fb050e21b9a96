"""Every place of a project where the bytes of a row may stand, and how they are taken away there.

Folders of the project, DVC's caches, remotes and site caches, the row cache of Hugging Face, databases in files and on
PostgreSQL, and every version of every object in the object store. What another program keeps elsewhere (a remote that
only DVC can reach, Git's history, a person's copy) is named, not searched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from infra.disks import Disks, look_at
from infra.errors import StoreError
from infra.object_store import ObjectStore, StoredObject
from infra.project import Project
from infra.references import Reference
from infra.stack.backup import ASIDE, backups
from infra.traces import Sealed, Search, Trace, is_sqlite

if TYPE_CHECKING:
    import sqlalchemy as sa
    from dvc.repo import Repo

ROOM = "erasures"  # below .clearwell: what an erasure under way has to know, removed at its end
_LABELS = {
    ".clearwell/versions/.dvc": "DVC cache",
    ".clearwell/versions": "dataset versions",
    ".clearwell/cache": "stage results and figures",
    ".clearwell/models": "models",
    ".clearwell/artifacts": "MLflow artifacts",
    ".clearwell/arrow": "row cache",
    ".clearwell/data_docs": "validation results",
    ".clearwell/prefect": "Prefect",
    ".clearwell/mlflow.db": "MLflow database",
    ".clearwell/ledger.db": "ledger",
    ".clearwell": "other files",
    ".dvc": "DVC cache",
    "data": "working copy",
    "reports": "reports",
}


class Finding(Reference):
    """Something of an erased row in one place.

    Attributes
    ----------
    place : str
        In words.
    where : str
        Path relative to the project, or address of one version of an object.
    inside : str
        Member or column of it.
    kind : str
        What was found: an id, an image, its pixels, ...
    subject : str
        Salted digest of the row's id.
    """

    place: str
    where: str
    inside: str
    kind: str
    subject: str


class Searched(Reference):
    """What a search came to."""

    findings: tuple[Finding, ...] = ()
    places: dict[str, int] = Field(default_factory=dict)
    bytes: int = 0
    unopened: tuple[str, ...] = ()


class Item(NamedTuple):
    """One thing to search: a file, or one version of an object."""

    place: str
    where: str
    size: int
    look: Callable[[Search], list[Trace]]


class Places:
    """The places of one project.

    Parameters
    ----------
    project : Project
    """

    def __init__(self, project: Project) -> None:
        self.project, self.root, self.state = project, project.root, project.settings.state
        self.disks = Disks(project.settings)

    def search(self, search: Search, only: str = "") -> Searched:
        """Look for fingerprints everywhere, or below one path of the project.

        Raises
        ------
        StoreError
            If the project has a stack and it is down, so that not everything could be searched.
        """
        if not only and self.disks.here and self.project.object_store is None:
            raise StoreError(
                "The stack of this project is down, and what its stores hold could not be searched. Start it with "
                "`clearwell up`, then try again."
            )
        findings: dict[tuple[str, ...], Finding] = {}
        places: dict[str, int] = {}
        unopened, total = [], 0
        for item in self.items():
            if only and item.where != only and not item.where.startswith(f"{only}/"):
                continue
            places[item.place] = places.get(item.place, 0) + 1
            total += item.size
            try:
                found = item.look(search)
            except FileNotFoundError:  # gone meanwhile
                continue
            except Sealed as error:
                unopened.append(f"{item.where}: {error}")
                found = error.found
            for trace in found:
                mark = trace.fingerprint
                key = (item.where, trace.inside, mark.kind, mark.subject)
                findings[key] = Finding(
                    place=item.place, where=item.where, inside=trace.inside, kind=mark.kind, subject=mark.subject
                )
        return Searched(
            findings=tuple(findings.values()),
            places=dict(sorted(places.items())),
            bytes=total,
            unopened=tuple(unopened),
        )

    def items(self) -> Iterator[Item]:
        """Everything there is to search."""
        for label, folder in self.folders():
            for path in _files(folder):
                if not self._skipped(path):
                    yield self._file(label, path)
        yield from self._disks()
        yield from self._objects()
        yield from self._tables()

    def folders(self) -> list[tuple[str, Path]]:
        """Local places, none of them inside another."""
        wanted = [("", self.root / name) for name in (".clearwell", ".dvc", "data", "reports")]
        wanted += [("DVC cache", cache) for cache in self.caches]
        wanted += [("DVC remote", folder) for folder in self.local_remotes.values()]
        wanted += [("DVC site cache", folder) for folder in self.site_caches]
        wanted.append(("row cache", Path(os.environ.get("HF_DATASETS_CACHE", self.state / "arrow"))))
        artifacts = self.project.settings.artifact_root or ""
        if artifacts.startswith("file://"):
            wanted.append(("MLflow artifacts", Path(artifacts.removeprefix("file://"))))
        kept: dict[Path, tuple[str, Path]] = {}  # by where links lead, so that nothing is searched twice
        for label, folder in wanted:
            whole = folder.resolve()
            if whole.exists() and not any(whole.is_relative_to(other) for other in kept):
                kept[whole] = (label, folder)
        return list(kept.values())

    @cached_property
    def caches(self) -> list[Path]:
        """Folders of DVC's caches: the project's and that of the versions."""
        return list(dict.fromkeys(Path(repo.cache.local.path).parents[1] for repo in self._repos()))

    @cached_property
    def local_remotes(self) -> dict[str, Path]:
        """DVC remotes that are folders of this machine."""
        found = {}
        for name, url in self._remotes().items():
            if "://" not in url:
                found[name] = Path(url) if Path(url).is_absolute() else (self.root / ".dvc" / url).resolve()
        return found

    @cached_property
    def site_caches(self) -> list[Path]:
        """Where DVC keeps indexes of this project outside of it."""
        return [Path(repo.site_cache_dir) for repo in self._repos()]

    def out_of_reach(self) -> list[str]:
        """Places that clearwell can not search, in words."""
        store = self.project.object_store
        lines = []
        for name, url in self._remotes().items():
            inside = store is not None and url.startswith(f"s3://{store.buckets.data}")
            if "://" in url and not inside:
                lines.append(f"the DVC remote {name!r} ({url}): delete there by hand what `dvc` names")
        if any((folder / ".git").exists() for folder in (self.root, *self.root.parents)):
            lines.append("Git: what was ever committed stays in its history; rewrite it if rows were")
        if not self.disks.here and self.databases():
            lines.append("the disk of the PostgreSQL server, which runs elsewhere: its write-ahead log and its backups")
        if not self.disks.here and store is not None:
            lines.append(f"the disk of the object store at {store.settings.endpoint}, which runs elsewhere")
        for made, path in backups(self.project.settings):
            lines.append(f"the backup of {made}, {path}: make a new one when all is done, and delete it")
        for aside in sorted(self.root.glob(f"{ASIDE}*")):
            lines.append(f"{aside.name}, which a restore moved aside: delete it")
        return lines

    def _repos(self) -> list[Repo]:
        from dvc.repo import Repo

        repos: list[Repo] = [self.project.versions.repo]
        if (self.root / ".dvc" / "config").exists():
            repos.append(Repo(str(self.root)))
        return repos

    def _remotes(self) -> dict[str, str]:
        found = {}
        for repo in self._repos():
            for name, remote in repo.config.get("remote", {}).items():
                found[name] = str(remote["url"])
        return found

    def _skipped(self, path: Path) -> bool:
        return path.is_relative_to(self.state / ROOM) or self.disks.holds(path) or path.name.endswith("-shm")

    def _file(self, label: str, path: Path) -> Item:
        where = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        if not label:
            label = next(
                name
                for start, name in _LABELS.items()
                if where == start or where.startswith((f"{start}/", f"{start}-"))
            )
        return Item(label, where, path.stat().st_size if path.exists() else 0, lambda search: search.file(path))

    def _disks(self) -> Iterator[Item]:
        for place, path in self.disks.files():
            with suppress(FileNotFoundError):  # a server may take it away meanwhile
                where = path.relative_to(self.root).as_posix()
                yield Item(place, where, path.stat().st_size, partial(look_at, path))

    def _objects(self) -> Iterator[Item]:
        store = self.project.object_store
        if store is None:
            return
        for bucket in (store.buckets.data, store.buckets.artifacts, store.buckets.results):
            for found in store.versions(bucket):
                if found.deleted or found.key.endswith("/"):
                    continue

                where = f"s3://{bucket}/{found.key}?version={found.version}"
                yield Item(f"bucket {bucket}", where, found.size, partial(_look_at_object, store, found))

    def _tables(self) -> Iterator[Item]:
        """Tables of the databases that are servers."""
        import sqlalchemy as sa

        for name, url in self.databases().items():
            engine = sa.create_engine(url)
            with closing(engine.connect()) as connection:
                tables = sa.inspect(connection).get_table_names()

            for table in tables:
                yield Item(f"database {name}", f"postgresql:{name}/{table}", 0, partial(_look_at_table, engine, table))

    def databases(self) -> dict[str, str]:
        """Name -> address of the databases on PostgreSQL, as far as they are known."""
        import sqlalchemy as sa

        ledger = sa.make_url(self.project.settings.ledger_url)
        if not ledger.drivername.startswith("postgresql"):
            return {}
        found = {str(ledger.database): ledger}
        credentials = self.state / "stack" / "credentials.json"
        if credentials.exists():
            words = json.loads(credentials.read_text()).get("postgres", {})
            for role in ("prefect", "mlflow"):
                if role in words:
                    found[role] = ledger.set(username=role, password=words[role], database=role)
        return {name: url.render_as_string(hide_password=False) for name, url in found.items()}

    def unit(self, where: str) -> list[str]:
        """What has to go as a whole when something was found in the file `where`; empty for what is rewritten."""
        parts = Path(where).parts
        if parts[0] == "data" or self.disks.holds(self.root / where):
            return []
        if parts[:2] == (".clearwell", "versions") and len(parts) > 3 and parts[2] != ".dvc":
            folder = Path(*parts[:4])
            folder = folder.with_suffix("") if folder.suffix == ".dvc" else folder
            return [folder.as_posix(), f"{folder.as_posix()}.dvc"]
        depth = {"cache": 4, "models": 3, "data_docs": 2}.get(parts[1] if len(parts) > 1 else "", 0)
        if parts[0] == ".clearwell" and depth:
            return [Path(*parts[:depth]).as_posix()]
        if parts[0] == "reports":
            return [Path(*parts[:2]).as_posix()]
        return [where] if not where.endswith(".arrow") else [Path(where).parent.as_posix()]

    def remove(self, where: str) -> bool:
        """Take away a file, a folder or one version of an object; returns whether it was there."""
        if where.startswith("s3://"):
            bucket, _, rest = where.removeprefix("s3://").partition("/")
            key, _, version = rest.rpartition("?version=")
            store = self.project.object_store
            assert store is not None
            store.client.delete_object(Bucket=bucket, Key=key, VersionId=version)
            return True
        path = self.root / where
        if path.is_dir():
            shutil.rmtree(path)
            return True
        there = path.exists()
        path.unlink(missing_ok=True)
        return there

    def redact(self, where: str, ids: Iterable[str]) -> None:
        """Overwrite ids in the text cells of a database, and leave no free page that still holds them."""
        import sqlalchemy as sa

        if where.startswith("postgresql:"):
            name, _, only = where.removeprefix("postgresql:").partition("/")
            engine = sa.create_engine(self.databases()[name])
        else:
            only = ""
            engine = sa.create_engine(
                f"sqlite:///{self.root / where.removesuffix('-wal')}", connect_args={"timeout": 30}
            )
        with engine.begin() as connection:
            inspector = sa.inspect(connection)
            for table in [only] if only else inspector.get_table_names():
                if table not in ("ledger", "ledger_head"):  # a chain that may not be changed; no id is ever filed there
                    texts = [c["name"] for c in inspector.get_columns(table) if _is_textual(c["type"])]
                    _overwrite(connection, table, texts, ids)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.exec_driver_sql("VACUUM")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            else:
                connection.exec_driver_sql(f'VACUUM FULL "{only}"')
        engine.dispose()

    def rewrite(self, wheres: Iterable[str]) -> None:
        """Have the stack's databases written anew in which something was found, in their tables or on their disk."""
        wheres = tuple(wheres)
        tables = [where.removeprefix("postgresql:") for where in wheres if where.startswith("postgresql:")]
        self.disks.rewrite({table.partition("/")[0] for table in tables}, [self.root / where for where in wheres])

    def is_database(self, where: str) -> bool:
        """Whether a finding stands in a database, which is redacted and not removed."""
        path = self.root / where.removesuffix("-wal")
        return where.startswith("postgresql:") or (path.is_file() and is_sqlite(path))


def _look_at_object(store: ObjectStore, found: StoredObject, search: Search) -> list[Trace]:
    try:
        return search.content(store.read(found.bucket, found.key, None if found.version == "null" else found.version))
    except StoreError:  # gone meanwhile
        return []


def _look_at_table(engine: sa.Engine, table: str, search: Search) -> list[Trace]:
    import sqlalchemy as sa

    with engine.connect() as connection:
        rows = connection.execute(sa.text(f'select * from "{table}"').execution_options(yield_per=1000))
        return search.cells(rows, table)


def _is_textual(kind: object) -> bool:
    import sqlalchemy as sa

    return isinstance(kind, sa.String | sa.JSON | sa.types.NullType) and not isinstance(kind, sa.Enum)


def _overwrite(connection: sa.Connection, table: str, columns: list[str], ids: Iterable[str]) -> None:
    """Write something else where an id stands, also inside a longer text."""
    import sqlalchemy as sa

    forms = [form for identity in ids for form in dict.fromkeys((identity, json.dumps(identity)[1:-1]))]
    for column in columns:
        text = f'CAST("{column}" AS TEXT)'
        for form in forms:
            holds = {"like": f"%{form}%"}
            if connection.execute(sa.text(f'SELECT 1 FROM "{table}" WHERE {text} LIKE :like LIMIT 1'), holds).first():
                new = f"replace({text}, :old, '(erased)')"
                if connection.dialect.name == "postgresql":
                    new = f"CAST({new} AS {_type_name(connection, table, column)})"
                change = f'UPDATE "{table}" SET "{column}" = {new} WHERE {text} LIKE :like'
                connection.execute(sa.text(change), {"old": form, **holds})


def _type_name(connection: sa.Connection, table: str, column: str) -> str:
    import sqlalchemy as sa

    query = "select data_type from information_schema.columns where table_name = :table and column_name = :column"
    return str(connection.execute(sa.text(query), {"table": table, "column": column}).scalar_one())


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path
