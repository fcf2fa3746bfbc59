from lqray.reporting.records import Record
from lqray.reporting.tables import markdown_table, terminal_table

DONE = Record(
    "r1",
    "t1",
    "alq-seed1",
    "FINISHED",
    {"quantizer.method": "alq", "quantizer.bits": "3"},
    {
        "wire/bits_per_coordinate": 3.004,
        "test/accuracy": 0.98765,
        "time/seconds_per_step": 0.01,
        "quantizer/mean_nmse": 0.2233,
    },
    None,
)
FAILED = Record("r2", "t2", "nuqsgd", "FAILED", {"quantizer.method": "nuqsgd"}, {}, "boom")


def test_markdown():
    lines = markdown_table([DONE, FAILED]).splitlines()
    assert lines[2] == "| alq-seed1 | alq | 3 | 3.004 | 98.77% | 0.0100 | 0.223 | finished |"
    assert lines[3] == "| nuqsgd | nuqsgd | - | - | - | - | - | failed |"


def test_no_records_make_an_empty_table():
    assert terminal_table([]).row_count == 0
