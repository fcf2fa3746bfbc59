"""The text of an experiment file in tags of its MLflow experiment."""

import base64
import hashlib
import itertools
import json
import random
import tracemalloc
import zlib

import pytest

from lqray.experiment.plan import EARLIER_PLAN, MOST_BYTES, PLAN, plan_tags, published_plan

SHORT = "name: short\n" + "# a comment\n" * 100
LONG = "name: long\n# " + "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9000))
OTHER = LONG.replace("name: long", "name: other")


@pytest.mark.parametrize("text", [SHORT, LONG, ""])
def test_what_is_published_is_read(text):
    tags = plan_tags("launch", text, "host:/a.yaml")
    assert list(tags)[-1] == PLAN
    assert all(len(value) <= 5000 for value in tags.values())
    assert published_plan(tags) == ("launch", text, "host:/a.yaml")
    assert published_plan({}) is None


@pytest.mark.parametrize(("one", "other"), [(SHORT, LONG), (LONG, OTHER), (OTHER, LONG)])
def test_two_launches_that_publish_at_the_same_moment_leave_a_whole_plan_at_every_moment(one, other):
    writes = [list(plan_tags("1", one).items()), list(plan_tags("2", other).items())]
    total = sum(map(len, writes))
    for first in itertools.combinations(range(total), len(writes[0])):
        tags: dict[str, str] = {}
        queues = [iter(writes[0]), iter(writes[1])]
        for moment in range(total):
            key, value = next(queues[moment not in first])
            tags[key] = value
            found = published_plan(tags)
            assert found is None if PLAN not in tags else found in (("1", one, ""), ("2", other, ""))


def test_what_an_earlier_version_published_is_read():
    packed = base64.b85encode(zlib.compress(LONG.encode())).decode()
    tags = {f"{PLAN}.0": packed[:4000], f"{PLAN}.1": packed[4000:], PLAN: json.dumps({"launch": "old", "parts": 2})}
    assert published_plan(tags) == ("old", LONG, "")


def test_damaged_tags_are_passed_over_with_a_word(caplog):
    whole = plan_tags("launch", LONG)
    part = next(key for key in whole if key != PLAN)
    head = json.loads(whole[PLAN])
    for damaged in (
        {key: value for key, value in whole.items() if key != part},
        {**whole, part: "AAAA" + whole[part][4:]},
        {**whole, PLAN: "no json"},
        {**whole, PLAN: "[]"},
        {**whole, PLAN: json.dumps({**head, "digest": "0" * 16})},
        {**whole, PLAN: json.dumps({key: value for key, value in head.items() if key != "launch"})},
    ):
        caplog.clear()
        assert published_plan(damaged) is None
        assert "are damaged" in caplog.text
        assert "`lqray run FILE` writes them again" in caplog.text


def test_a_plan_that_inflates_to_more_than_the_limit_is_not_inflated(caplog):
    packer = zlib.compressobj(1)
    blown = b"".join(packer.compress(b"x" * (1 << 20)) for _ in range(48)) + packer.flush()
    packed = base64.b85encode(blown).decode()
    parts = [packed[start : start + 4000] for start in range(0, len(packed), 4000)]
    tags = {f"{PLAN}.d.{number}": part for number, part in enumerate(parts)}
    tags[PLAN] = json.dumps({"launch": "x", "file": "", "digest": "d", "parts": len(parts)})
    tracemalloc.start()
    assert published_plan(tags) is None
    assert tracemalloc.get_traced_memory()[1] < 6 * MOST_BYTES
    tracemalloc.stop()
    assert f"inflates to more than {MOST_BYTES} bytes" in caplog.text


def test_a_text_too_long_to_be_read_back_is_not_published(caplog):
    long = "#" * MOST_BYTES
    assert published_plan(plan_tags("launch", long)) == ("launch", long, "")
    assert plan_tags("launch", long + "#") == {}
    assert "allowed are 4194304" in caplog.text


@pytest.mark.parametrize(
    "head",
    [
        "[" * 5000,
        json.dumps({"launch": "x", "digest": "d", "parts": 10**12}),
        json.dumps({"launch": "x", "digest": "d", "parts": "9" * 4800}),
        json.dumps({"launch": "x", "text": "\x1b[2J\u202e"}),
        json.dumps({"launch": "x", "text": base64.b85encode(zlib.compress(b"name: x")[:-5]).decode()}),
        json.dumps({"launch": "x", "digest": "\x1b[2J", "parts": 1}),
    ],
)
def test_a_head_of_any_kind_is_passed_over(head, caplog):
    assert published_plan({PLAN: head}) is None
    assert "are damaged" in caplog.text
    assert "\x1b" not in caplog.text


def test_what_earlier_versions_published_is_read_and_what_is_published_now_comes_first():
    text = "name: x\n" + "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(200))
    for one in ("name: x\n", text):
        earlier = {key.replace(PLAN, EARLIER_PLAN): value for key, value in plan_tags("1", one).items()}
        assert all(key.startswith("lqray.plan") for key in earlier)
        assert published_plan(earlier) == ("1", one, "")
        assert published_plan({**earlier, **plan_tags("2", "name: y\n")}) == ("2", "name: y\n", "")
