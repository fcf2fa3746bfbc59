"""`levels.json` is used where it is as lqray writes it."""

import json

import numpy as np
import pytest

from lqray.reporting.artifacts import ArtifactError
from lqray.reporting.levels import level_histories, read_levels
from lqray.store.runs import Run

RUN_ID = "0" * 32
SOUND = {"steps": [1, 11, 21], "rows": [0, 0, 1], "values": [[-1.0, 1.0], [-1.0, 0.0, 1]]}


@pytest.fixture
def read(tmp_path):
    """What is read of an exported folder with such an artifact."""
    (tmp_path / "runs.json").write_text("{}")
    place = tmp_path / "artifacts" / RUN_ID
    place.mkdir(parents=True)
    record = Run(RUN_ID, "0" * 16, "alq", "FINISHED", {}, {})

    def of(text: str):
        (place / "levels.json").write_text(text)
        return read_levels(str(tmp_path), record)

    return of


def test_levels_are_called_as_their_metrics_and_those_that_came_later_begin_later(read):
    found = level_histories(read(json.dumps({"series": {"quantizer/level": SOUND}})))
    assert list(found) == ["quantizer/level/0", "quantizer/level/1", "quantizer/level/2"]
    np.testing.assert_array_equal(found["quantizer/level/1"].steps, [1, 11, 21])
    np.testing.assert_array_equal(found["quantizer/level/1"].values, [1, 1, 0])
    np.testing.assert_array_equal(found["quantizer/level/2"].steps, [21])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": [1, 21, 11]}, "quantizer/level.steps: allowed"),
        ({"steps": [1, 11, -1]}, "quantizer/level.steps: allowed"),
        ({"steps": [1, 11, 21.0]}, "quantizer/level.steps: allowed"),
        ({"steps": None}, "quantizer/level.steps: allowed"),
        ({"rows": [0, 0, 2]}, "quantizer/level.rows: allowed"),
        ({"rows": [0, True, 1]}, "quantizer/level.rows: allowed"),
        ({"rows": [0, 0]}, "quantizer/level.rows: allowed"),
        ({"rows": [0, 0, 2**70]}, "quantizer/level.rows: allowed"),
        ({"values": [[-1.0], ["<b>"]]}, "quantizer/level.values: found '<b>'"),
        ({"values": [[-1.0], [1e-300]]}, "quantizer/level.values: found 1e-300"),
        ({"values": [1.0, 2.0]}, "quantizer/level.values: allowed"),
        ({"values": [[0.0] * 700_000] * 2}, "at most 1048576 numbers"),
    ],
)
def test_anything_else_is_refused_with_the_run_and_what_is_wrong(read, change, said):
    with pytest.raises(ArtifactError, match=f"levels.json of run {RUN_ID}") as refused:
        read(json.dumps({"series": {"quantizer/level": SOUND | change}}))
    assert said in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", '{"series": []}', '{"series": {"test/loss": {}}}', '{"series"'])
def test_what_is_no_such_document_is_refused(read, text):
    with pytest.raises(ArtifactError, match="levels.json"):
        read(text)
