"""Learning rates of schedules, by hand, and what a schedule may not be."""

import math

import pytest
from pydantic import ValidationError

from lqray.experiment.options.schedule import ScheduleOptions
from lqray.training.schedule import in_iterations, learning_rate


def schedule(**options) -> ScheduleOptions:
    return ScheduleOptions(**({"batch_size": 4} | ({} if "epochs" in options else {"iterations": 10}) | options))


def rates(options: ScheduleOptions, steps: int = 10) -> list[float]:
    return [learning_rate(2.0, options, iteration) for iteration in range(steps)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 10 - i over the last four steps, and the run ends at 0
        ({"decay": "wsd", "cooldown": 0.4}, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"decay": "wsd", "cooldown": 0.4, "final_rate": 0.2}, [1, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        ({"decay": "wsd"}, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
        ({"decay": "wsd", "cooldown": 0.2, "warm_up": 2}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
        ({"decay": "wsd", "cooldown": 1.0}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (
            {"decay": "wsd", "cooldown": 0.6, "warm_up_share": 0.4},
            [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6],
        ),
        ({"warm_up_share": 0.4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"warm_up_share": 0.01}, [1] * 10),
        ({"warm_up_share": 0.99, "decay": "cosine"}, [(i + 1) / 10 for i in range(10)]),
        ({"warm_up_share": 0.3, "decay_at": (6,)}, [1 / 3, 2 / 3, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_rates_by_hand(options, expected):
    assert rates(schedule(**options)) == pytest.approx([2 * each for each in expected])


def half_cosine(share: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * share)


def test_cosine_ends_at_its_final_rate():
    found = rates(schedule(decay="cosine", final_rate=0.1), 11)
    assert found == pytest.approx([2 * (0.1 + 0.9 * half_cosine(i / 10)) for i in range(11)])
    assert found[5] == pytest.approx(1.1)
    assert found[10] == pytest.approx(0.2)


def test_cosine_counts_from_the_end_of_a_warm_up_by_share_and_from_the_start_of_the_run_otherwise():
    by_share = rates(schedule(decay="cosine", warm_up_share=0.2))
    assert by_share == pytest.approx([1.0, 2.0, *(2 * half_cosine(i / 8) for i in range(8))])
    by_iterations = rates(schedule(decay="cosine", warm_up=2))
    assert by_iterations == pytest.approx([1.0, *(2 * half_cosine(i / 10) for i in range(1, 10))])


def test_a_final_rate_of_zero_is_the_cosine_of_before_to_the_bit():
    before = [0.1 * (0.5 * (1.0 + math.cos(math.pi * i / 997))) for i in range(997)]
    assert [learning_rate(0.1, schedule(decay="cosine", iterations=997), i) for i in range(997)] == before


def test_shares_are_of_the_run_however_its_length_is_counted():
    options = {"decay": "wsd", "cooldown": 0.25, "warm_up_share": 0.1, "final_rate": 0.5}
    by_epochs = in_iterations(schedule(epochs=4, **options), steps_per_epoch=10)
    assert rates(by_epochs, 40) == rates(schedule(iterations=40, **options), 40)
    assert rates(by_epochs, 40)[:5] == pytest.approx([0.5, 1, 1.5, 2, 2])
    assert rates(by_epochs, 40)[-3:] == pytest.approx([1.3, 1.2, 1.1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"warm_up": 2, "warm_up_share": 0.1}, "at most one of warm_up and warm_up_share above 0; found 2 and 0.1"),
        ({"decay": "wsd", "warm_up_share": 0.5, "cooldown": 0.6}, "at most 1 together; found 0.5 and 0.6"),
        ({"batch_size": 10, "accumulate": 4}, "a divisor of batch_size; found 4 and batch_size 10"),
        ({"final_rate": 1.5}, "less than or equal to 1"),
        ({"warm_up_share": 1.0}, "less than 1"),
    ],
)
def test_what_a_schedule_may_not_be(options, told):
    with pytest.raises(ValidationError, match=told):
        schedule(**options)


def test_pieces_that_divide_a_batch_are_allowed():
    assert schedule(batch_size=12, accumulate=4).accumulate == 4
    assert schedule(warm_up_share=0.9, cooldown=0.6).decay == "step"
