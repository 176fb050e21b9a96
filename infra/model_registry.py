"""The MLflow model registry with what it lacks: gates with verdicts, compare-and-set promotion, rollback, history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from infra.errors import PromotionError
from infra.ledger import Ledger
from infra.references import Reference
from infra.settings import Gate, Settings
from infra.tracking import Tracker

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
_METRIC_TAG = "clearwell.metric."
Measured = Mapping[str, Mapping[str, float]]


class Verdict(Reference):
    """What one gate found."""

    metric: str
    split: str
    bound: str
    measured: float | None
    holds: bool

    def __str__(self) -> str:
        value = "not measured" if self.measured is None else f"{self.measured:.4g}"
        return f"{self.metric} on {self.split}: {value} (bound {self.bound}) {'holds' if self.holds else 'fails'}"


class VersionRef(Reference):
    """A registered model version and the alias it holds."""

    name: str
    version: str
    alias: str | None = None
    verdicts: tuple[Verdict, ...] = ()


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

    def register(
        self, name: str, run: str, key: str, description: str, tags: Mapping[str, str], measured: Measured
    ) -> str:
        """Make a version from the artifact ``model`` of `run`; the same `key` gives the same version again."""
        from mlflow.exceptions import MlflowException

        client = self.tracker.client
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for found in client.search_model_versions(f"name = '{name}'"):
            if found.tags.get("clearwell.key") == key:
                self._file_registration(name, str(found.version), str(found.run_id), key)
                return str(found.version)
        flat = {f"{_METRIC_TAG}{s}.{m}": repr(float(v)) for s, values in measured.items() for m, v in values.items()}
        made = client.create_model_version(
            name,
            source=f"runs:/{run}/model",
            run_id=run,
            tags={**tags, **flat, "clearwell.key": key},
            description=description,
        )
        self._file_registration(name, str(made.version), run, key)
        return str(made.version)

    def measured(self, name: str, version: str) -> dict[str, dict[str, float]]:
        """What was measured of a version when it was registered: split -> metric -> value."""
        found: dict[str, dict[str, float]] = {}
        for tag, value in self.tracker.client.get_model_version(name, version).tags.items():
            if tag.startswith(_METRIC_TAG):
                split, _, metric = tag.removeprefix(_METRIC_TAG).partition(".")
                found.setdefault(split, {})[metric] = float(value)
        return found

    def holder(self, name: str, alias: str) -> str | None:
        """The version that holds `alias`, None if nobody does."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self.tracker.client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def judge(self, name: str, version: str) -> tuple[Verdict, ...]:
        """Hold a version against every gate of the settings and file the verdicts in the ledger."""
        champion = self.holder(name, CHAMPION)
        mine = self.measured(name, version)
        theirs = self.measured(name, champion) if champion is not None and champion != version else {}
        verdicts = tuple(judge(gate, mine, theirs) for gate in self.settings.gates)
        self.ledger.append(
            "verdicts",
            model=name,
            version=version,
            against=champion,
            verdicts=[verdict.model_dump() for verdict in verdicts],
        )
        return verdicts

    def verdicts(self, name: str, version: str) -> tuple[Verdict, ...]:
        """The latest verdicts filed for a version; empty if it was never judged."""
        return tuple(Verdict.model_validate(item) for item in self._judgement(name, version).get("verdicts", ()))

    def promote(self, name: str, version: str, alias: str = CHAMPION, reason: str = "") -> VersionRef:
        """Give `alias` to a version whose verdicts all hold. Compare-and-set under a lease.

        Raises
        ------
        PromotionError
            If the version does not exist, was never judged, or a gate failed.
        LeaseHeldError
            If another promotion of the model is under way.
        """
        self.require_version(name, version)
        with self.ledger.lease(f"promote:{name}", self.settings.registry.lease_seconds):
            before = self.holder(name, alias)
            verdicts = self.verdicts(name, version)
            if alias == CHAMPION:
                if verdicts and before != version and self._judged_against(name, version) != before:
                    verdicts = self.judge(name, version)  # the champion changed since the version was judged
                self._require_verdicts(name, version, verdicts)
            if before != version or self._filed_holder(name, alias) != version:
                self._move(name, version, alias, before, reason or "gates hold")
        return VersionRef(name=name, version=version, alias=alias, verdicts=verdicts)

    def rollback(self, name: str, reason: str = "") -> VersionRef:
        """Give the champion alias back to the version that held it before.

        Raises
        ------
        PromotionError
            If there is no earlier champion.
        """
        with self.ledger.lease(f"promote:{name}", self.settings.registry.lease_seconds):
            before, earlier = self.holder(name, CHAMPION), self.holder(name, PREVIOUS)
            if earlier is None or earlier == before:
                raise PromotionError(
                    f"The model {name!r} has no earlier champion to roll back to. "
                    f"See its versions with `clearwell history {name}`.",
                    model=name,
                )
            self._move(name, earlier, CHAMPION, before, reason or "rollback", kind="rollback")
        return VersionRef(name=name, version=earlier, alias=CHAMPION)

    def history(self, name: str) -> list[dict[str, Any]]:
        """Ledger entries of a model, oldest first."""
        return [entry for entry in self.ledger.entries() if entry["payload"].get("model") == name]

    def versions(self, name: str) -> list[dict[str, Any]]:
        """Versions with their aliases and measured figures, newest first."""
        client = self.tracker.client
        found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: -int(v.version))
        aliases = client.get_registered_model(name).aliases if found else {}
        return [
            {
                "version": str(v.version),
                "aliases": sorted(alias for alias, held in aliases.items() if str(held) == str(v.version)),
                "run": v.run_id,
                "tags": dict(v.tags),
            }
            for v in found
        ]

    def require_model(self, name: str) -> None:
        """Raise PromotionError unless a model of that name is registered."""
        names = [model.name for model in self.tracker.client.search_registered_models()]
        if name not in names:
            raise PromotionError(
                f"There is no registered model {name!r}. Registered models: {', '.join(names) or 'none'}.", model=name
            )

    def require_version(self, name: str, version: str) -> None:
        """Raise PromotionError unless the version exists."""
        self.require_model(name)
        known = [v["version"] for v in self.versions(name)]
        if version not in known:
            raise PromotionError(
                f"There is no version {version!r} of the model {name!r}. Its versions: {', '.join(known) or 'none'}.",
                model=name,
                version=version,
            )

    def _judgement(self, name: str, version: str) -> dict[str, Any]:
        for entry in reversed(self.ledger.entries("verdicts")):
            if entry["payload"]["model"] == name and str(entry["payload"]["version"]) == str(version):
                return dict(entry["payload"])
        return {}

    def _judged_against(self, name: str, version: str) -> str | None:
        return self._judgement(name, version).get("against")

    def _filed_holder(self, name: str, alias: str) -> str | None:
        """Who holds the alias by the ledger; a process that died while moving it may have left this behind."""
        for entry in reversed(self.history(name)):
            if entry["kind"] in ("promoted", "rollback") and entry["payload"]["alias"] == alias:
                return str(entry["payload"]["version"])
        return None

    def _file_registration(self, name: str, version: str, run: str, key: str) -> None:
        """Enter a version into the ledger, once."""
        if not any(e["kind"] == "registered" and e["payload"]["version"] == version for e in self.history(name)):
            self.ledger.append("registered", model=name, version=version, run=run, key=key)

    def _require_verdicts(self, name: str, version: str, verdicts: tuple[Verdict, ...]) -> None:
        failed = [verdict for verdict in verdicts if not verdict.holds]
        if self.settings.gates and not verdicts:
            raise PromotionError(
                f"Version {version} of {name!r} was never judged. Run the lifecycle flow that made it to its end.",
                model=name,
                version=version,
            )
        if failed:
            lines = "\n".join(f"  {verdict}" for verdict in failed)
            raise PromotionError(
                f"Version {version} of {name!r} may not become {CHAMPION}:\n{lines}\n"
                "The gates stand in mlflow.yaml; the champion stays as it is.",
                model=name,
                version=version,
                failed=failed,
            )

    def _move(
        self, name: str, version: str, alias: str, before: str | None, reason: str, kind: str = "promoted"
    ) -> None:
        """Move an alias. The way back is set first and the ledger written last, so a repeat ends the same."""
        client = self.tracker.client
        if alias == CHAMPION and before not in (None, version):
            client.set_registered_model_alias(name, PREVIOUS, before)
        client.set_registered_model_alias(name, alias, version)
        if self.holder(name, alias) != version:
            raise PromotionError(f"The alias {alias!r} of {name!r} was moved by somebody else meanwhile.", model=name)
        entry = self.ledger.append(kind, model=name, version=version, alias=alias, before=before, reason=reason)
        client.set_model_version_tag(name, version, f"clearwell.{kind}.{alias}", f"{entry['time']} by {entry['actor']}")


def judge(gate: Gate, mine: Measured, champion: Measured) -> Verdict:
    """One gate against the measured figures of a version and, if there is one, of the champion."""
    value = mine.get(gate.split, {}).get(gate.metric)
    lower, upper = gate.at_least, gate.at_most
    bounds = [f">= {lower:g}"] if lower is not None else []
    bounds += [f"<= {upper:g}"] if upper is not None else []
    if value is None and gate.only_if_measured:
        bound = " and ".join([*bounds, "only if measured"])
        return Verdict(metric=gate.metric, split=gate.split, bound=bound, measured=None, holds=True)
    holds = value is not None and math.isfinite(value)
    if holds and value is not None:
        holds = (lower is None or value >= lower) and (upper is None or value <= upper)
    rival = champion.get(gate.split, {}).get(gate.metric)
    slack = gate.worse_than_champion_by_at_most
    if slack is not None and rival is not None:
        limit = rival - slack if gate.higher_is_better else rival + slack
        bounds.append(f"{'>=' if gate.higher_is_better else '<='} {limit:.4g} (champion {rival:.4g})")
        holds = holds and value is not None and (value >= limit if gate.higher_is_better else value <= limit)
    return Verdict(
        metric=gate.metric,
        split=gate.split,
        bound=" and ".join(bounds) or "measured",
        measured=value,
        holds=bool(holds),
    )
