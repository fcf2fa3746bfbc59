"""Which runs are a group, and what is compared with what."""

import math
from dataclasses import replace

import pytest

from lqray.reporting.comparison import compare_groups
from lqray.reporting.origins import origins
from lqray.reporting.records import Run
from lqray.reporting.selection import UnknownKeyError, grouping_keys, select
from lqray.store.tags import DATA, PARTS
from tests.testing.reports import record


def test_groups_are_told_apart_by_what_varies_beyond_the_method():
    weighted = [
        record("alq", 1, quantizer__weighting="norm"),
        record("optimal", 1, quantizer__weighting="norm_squared"),
    ]
    assert grouping_keys(weighted) == ("quantizer.method",)
    widths = [
        record("alq", seed, quantizer__bits=str(bits), data__root=f"/{seed}") for seed in (1, 2) for bits in (2, 3)
    ]
    optimizers = [
        record("bf16", 1, optimizer__name="muon", optimizer__adamw_lr="0.002"),
        record("bf16", 1, optimizer__name="adamw", optimizer__beta1="0.9"),
    ]
    assert grouping_keys(optimizers) == ("quantizer.method", "optimizer.name")
    assert grouping_keys([*widths, record("sgd", 1)]) == ("quantizer.method", "quantizer.bits")


def test_runs_of_before_an_option_was_there_are_of_one_group_with_those_of_today():
    """Seeds are pooled where the option has the value that it had before, and told apart where it has another."""
    old = [record("alq", seed, optimizer__name="sgd") for seed in (1, 2)]
    new = [record("alq", 3, optimizer__name="sgd", optimizer__decayed="all", optimizer__clip_norm="null")]
    other = [record("alq", 4, optimizer__name="sgd", optimizer__decayed="matrices", optimizer__clip_norm="null")]
    (group,) = compare_groups([*old, *new], "", histories=False).groups
    assert len(group.finished) == 3
    found = compare_groups([*old, *new, *other], "", histories=False)
    assert found.keys == ("quantizer.method", "optimizer.decayed")
    assert [len(one.finished) for one in found.groups] == [3, 1]


def test_selection():
    records = [record("alq", seed, quantizer__bits=str(bits)) for seed in (1, 2) for bits in (2, 3)]
    assert len(select(records, where=["bits=3"])) == 2
    assert len(select(records, where=["bits=3", "seed=1"])) == 1
    with pytest.raises(UnknownKeyError, match="did you mean 'quantizer.bits'"):
        select(records, where=["quantizer.bit=3"])
    with pytest.raises(UnknownKeyError, match="KEY=VALUE"):
        select(records, where=["bits"])


def test_a_baseline_is_found_beside_other_axes():
    """full_precision knows no bits: alq is compared with it at every width, seed by seed."""
    records = [
        Run(f"a{bits}{seed}", "t", "n", "FINISHED", record("alq", seed, quantizer__bits=bits).params, {"m": 1.0}, None)
        for bits in "23"
        for seed in (1, 2)
    ]
    records += [
        Run(f"f{seed}", "t", "n", "FINISHED", record("full_precision", seed).params, {"m": 0.5}, None)
        for seed in (1, 2)
    ]
    compared = compare_groups(records, "", ["m"], histories=False)
    pairs = {group.keys["quantizer.bits"]: group.metrics["m"].difference for group in compared.groups}
    assert pairs[None] is None
    assert pairs["2"].pairs == (("a21", "f1"), ("a22", "f2"))
    assert pairs["3"].spread.mean == 0.5


def test_pairs_are_of_equal_axes_whatever_groups_are_shown():
    records = []
    for seed in (1, 2):
        for lr, value in (("0.1", 0.9), ("0.01", 0.5)):
            params = record("alq", seed, optimizer__lr=lr).params
            records.append(Run(f"a{lr}{seed}", f"a{lr}{seed}", "n", "FINISHED", params, {"m": value}, None))
        params = record("full_precision", seed, optimizer__lr="0.1").params
        records.append(Run(f"f{seed}", f"f{seed}", "n", "FINISHED", params, {"m": 0.8 + seed / 100}, None))
    compared = compare_groups(records, "", ["m"], ["method"], histories=False)
    (alq,) = [group for group in compared.groups if group.keys["quantizer.method"] == "alq"]
    assert alq.metrics["m"].difference.pairs == (("a0.11", "f1"), ("a0.12", "f2"))


def test_differences_that_are_all_equal_have_no_p_value():
    records = [
        Run(f"{method}{seed}", f"{method}{seed}", "n", "FINISHED", record(method, seed).params, {"m": value}, None)
        for seed, base in ((1, 0.9), (2, 0.7), (3, 0.8))
        for method, value in (("full_precision", base), ("alq", base + 1 / 360))
    ]
    compared = compare_groups(records, "", ["m"], histories=False)
    difference = compared.groups[1].metrics["m"].difference
    assert difference.spread.mean == pytest.approx(1 / 360)
    assert math.isnan(difference.p_value)


def test_trials_of_one_name_are_told_apart():
    records = [
        Run(lr, f"{lr}-trial", "seed1", "FINISHED", record("alq", 1, optimizer__lr=lr).params, {"m": 1.0}, None)
        for lr in ("0.1", "0.2")
    ]
    compared = compare_groups(records, "", ["m"], ["trial"], histories=False)
    assert [group.keys["trial"] for group in compared.groups] == ["seed1 (0.1-tr)", "seed1 (0.2-tr)"]


@pytest.mark.parametrize(
    ("tag", "word", "how"),
    [(PARTS, "Other code", "whose parts differ in code"), (DATA, "Other data", "whose data were of files that differ")],
)
def test_runs_of_other_code_or_data_in_a_table_are_told_once_with_the_command(tag, word, how):
    def said(*codes, names=()):
        records = []
        for lr, each in enumerate(codes):
            params = {"optimizer__lr": str(lr), "data__name": names[lr] if names else "digits"}
            for seed, code in enumerate(each):
                tags = {tag: code} if code else {}
                own = {"run_id": f"{lr}{seed}", "trial_id": f"{lr}{seed}", "experiment": "known", "tags": tags}
                records.append(replace(record("alq", seed, **params), **own))
        return origins(compare_groups(records, "", group_by=["lr"], histories=False), "sqlite:////x.db")

    assert not said(("a", "a", ""), ("a", "2:b", "2:b"))
    assert not said(("a", "a"), ("b", "b"), names=("digits", "mnist"))
    (line,) = said(("a", "b", "b"), ("c", "d", "e"), ("b",))
    assert line == (
        f"{word}: 3 of 3 rows have runs {how} (3 of b, 1 of a, 1 of c, 2 more): "
        "`lqray compare 00 01 --experiment known --uri sqlite:////x.db`"
    )
    (line,) = said(("a", "a"), ("b",))  # rows that are alike within themselves, and not to each other
    assert "2 of 2 rows" in line
