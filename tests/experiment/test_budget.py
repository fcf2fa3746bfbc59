"""Bits by parameter in an experiment file: one choice, whose order counts."""

import pytest

from lqray.experiment.errors import ExperimentError
from lqray.experiment.feedback import contraction_problem
from lqray.experiment.grid import read_experiment
from lqray.experiment.options.budget import bits_of, check_patterns
from lqray.experiment.options.quantizer import EdenOptions, FixedLevelsOptions, by_bits
from lqray.experiment.schema import Trial
from tests.testing.experiments import BASE, experiment

MAPPING = '{"7.*": 8, "*.weight": 2, default: 3}'


def trials_of(sweep: str = "", base: str = "bits: 3"):
    found = experiment(sweep) if base == "bits: 3" else experiment(sweep, base=BASE.replace("bits: 3", base))
    return list(found.trials())


def bits(named) -> object:
    return named.trial.quantizer.bits


def test_the_first_pattern_that_fits_counts_and_default_may_stand_anywhere():
    options = EdenOptions.model_validate({"method": "eden", "bits": {"default": 3, "fc.*": 8, "*.weight": 2.5}})
    assert options.bits == (("fc.*", 8.0), ("*.weight", 2.5), ("default", 3.0))
    found = [bits_of(options.bits, name) for name in ("fc.weight", "conv.weight", "conv.bias", "default")]
    assert found == [8, 2.5, 3, 3]
    assert [bits_of(3, "fc.weight"), bits_of(None, "fc.weight")] == [3, 0]
    assert [(number, one.bits) for number, one in by_bits(options).items()] == [(8, 8), (2.5, 2.5), (3, 3)]


def test_a_mapping_is_a_trials_whose_id_depends_on_the_order():
    sweep = (
        'sweep: [{matrix: {quantizer.bits: [3, {"7.*": 8, "*.weight": 2, default: 3}, '
        '{"*.weight": 2, "7.*": 8, default: 3}]}}]'
    )
    named = trials_of(sweep)
    assert [bits(one) for one in named] == [
        3,
        (("7.*", 8), ("*.weight", 2), ("default", 3)),
        (("*.weight", 2), ("7.*", 8), ("default", 3)),
    ]
    assert len({one.trial.id for one in named}) == len({one.name for one in named}) == 3
    assert named[0].trial.id == trials_of()[0].trial.id
    for one in named:
        assert Trial.model_validate(one.trial.config()).id == one.trial.id
    assert named[1].trial.params()["quantizer.bits"] == '[["7.*", 8], ["*.weight", 2], ["default", 3]]'
    assert named[1].name == "bits7._,8,_.weight,2,default,3"


def test_a_mapping_replaces_another_whatever_sets_it(tmp_path):
    """Mappings of a file merge; patterns of two mappings would have no order."""
    other = (("0.*", 4), ("default", 2))
    text = BASE.replace("bits: 3", f"bits: {MAPPING}")
    for changed in (
        'sweep: [{matrix: {quantizer.bits: [{"0.*": 4, default: 2}]}}]',
        'sweep: [{matrix: {quantizer: [{method: qsgd, bits: {"0.*": 4, default: 2}}]}}]',
        'sweep: [{include: [{quantizer.bits: {"0.*": 4, default: 2}}]}]',
        'search: {sampler: grid, space: {quantizer.bits: {choice: [{"0.*": 4, default: 2}]}}}',
    ):
        path = tmp_path / "one.yaml"
        path.write_text(text + changed)
        (named,) = read_experiment(path).trials()
        assert bits(named) == other, changed
    path.write_text(text)
    (named,) = read_experiment(path, ['quantizer.bits={"0.*": 4, default: 2}']).trials()
    assert bits(named) == other
    (named,) = read_experiment(path, ["quantizer.bits=4"]).trials()
    assert bits(named) == 4
    path.write_text(
        text + f"sweep: [{{matrix: {{quantizer.bits: [4, {MAPPING}]}}, exclude: [{{quantizer.bits: {MAPPING}}}]}}]"
    )
    (named,) = read_experiment(path).trials()
    assert bits(named) == 4


@pytest.mark.parametrize(
    ("value", "key", "found", "allowed"),
    [
        ('{"7.*": 9, default: 3}', "quantizer.bits.7.*", "9", "at most 8"),
        ('{"7.*": 2.5, default: 3}', "quantizer.bits.7.*", "2.5", "an integer"),
        ("{default: true}", "quantizer.bits.default", "True", "an integer"),
        ('{"7.*": 8}', "quantizer.bits", "7.*", "default: NUMBER"),
        ("{}", "quantizer.bits", "[]", "default: NUMBER"),
        ('{"": 8, default: 3}', "quantizer.bits", "", "patterns of names"),
    ],
)
def test_what_a_mapping_may_not_say_is_told_with_its_line(value, key, found, allowed):
    for sweep, base in [("", f"bits: {value}"), (f"sweep: [{{matrix: {{quantizer.bits: [{value}]}}}}]", "bits: 3")]:
        with pytest.raises(ExperimentError) as error:
            trials_of(sweep, base)
        problem = error.value.problems[0]
        assert problem.key == key
        assert found in problem.found
        assert allowed in problem.allowed
        assert problem.line == (9 if base != "bits: 3" else 1 + BASE.count("\n"))


def test_a_mapping_twice_in_an_axis_is_an_error_and_another_order_is_another_value():
    with pytest.raises(ExperimentError, match="a second time"):
        trials_of('sweep: [{matrix: {quantizer.bits: [{"a": 2, default: 3}, {"a": 2, default: 3}]}}]')
    with pytest.raises(ExperimentError, match=r"no key below quantizer\.bits"):
        trials_of("sweep: [{matrix: {quantizer.bits.default: [2, 3]}}]")


def test_patterns_are_held_to_the_names_that_there_are():
    names = ["0.weight", "0.bias", "1.weight"]
    check_patterns(3, names)
    check_patterns((("0.*", 2), ("*.weight", 4), ("default", 3)), names)
    with pytest.raises(ValueError, match="no parameter is called 'fc'; allowed: default, or a pattern of names"):
        check_patterns((("0.*", 2), ("fc", 4), ("default", 3)), names)
    with pytest.raises(ValueError, match="every parameter that fits '0.bias' fits a pattern before it"):
        check_patterns((("0.*", 2), ("0.bias", 4), ("default", 3)), names)


def test_levels_that_collide_and_feedback_that_grows_are_found_for_any_number():
    config = experiment("").find(None).trial.config()
    quantizer = {"method": "nuqsgd", "bits": {"a": 8, "default": 3}, "multiplier": 0.1}
    with pytest.raises(ValueError, match="quantizer.bits of at most"):
        Trial.model_validate(config | {"quantizer": quantizer})
    one = FixedLevelsOptions.model_validate({"method": "qsgd_inf", "bits": {"a": 1, "default": 3}})
    assert "allowed: below 1" in contraction_problem(one)
    assert contraction_problem(one.model_copy(update={"bits": 3})) is None
    changed = {"quantizer": one.model_dump(), "exchange": {"error_feedback": True}}
    with pytest.raises(ValueError, match=r"combination|error_feedback: scaled"):
        Trial.model_validate(config | changed)
