"""References are frozen values that survive JSON."""

import pytest
from pydantic import ValidationError

from infra.references import DatasetRef, FigureRef, ModelRef, StageResult

DATA = DatasetRef(name="scans", uri=".clearwell/versions/scans/ab", version="0123456789abcdef.dir", rows=3)
MODEL = ModelRef(name="compress", uri=".clearwell/models/cd", digest="fedcba9876543210")


def test_references_name_themselves_short():
    assert str(DATA) == "scans@0123456789ab"
    assert str(MODEL) == "compress@fedcba987654"


def test_references_are_frozen_and_know_their_fields():
    with pytest.raises(ValidationError, match="frozen"):
        DATA.rows = 4
    with pytest.raises(ValidationError, match="Extra inputs"):
        DatasetRef(**DATA.model_dump(), colour="red")


def test_result_survives_json():
    result = StageResult(
        stage="validate",
        method="r2d2",
        data=DATA,
        model=MODEL,
        others={"quarantine": DATA},
        metrics={"rows": 3.0},
        history=({"epoch": 0, "loss": 0.5},),
        figures=(FigureRef(file="a.png", caption="A"),),
    )
    assert StageResult.model_validate_json(result.model_dump_json()) == result


def test_result_lists_everything_whose_bytes_must_exist():
    assert StageResult(stage="s", method="none").references == ()
    result = StageResult(stage="s", method="none", model=MODEL, others={"quarantine": DATA})
    assert result.references == (MODEL, DATA)
