import math

import pytest

from lqray.experiment.errors import ExperimentError
from lqray.experiment.yaml import load, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("1_000", 1000),
        ("-7", -7),
        ("0x10", 16),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ('"3"', "3"),
        ("1.2.3", "1.2.3"),
        ("12:30:45", "12:30:45"),
        ("2026-01-02", "2026-01-02"),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_mean_what_people_write(text, value):
    data = parse(f"key: {text}").data["key"]
    assert data == value
    assert type(data) is type(value)


def test_lines_of_values_and_keys():
    document = parse("a:\n  b:\n    - 1\n    - 2\nc: 3\n")
    assert document.line_of(("a", "b", 1)) == 4
    assert document.line_of(("c",)) == 5
    assert document.line_of(("a", "missing")) == 1


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a second time"),
        ("a: !!python/object/apply:os.system ['false']", 1, "os.system"),
        ("a: !custom 3", 1, "!custom"),
        ("a: &x {b: 1}\nc: {<<: *x}", 2, "merge key"),
        ("a: &x [*x]", 1, "contains it"),
        ("1: 2", 1, "key '1'"),
        ("a: [1, 2", 1, ""),
        ("a: 1\n---\nb: 2\n", 2, "document"),
        ('a: 1\nb: "x\\ny"\n', 2, "line break"),
        ('a: "\\ud800"\n', 1, "control character"),
        ("a: 1\nb: \x01\n", 2, "character"),
        (f"a: {'9' * 5000}\n", 1, "5000 characters"),
        ('a: "\\UFFFFFFFF"\n', 1, "stands for nothing"),
        ("a:\n  b: " + "[" * 3000, 2, "50 levels"),
        ("\n".join(" " * level + "a:" for level in range(300)), 51, "50 levels"),
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 300)), 1, "50 levels"),
    ],
)
def test_what_is_refused(text, line, found):
    with pytest.raises(ExperimentError) as error:
        parse(text, "file.yaml")
    (problem,) = error.value.problems
    assert (problem.file, problem.line) == ("file.yaml", line)
    assert found in problem.found


def test_aliases_that_multiply_are_refused():
    text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    with pytest.raises(ExperimentError, match="multiply"):
        parse(text)


def test_a_huge_value_is_not_echoed_whole():
    for text in (f"a: !{'x' * 100_000} 1", f"a: 1\n{'k' * 900}: 1\n{'k' * 900}: 1"):
        with pytest.raises(ExperimentError) as error:
            parse(text, "file.yaml")
        assert len(str(error.value)) < 2000


def test_an_endless_file_is_refused():
    with pytest.raises(ExperimentError, match="more than 2 MiB"):
        load("/dev/zero")


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(ExperimentError, match="No such file"):
        load(tmp_path / "nothing.yaml")


def test_a_binary_file_is_a_clear_error(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExperimentError, match="UTF-8"):
        load(path)
