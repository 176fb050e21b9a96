"""Data gates in Great Expectations: a suite built from the dataset's schema, row numbers of what fails, Data Docs.

Results that name values of failing rows are personal data: they stay in memory. The Data Docs hold counts only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infra.datasets import Schema

PART_ROWS = 200_000
"""Rows that Great Expectations is given at once; it copies them several times."""


@dataclass(frozen=True)
class Bounds:
    """What is expected beyond the schema.

    Attributes
    ----------
    mean_range : pair of float
        Mean pixel of an image, 0 to 255.
    minimum_contrast : float
        Smallest standard deviation of an image's pixels; a blank image has 0.
    max_class_imbalance : float
        Largest Kullback-Leibler divergence of the class shares from equal shares.
    minimum_rows : int
    """

    mean_range: tuple[float, float] = (2.0, 253.0)
    minimum_contrast: float = 4.0
    max_class_imbalance: float = 0.5
    minimum_rows: int = 10


@dataclass
class Report:
    """What validation found.

    Attributes
    ----------
    failing : dict of int to list of str
        Row number -> reasons.
    table_failures : list of str
        Expectations on the table as a whole that do not hold.
    expectations : int
        How many were checked.
    """

    expectations: int = 0
    failing: dict[int, list[str]] = field(default_factory=dict)
    table_failures: list[str] = field(default_factory=list)


def build_suite(name: str, schema: Schema, bounds: Bounds) -> tuple[Any, dict[str, str]]:
    """The expectation suite for one split, and the reason in words for each (type, column)."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    codes = list(range(-1, schema.n_classes)) if schema.n_classes else None
    chosen: list[tuple[Any, str]] = [
        (gxe.ExpectColumnValuesToNotBeNull(column="id"), "missing id"),
        (gxe.ExpectColumnValuesToBeUnique(column="id"), "repeated id"),
        (gxe.ExpectColumnValuesToNotBeNull(column="domain"), "missing domain"),
        (gxe.ExpectColumnValuesToNotBeNull(column="label"), "missing label"),
        (gxe.ExpectTableRowCountToBeBetween(min_value=bounds.minimum_rows), "too few rows"),
    ]
    if codes:
        chosen.append((gxe.ExpectColumnValuesToBeInSet(column="label", value_set=codes), "label out of range"))
    if schema.kind == "image":
        height, width = schema.image_size or (0, 0)
        low, high = bounds.mean_range
        chosen += [
            (gxe.ExpectColumnValuesToBeInSet(column="decodable", value_set=[True]), "image bytes can not be decoded"),
            (gxe.ExpectColumnValuesToBeInSet(column="height", value_set=[height]), f"image height is not {height}"),
            (gxe.ExpectColumnValuesToBeInSet(column="width", value_set=[width]), f"image width is not {width}"),
            (gxe.ExpectColumnValuesToBeBetween(column="contrast", min_value=bounds.minimum_contrast), "blank image"),
            (
                gxe.ExpectColumnValuesToBeBetween(column="mean", min_value=low, max_value=high),
                f"mean pixel outside {low:g} to {high:g}",
            ),
        ]
    if schema.kind == "text":
        chosen.append((gxe.ExpectColumnValuesToNotBeNull(column="text"), "missing text"))
        chosen.append((gxe.ExpectColumnValueLengthsToBeBetween(column="text", min_value=1), "empty text"))
    for column in schema.features:
        chosen.append((gxe.ExpectColumnValuesToNotBeNull(column=column), f"missing or infinite value in {column}"))
    if schema.n_classes > 1:
        partition = {"values": list(range(schema.n_classes)), "weights": [1 / schema.n_classes] * schema.n_classes}
        chosen.append(
            (
                gxe.ExpectColumnKLDivergenceToBeLessThan(
                    column="labelled", partition_object=partition, threshold=bounds.max_class_imbalance
                ),
                "classes are out of balance",
            )
        )
    suite = gx.ExpectationSuite(name)
    for expectation, _ in chosen:
        suite.add_expectation(expectation)
    reasons = {f"{e.expectation_type}:{getattr(e, 'column', '')}": reason for e, reason in chosen}
    return suite, reasons


class Validator:
    """One Great Expectations context in memory, whose Data Docs go to a folder.

    Parameters
    ----------
    docs : Path
        Folder of the static site.
    """

    def __init__(self, docs: Path) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        for name in ("great_expectations", "great_expectations.data_context.types.base"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.docs = docs
        self.context = gx.get_context(mode="ephemeral")
        self.context.variables.progress_bars = ProgressBarsConfig(globally=False)
        for site in self.context.get_site_names():
            self.context.delete_data_docs_site(site)
        self.context.add_data_docs_site(
            site_name="clearwell",
            site_config={
                "class_name": "SiteBuilder",
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)},
            },
        )
        self.source = self.context.data_sources.add_pandas("dataset")

    def validate(self, split: str, frame: pd.DataFrame, schema: Schema, bounds: Bounds) -> Report:
        """Check one split and add the counts to the Data Docs.

        More than `PART_ROWS` rows are checked in parts, and what concerns the whole (how many rows, repeated ids,
        balance of the classes) over all of them; the report is the same.

        Parameters
        ----------
        frame : DataFrame
            One row a sample with a column ``row`` (its number) and the columns the suite names; see
            ``row_facts``.
        """
        suite, reasons = build_suite(split, schema, bounds)
        if not (frame["label"] >= 0).any():
            suite.expectations = [e for e in suite.expectations if getattr(e, "column", "") != "labelled"]
        if len(frame) <= PART_ROWS:
            return self._check(split, frame, suite.expectations, reasons)
        whole = [e for e in suite.expectations if _concerns_all(e)]
        each = [e for e in suite.expectations if not _concerns_all(e)]
        light = frame[["row", "labelled"]].assign(id=_numbered(frame["id"]))
        reports = [self._check(f"{split}, as a whole", light, whole, reasons)]
        for start in range(0, len(frame), PART_ROWS):
            part = frame.iloc[start : start + PART_ROWS]
            name = f"{split}, rows {start} to {start + len(part) - 1}"
            reports.append(self._check(name, part.reset_index(drop=True), each, reasons))
        return _joined(reports, len(suite.expectations), list(reasons.values()))

    def _check(self, name: str, frame: pd.DataFrame, expectations: list[Any], reasons: dict[str, str]) -> Report:
        import great_expectations as gx
        from great_expectations.checkpoint import UpdateDataDocsAction

        suite = gx.ExpectationSuite(name)
        for expectation in expectations:
            suite.add_expectation(expectation.copy(update={"id": None}))
        batch = self.source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        definition = self.context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=self.context.suites.add(suite))
        )
        given = {"dataframe": frame}
        complete = {"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]}
        outcome = definition.run(batch_parameters=given, result_format=complete)
        counts_only = {"result_format": "BASIC", "partial_unexpected_count": 0}
        self.context.checkpoints.add(
            gx.Checkpoint(
                name=name,
                validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="docs", site_names=["clearwell"])],
                result_format=counts_only,
            )
        ).run(batch_parameters=given)
        return _report(outcome, reasons, frame)


def _concerns_all(expectation: Any) -> bool:
    kinds = ("expect_table_", "expect_column_values_to_be_unique", "expect_column_kl_divergence")
    return str(expectation.expectation_type).startswith(kinds)


def _numbered(ids: pd.Series) -> pd.Series:
    """Equal numbers for equal ids: as telling as they are, and smaller."""
    codes, _ = pd.factorize(ids)
    return pd.Series(codes, dtype="Int64").mask(codes < 0)


def _joined(reports: list[Report], expectations: int, order: list[str]) -> Report:
    """One report of the parts; a row's reasons in the order of the suite."""
    whole = Report(expectations, table_failures=[reason for report in reports for reason in report.table_failures])
    for report in reports:
        for row, found in report.failing.items():
            whole.failing.setdefault(row, []).extend(found)
    whole.failing = {row: sorted(found, key=order.index) for row, found in sorted(whole.failing.items())}
    return whole


def _report(outcome: Any, reasons: dict[str, str], frame: pd.DataFrame) -> Report:
    report = Report(expectations=len(outcome.results))
    first_of_id = set(frame.loc[~frame["id"].duplicated(keep="first"), "row"])
    for result in outcome.results:
        column = result.expectation_config.kwargs.get("column", "")
        reason = reasons[f"{result.expectation_config.type}:{column}"]
        if result.success:
            continue
        if result.exception_info.get("raised_exception"):
            raise RuntimeError(f"Great Expectations could not check {reason!r}: {result.exception_info}")
        rows = result.result.get("unexpected_index_list")
        if rows is None:
            report.table_failures.append(reason)
            continue
        for row in rows:
            number = int(row["row"])
            if reason != "repeated id" or number not in first_of_id:
                report.failing.setdefault(number, []).append(reason)
    return report


def row_facts(ids: list[Any], labels: Any, domains: list[Any], n_classes: int, extra: dict[str, Any]) -> pd.DataFrame:
    """The frame :meth:`Validator.validate` checks; ``labelled`` repeats the labels that name a class."""
    frame = pd.DataFrame({"row": np.arange(len(ids)), "id": ids, "label": labels, "domain": domains, **extra})
    frame["labelled"] = frame["label"].where(frame["label"].between(0, n_classes - 1))
    return frame
