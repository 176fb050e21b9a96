"""The map of methods is whole, its entries are of the known kinds, and it can be asked."""

from __future__ import annotations

import importlib
import json
import re
from importlib.resources import files

import pytest

from models.curate.taxonomy import CLOSED, STAGES, Record, Taxonomy, record_of
from models.registry import list_methods

MAP = Taxonomy.load()
MODULES = ("text_filters", "text_dedup", "text_minhash", "text_semantic", "text_quality", "text_resampling",
           "survey")  # fmt: skip


def test_there_are_at_least_sixty_records_of_all_stages_and_families():
    assert len(MAP) >= 60
    assert len({record.slug for record in MAP.records}) == len(MAP)
    for name in ("stage", "family", "goal", "granularity", "output", "cost"):
        assert {getattr(record, name) for record in MAP.records} == set(CLOSED[name])


@pytest.mark.parametrize("record", MAP.records, ids=lambda record: record.slug)
def test_a_record_is_complete(record):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", record.slug)
    assert record.summary.endswith(".")
    assert record.utility
    assert record.mechanism
    assert record.references
    assert all(re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/\S+|aclanthology\.org/\S+)", link)
               for link in record.references)  # fmt: skip


def test_what_it_says_is_implemented_is():
    classes = {name for module in MODULES for name in vars(importlib.import_module(f"models.curate.{module}"))}
    registered = {card.name for card in list_methods()}
    expected = {"filtering-laws", "projektor", "dfn"}  # of the same stage
    named = {name for record in MAP.records for name in record.implemented_by}
    assert named <= classes | registered | expected
    for ours in ("GopherQuality", "GopherRepetition", "C4Filter", "FineWebFilter", "LanguageFilter", "ExactDedup",
                 "MinHashDedup", "SentenceDedup", "SubstringDedup", "SemanticDedup", "QualityClassifier",
                 "PerplexityFilter", "MooreLewis", "DSIR", "MixtureSampler", "Decontaminator"):  # fmt: skip
        assert ours in named


def test_finding():
    found = MAP.find(stage="pretraining", family="deduplication", goal="diversification")
    assert "minhash-dedup" in {record.slug for record in found}
    assert all(record.stage == "pretraining" for record in found)
    assert {record.slug for record in MAP.find(granularity="token")} == {"personal-data-removal", "rho-1"}
    assert [record.slug for record in MAP.find(implemented_by="DSIR")] == ["dsir"]
    assert MAP.find(mechanism="GUMBEL")[0].slug == "dsir"
    assert MAP.find(stage="alignment", family="deduplication") == []
    assert len(MAP.find()) == len(MAP)
    with pytest.raises(ValueError, match=r"There is no stage 'pretrainning'\. Did you mean 'pretraining'"):
        MAP.find(stage="pretrainning")
    with pytest.raises(ValueError, match=r"There is no field 'gaol'\. Did you mean 'goal'"):
        MAP.find(gaol="diversification")


def test_recommending_needs_no_more_than_there_is():
    without = MAP.recommend("pretraining", budget="low")
    assert without[0].implemented_by
    assert not any(record.needs_target or record.cost != "low" for record in without)
    with_target = MAP.recommend("pretraining", ["distribution matching"], have_target=True, budget="medium")
    assert with_target[0].needs_target
    assert "dsir" in {record.slug for record in with_target[:8]}
    assert not any(record.goal == "diversification" or record.cost == "high" for record in with_target)
    for stage in STAGES:
        assert MAP.recommend(stage, have_target=True, budget="high")
    with pytest.raises(ValueError, match=r"There is no budget 'hihg'\. Did you mean 'high'"):
        MAP.recommend("pretraining", budget="hihg")
    with pytest.raises(ValueError, match=r"no goal 'diversity'\. Did you mean 'diversification'"):
        MAP.recommend("pretraining", ["diversity"])


def test_a_damaged_record_is_refused():
    row = json.loads(files("models.curate").joinpath("taxonomy.json").read_text())[0]
    assert isinstance(record_of(row), Record)
    with pytest.raises(ValueError, match="has the goal 'fame'"):
        record_of(row | {"goal": "fame"})
    with pytest.raises(ValueError, match="must have the fields"):
        record_of({key: row[key] for key in row if key != "cost"})
