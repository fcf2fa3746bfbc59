"""Which digests of runs can be compared."""

import hashlib

import pytest

from lqray.experiment.digests import as_tag, differ, is_other, with_last

OLD, OTHER_OLD, NEW, OTHER_NEW = "0123456789ab", "ab0123456789", "2:0123456789ab", "2:ab0123456789"


def test_a_tag_names_its_kind():
    assert as_tag("2", hashlib.sha256(b"")) == "2:e3b0c44298fc"


@pytest.mark.parametrize(
    ("recorded", "now", "other"),
    [
        (NEW, NEW, False),
        (NEW, OTHER_NEW, True),
        (f"{OTHER_NEW},{NEW}", NEW, False),
        (f"{NEW},{OTHER_NEW}", NEW, True),
        (OLD, NEW, False),
        (OTHER_OLD, NEW, False),
        (f"{NEW},3:0123456789ab", NEW, False),
    ],
)
def test_a_run_had_other_code_only_where_that_can_be_told(recorded, now, other):
    assert is_other(recorded, now) is other


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ([NEW, NEW], False),
        ([NEW, OTHER_NEW], True),
        ([OLD, OTHER_OLD], True),
        ([OLD, NEW], False),
        ([OLD, NEW, OTHER_NEW], True),
        ([NEW, f"{OTHER_NEW},{NEW}"], True),
        ([NEW, f"{OLD},{NEW}"], False),
        ([], False),
    ],
)
def test_runs_differ_where_two_of_a_kind_do(recorded, told):
    assert differ(recorded) is told


def test_a_run_that_goes_on_keeps_what_it_had():
    assert with_last(NEW, NEW) == NEW
    assert with_last(f"{OLD},{NEW}", NEW) == f"{OLD},{NEW}"
    assert with_last(OLD, NEW) == f"{OLD},{NEW}"
