"""The MLflow model registry with what it lacks: gates with verdicts, compare-and-set promotion, rollback, history."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.alias_moves import CANDIDATE, CHAMPION, MOVES, PREVIOUS, AliasMoves
from infra.errors import ConfigurationError, LeaseHeldError, PromotionError, StoreError
from infra.files import draft_folder
from infra.gates import Measured, Verdict, gates_digest, judge
from infra.leases import Lease
from infra.ledger import Ledger
from infra.references import Reference
from infra.registered_files import faults, fetch, stored_digests
from infra.settings import Settings
from infra.tracking import Tracker

__all__ = ["CANDIDATE", "CHAMPION", "PREVIOUS", "Explanation", "ModelRegistry", "Verdict", "VersionRef"]

_METRIC_TAG, _FILES_TAG = "clearwell.metric.", "clearwell.files"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z][A-Za-z0-9_-]{0,99}", re.IGNORECASE)


class VersionRef(Reference):
    """A registered model version and the alias it holds."""

    name: str
    version: str
    alias: str | None = None
    verdicts: tuple[Verdict, ...] = ()


class Explanation(Reference):
    """Why a version may or may not become champion.

    Attributes
    ----------
    aliases : tuple of str
        What the version holds now.
    verdicts : tuple of Verdict
        Of today's gates against today's champion.
    judged : str
        When the latest verdicts were filed, against whom, and whether they still count.
    approval : str
        Whether a person has to approve, and who did.
    files : str
        State of the registered bytes.
    retired : str or None
        Why the version was retired.
    obstacles : tuple of str
        What stands between the version and the alias ``champion``; empty when it may be promoted.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    judged: str
    approval: str
    files: str
    retired: str | None
    obstacles: tuple[str, ...]

    @property
    def promotable(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.obstacles


class ModelRegistry:
    """Register, judge, promote and roll back model versions.

    Parameters
    ----------
    settings : Settings
    tracker : Tracker
    ledger : Ledger
    """

    def __init__(self, settings: Settings, tracker: Tracker, ledger: Ledger) -> None:
        self.settings, self.tracker, self.ledger = settings, tracker, ledger

    @cached_property
    def moves(self) -> AliasMoves:
        """Moves of aliases."""
        return AliasMoves(self.tracker, self.ledger)

    def register(
        self, name: str, run: str, key: str, description: str, tags: Mapping[str, str], measured: Measured
    ) -> str:
        """Make a version from the artifact ``model`` of `run`; the same `key` gives the same version again.

        What is measured of it now takes the place of what was measured before. The digests of the artifact's files are
        kept with the version. Should a version of that key no longer have its files, a new one is made.

        Raises
        ------
        ConfigurationError
            If `name` can not name a model.
        StoreError
            If the artifact did not arrive as it was made.
        """
        self._make_model(name)
        flat = {f"{_METRIC_TAG}{s}.{m}": repr(float(v)) for s, values in measured.items() for m, v in values.items()}
        for version in self._versions(name):
            if version.tags.get("clearwell.key") == key and not self.file_faults(name, str(version.version)):
                for tag in flat.keys() - {tag for tag, value in version.tags.items() if flat.get(tag) == value}:
                    self.tracker.client.set_model_version_tag(name, str(version.version), tag, flat[tag])
                self._file_registration(name, str(version.version))
                return str(version.version)
        files = json.dumps(stored_digests(self.tracker, run), sort_keys=True)
        made = self.tracker.client.create_model_version(
            name,
            source=f"runs:/{run}/model",
            run_id=run,
            tags={**tags, **flat, "clearwell.key": key, _FILES_TAG: files},
            description=description,
        )
        self._file_registration(name, str(made.version))
        return str(made.version)

    def measured(self, name: str, version: str) -> dict[str, dict[str, float]]:
        """What was measured of a version when it was last registered: split -> metric -> value."""
        found: dict[str, dict[str, float]] = {}
        for tag, value in self.tracker.client.get_model_version(name, version).tags.items():
            if tag.startswith(_METRIC_TAG):
                split, _, metric = tag.removeprefix(_METRIC_TAG).partition(".")
                found.setdefault(split, {})[metric] = float(value)
        return found

    def holder(self, name: str, alias: str) -> str | None:
        """The version that holds `alias`, None if nobody does."""
        return self.moves.holders(name).get(alias)

    def candidate(self, name: str) -> str:
        """The version that holds the alias ``candidate``.

        Raises
        ------
        PromotionError
            If there is no such model, or nobody holds it.
        """
        self.require_model(name)
        found = self.holder(name, CANDIDATE)
        if found is None:
            raise PromotionError(
                f"The model {name!r} has no candidate. Name a version: `clearwell promote {name} VERSION`.", model=name
            )
        return found

    def judge(self, name: str, version: str) -> tuple[Verdict, ...]:
        """Hold a version against every gate of the settings and file the verdicts in the ledger."""
        champion = self.holder(name, CHAMPION)
        verdicts = self._hold_against_gates(name, version, champion)
        self.ledger.append(
            "verdicts",
            model=name,
            version=version,
            against=champion,
            gates=gates_digest(self.settings.gates),
            verdicts=[verdict.model_dump() for verdict in verdicts],
        )
        return verdicts

    def verdicts(self, name: str, version: str) -> tuple[Verdict, ...]:
        """The latest verdicts filed for a version; empty if it was never judged."""
        filed = self._judgement(name, version)
        return tuple(Verdict.model_validate(item) for item in filed["payload"]["verdicts"]) if filed else ()

    def promote(
        self, name: str, version: str, alias: str = CHAMPION, reason: str = "", approved_by: str = ""
    ) -> VersionRef:
        """Give `alias` to a version. It becomes champion only if nothing stands in its way.

        Compare-and-set under a lease. Verdicts of other gates than today's, or against a former champion, are made
        anew.

        Parameters
        ----------
        alias : str
        reason : str
            Why; kept in the ledger. Needed with `approved_by`.
        approved_by : str
            The person who approves, where the settings ask for one.

        Raises
        ------
        PromotionError
            With everything that stands in the way: the version does not exist, was retired, lost or changed its files,
            was never judged, failed a gate, or nobody approved.
        LeaseHeldError
            If another promotion of the model is under way.
        LeaseLostError
            If it took longer than the lease; nothing more was changed then.
        """
        _require_alias(alias)
        self.require_version(name, version)
        if approved_by:
            require_approval(approved_by, reason)
        broken = self.file_faults(name, version) if alias == CHAMPION else []  # takes a while, so before the lease
        with self._lease(name) as lease:
            self._catch_up(lease, name)
            before = self.holder(name, alias)
            verdicts = self._valid_verdicts(name, version, before) if alias == CHAMPION else ()
            approved = bool(approved_by) or before == version
            _require_free(name, version, alias, self._obstacles(name, version, alias, verdicts, broken, approved))
            if before != version:
                if approved_by and alias == CHAMPION:
                    self.ledger.append("approved", model=name, version=version, approver=approved_by, reason=reason)
                facts = {"approved_by": approved_by} if approved_by else {}
                self.moves.move(lease, name, version, alias, "promoted", reason=reason or "gates hold", **facts)
        return VersionRef(name=name, version=version, alias=alias, verdicts=verdicts)

    def rollback(self, name: str, reason: str = "") -> VersionRef:
        """Give the champion alias back to the version that held it before.

        Raises
        ------
        PromotionError
            If there is no earlier champion, or it was retired or lost its files.
        """
        with self._lease(name) as lease:
            self._catch_up(lease, name)
            before, earlier = self.holder(name, CHAMPION), self.holder(name, PREVIOUS)
            if earlier is None or earlier == before:
                raise PromotionError(
                    f"The model {name!r} has no earlier champion to roll back to. "
                    f"See its versions with `clearwell history {name}`.",
                    model=name,
                )
            broken = self.file_faults(name, earlier)
            _require_free(name, earlier, CHAMPION, self._bodily_obstacles(name, earlier, broken))
            self.moves.move(lease, name, earlier, CHAMPION, "rollback", reason=reason or "rollback")
        return VersionRef(name=name, version=earlier, alias=CHAMPION)

    def retire(self, name: str, version: str, reason: str) -> None:
        """Withdraw a version for good: it loses its aliases and can not be promoted or rolled back to any more.

        Repeating it does no harm. `reason` stands in the ledger and in every refusal.
        """
        self.require_version(name, version)
        with self._lease(name) as lease:
            self._catch_up(lease, name)
            if version not in self.moves.retired(name):
                with lease.held() as connection:
                    self.ledger.add(connection, "retired", {"model": name, "version": version, "reason": reason})
            self.tracker.client.set_model_version_tag(name, version, "clearwell.retired", reason[:5000])
            self.moves.drop_retired(lease, name)

    def explain(self, name: str, version: str) -> Explanation:
        """Why a version may or may not become champion, verdict by verdict. Nothing is changed or filed."""
        self.require_version(name, version)
        holders = self.moves.holders(name)
        champion, filed = holders.get(CHAMPION), self._judgement(name, version)
        verdicts = self._hold_against_gates(name, version, champion)
        broken = self.file_faults(name, version)
        approval = self._approval(name, version)
        approved = approval is not None or champion == version
        return Explanation(
            name=name,
            version=version,
            aliases=tuple(sorted(alias for alias, held in holders.items() if held == version)),
            verdicts=verdicts,
            judged=self._judged(filed, version, champion),
            approval=_approval_state(approval, self.settings.registry.requires_approval),
            files="; ".join(broken) or "as registered",
            retired=self.moves.retired(name).get(version),
            obstacles=tuple(self._obstacles(name, version, CHAMPION, verdicts, broken, approved)),
        )

    def recover(self) -> list[dict[str, Any]]:
        """Settle moves that were cut short, and note aliases that were moved outside; returns what was found.

        A model whose lease somebody holds is left to them.
        """
        names = {entry["payload"]["model"] for entry in self.ledger.entries("registered")} | self.moves.subjects()
        found: list[dict[str, Any]] = []
        for name in sorted(names):
            try:
                with self._lease(name) as lease:
                    found += self._catch_up(lease, name)
            except LeaseHeldError:
                found.append({"what": "busy", "model": name})
        return found

    def fetch(self, name: str, version: str, to: Path) -> Path:
        """Copy a version's files into the folder `to`, as they were registered.

        Raises
        ------
        StoreError
            If they are no longer what was registered.
        """
        folder = fetch(self.tracker, self._run(name, version), to)
        broken = _file_faults(self._registered_files(name, version), folder)
        if broken:
            raise StoreError(
                f"Version {version} of {name!r} is not used: {'; '.join(broken)}. Make it again with "
                f"`clearwell run --refresh register`, or go back with `clearwell rollback {name}`.",
                model=name,
                version=version,
            )
        return folder

    def file_faults(self, name: str, version: str) -> list[str]:
        """What is wrong with a version's stored files, one line each; empty when they are as registered."""
        with draft_folder(self.settings.state) as draft:
            return _file_faults(
                self._registered_files(name, version), fetch(self.tracker, self._run(name, version), draft)
            )

    def history(self, name: str) -> list[dict[str, Any]]:
        """Ledger entries of a model, oldest first."""
        return [entry for entry in self.ledger.entries() if entry["payload"].get("model") == name]

    def versions(self, name: str) -> list[dict[str, Any]]:
        """Versions with their aliases and measured figures, newest first."""
        found = sorted(self._versions(name), key=lambda v: -int(v.version))
        aliases = self.moves.holders(name) if found else {}
        return [
            {
                "version": str(v.version),
                "aliases": sorted(alias for alias, held in aliases.items() if held == str(v.version)),
                "run": v.run_id,
                "tags": dict(v.tags),
            }
            for v in found
        ]

    def require_model(self, name: str) -> None:
        """Raise PromotionError unless a model of that name is registered."""
        if not self._known(lambda client: client.get_registered_model(name)):
            names = [model.name for model in _pages(self.tracker.client.search_registered_models)]
            raise PromotionError(
                f"There is no registered model {name!r}. Registered models: {', '.join(names) or 'none'}.", model=name
            )

    def require_version(self, name: str, version: str) -> None:
        """Raise PromotionError unless the version exists."""
        if not self._known(lambda client: client.get_model_version(name, version)):
            self.require_model(name)
            known = [v["version"] for v in self.versions(name)]
            raise PromotionError(
                f"There is no version {version!r} of the model {name!r}. Its versions: {', '.join(known) or 'none'}.",
                model=name,
                version=version,
            )

    def _known(self, look_up: Callable[[Any], Any]) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            look_up(self.tracker.client)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise
        return True

    @contextmanager
    def _lease(self, name: str) -> Iterator[Lease]:
        seconds = self.settings.registry.lease_seconds
        with self.ledger.lease(f"promote:{name}", seconds) as lease, self.ledger.kept(lease, seconds):
            yield lease

    def _catch_up(self, lease: Lease, name: str) -> list[dict[str, Any]]:
        """Bring registry and ledger to the same state, whatever happened since the last look."""
        found = self.moves.settle(lease, name)
        found += self.moves.note_drift(lease, name)
        return found + self.moves.drop_retired(lease, name)

    def _make_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name[:80]!r} can not name a registered model. Use letters, digits, '.', '_' and '-' only, "
                "200 at most; see registry.model in mlflow.yaml."
            )
        try:
            self.tracker.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _versions(self, name: str) -> list[Any]:
        quote = '"' if "'" in name else "'"
        return _pages(self.tracker.client.search_model_versions, f"name = {quote}{name}{quote}")

    def _run(self, name: str, version: str) -> str:
        return str(self.tracker.client.get_model_version(name, version).run_id)

    def _registered_files(self, name: str, version: str) -> dict[str, str] | None:
        """Digests as the ledger has them; a version that died on its way there has them in its tags."""
        for entry in self.ledger.entries("registered"):
            payload = entry["payload"]
            if (payload["model"], payload["version"]) == (name, version):
                return payload.get("files")
        tag = self.tracker.client.get_model_version(name, version).tags.get(_FILES_TAG)
        return None if tag is None else dict(json.loads(tag))

    def _hold_against_gates(self, name: str, version: str, champion: str | None) -> tuple[Verdict, ...]:
        mine = self.measured(name, version)
        theirs = self.measured(name, champion) if champion is not None and champion != version else {}
        return tuple(judge(gate, mine, theirs) for gate in self.settings.gates)

    def _judgement(self, name: str, version: str) -> dict[str, Any] | None:
        for entry in reversed(self.ledger.entries("verdicts")):
            if entry["payload"]["model"] == name and str(entry["payload"]["version"]) == str(version):
                return entry
        return None

    def _outdated(self, filed: Mapping[str, Any], version: str, champion: str | None) -> str:
        """Why filed verdicts no longer count; empty when they do."""
        payload = filed["payload"]
        if payload.get("gates") != gates_digest(self.settings.gates):
            return "the gates in mlflow.yaml were changed since"
        if champion != version and payload.get("against") != champion:
            return f"the champion was {payload.get('against') or 'nobody'} then"
        return ""

    def _valid_verdicts(self, name: str, version: str, champion: str | None) -> tuple[Verdict, ...]:
        """The filed verdicts, made anew if they no longer count; a version never judged stays so."""
        filed = self._judgement(name, version)
        if filed is not None and self._outdated(filed, version, champion):
            return self.judge(name, version)
        return self.verdicts(name, version)

    def _judged(self, filed: Mapping[str, Any] | None, version: str, champion: str | None) -> str:
        if filed is None:
            return "never"
        why = self._outdated(filed, version, champion)
        against = filed["payload"].get("against") or "nobody"
        text = f"{filed['time']} by {filed['actor']}, against {against}"
        return f"{text}; to be judged anew, because {why}" if why else text

    def _obstacles(
        self, name: str, version: str, alias: str, verdicts: Sequence[Verdict], broken: Sequence[str], approved: bool
    ) -> list[str]:
        """What stands between a version and an alias, one line each."""
        found = self._bodily_obstacles(name, version, broken)
        if alias != CHAMPION:
            return found
        if self.settings.gates and self._judgement(name, version) is None:
            found.append("it was never judged. Run the lifecycle flow that made it to its end")
        found += [str(verdict) for verdict in verdicts if not verdict.holds]
        asks = self.settings.registry.requires_approval
        if asks and not approved and self._approval(name, version) is None:
            found.append(
                f"nobody approved it: `clearwell promote {name} {version} --approve-by WHO --reason WHY`, "
                "or the form of the deployment promote/promote"
            )
        return found

    def _bodily_obstacles(self, name: str, version: str, broken: Sequence[str]) -> list[str]:
        retired = self.moves.retired(name).get(version)
        found = [f"it was retired: {retired}"] if retired is not None else []
        if broken:
            found.append(f"its registered files are damaged: {'; '.join(broken)}")
        return found

    def _approval(self, name: str, version: str) -> dict[str, Any] | None:
        """The approval of a version that was not used yet: any later change of champion ends it."""
        standing = None
        for entry in self.ledger.entries("approved", *MOVES):
            payload = entry["payload"]
            if payload["model"] != name:
                continue
            if entry["kind"] in MOVES and payload["alias"] == CHAMPION:
                standing = None
            elif entry["kind"] == "approved" and payload["version"] == version:
                standing = entry
        return standing

    def _file_registration(self, name: str, version: str) -> None:
        """Enter a version into the ledger, once."""
        filed = [entry["payload"] for entry in self.ledger.entries("registered")]
        if any((payload["model"], payload["version"]) == (name, version) for payload in filed):
            return
        made = self.tracker.client.get_model_version(name, version)
        files = json.loads(made.tags.get(_FILES_TAG, "null"))
        key = made.tags.get("clearwell.key")
        self.ledger.append("registered", model=name, version=version, run=made.run_id, key=key, files=files)


def require_approval(approved_by: str, reason: str) -> None:
    """Raise PromotionError unless a person and a reason are named."""
    named = approved_by.strip()
    if len(named) < 2 or len(named) > 200 or not named.isprintable():
        raise PromotionError(f"An approval names a person (2 to 200 printable characters), got {approved_by[:80]!r}.")
    if not reason.strip():
        raise PromotionError(f"An approval says why; add a reason to that of {named!r} (`--reason`).")


def _require_free(name: str, version: str, alias: str, obstacles: Sequence[str]) -> None:
    if obstacles:
        lines = "\n".join(f"  {line}" for line in obstacles)
        raise PromotionError(
            f"Version {version} of {name!r} may not become {alias}:\n{lines}\n"
            f"Nothing was changed. See `clearwell explain {name} {version}`; the gates stand in mlflow.yaml.",
            model=name,
            version=version,
            obstacles=tuple(obstacles),
        )


def _require_alias(alias: str) -> None:
    if alias == PREVIOUS or not _ALIAS.fullmatch(alias):
        why = "it is kept by promotions themselves" if alias == PREVIOUS else "MLflow does not take such a name"
        raise PromotionError(f"The alias {alias[:80]!r} can not be given: {why}. Usual are {CHAMPION} and {CANDIDATE}.")


def _approval_state(approval: Mapping[str, Any] | None, required: bool) -> str:
    if approval is not None:
        payload = approval["payload"]
        return f"given by {payload['approver']} at {approval['time']}: {payload['reason']}"
    return "needed, and nobody gave it" if required else "not needed"


def _file_faults(recorded: Mapping[str, str] | None, folder: Path) -> list[str]:
    if recorded is None:
        return ["their digests were not recorded at registration (register the model again)"]
    return faults(dict(recorded), folder) if recorded else ["there are none"]


def _pages(search: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Every result of an MLflow search."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*arguments, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
