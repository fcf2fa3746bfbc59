"""Modelled steps on links: equations beside numbers worked out by hand, and what a report makes of recorded runs."""

import csv
import io
import json
import math

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.reporting.links import (
    Link,
    LinkError,
    OnHosts,
    Step,
    break_even,
    parsed_link,
    parsed_links,
    parsed_workers,
    shown_bandwidth,
    sixteen_bits,
    split_hosts,
    split_payload,
)
from lqray.reporting.report import written
from tests.testing.reports import report
from tests.testing.stores import Store

MEGABIT = Link("1mbit:10ms", 1e6, 0.01)


def test_an_all_gather_by_hand():
    """Four workers of 1,000 bytes: each receives three payloads, 24,000 bits, in three messages, and decodes four."""
    step = Step("all_gather", 0.1, 1000, encode=0.02, decode=0.003, messages=2)
    assert step.wire_seconds(4, MEGABIT) == pytest.approx(2 * 3 * 0.01 + 0.024)
    assert step.seconds(4, MEGABIT) == pytest.approx(0.1 + 0.02 + 4 * 0.003 + 0.084)
    assert step.seconds(1, MEGABIT) == 0.1


def test_a_scatter_reduce_by_hand():
    """Of four workers each sends three quarters of its payload, and of the means: 3/4 of 1,000 + 4,000 bytes, in twice
    three messages; it decodes a gradient's worth twice, however many there are."""
    step = Step("scatter_reduce", 0.1, 1000, mean=4000, encode=0.02, decode=0.003)
    assert step.wire_seconds(4, MEGABIT) == pytest.approx(2 * 3 * 0.01 + 0.030)
    assert step.seconds(4, MEGABIT) == pytest.approx(0.1 + 0.02 + 2 * 0.003 + 0.090)
    assert step.bits_sent(10**6) == pytest.approx(8 * 5000, rel=1e-5)


def test_a_ring_by_hand():
    """2 (W - 1) / W of the buffer, in 2 (W - 1) messages; half of it hidden."""
    step = Step("all_reduce", 0.1, 4000, overlap=0.5)
    assert step.wire_seconds(4, MEGABIT) == pytest.approx(6 * 0.01 + 0.048)
    assert step.seconds(4, MEGABIT) == pytest.approx(0.1 + 0.108 / 2)
    plain = sixteen_bits(1000, 0.2, 3)
    assert plain == Step("all_reduce", 0.2, 2000, messages=3)


def test_a_break_even_by_hand():
    """Two workers, 10,000 coordinates: bf16 sends 160,000 bits, 2 bits a coordinate 20,000, for 7 ms of coding."""
    plain = sixteen_bits(10_000, 0.1, 1)
    few = Step("all_gather", 0.1, 2500, encode=0.003, decode=0.002)
    assert break_even(few, plain, 2) == pytest.approx(140_000 / 0.007)
    for factor, faster in ((0.99, True), (1.01, False)):
        link = Link("", factor * 140_000 / 0.007)
        assert (few.seconds(2, link) < plain.seconds(2, link)) == faster
    # A ring has twice as many messages: latencies of more than 7 ms pay for the coding, on any link.
    assert break_even(few, plain, 2, 0.006) == pytest.approx(140_000 / 0.001)
    assert break_even(few, plain, 2, 0.0071) == math.inf
    # Nine workers decode nine payloads and send eight; a hundred send more than bf16's all-reduce ever does.
    assert break_even(few, plain, 9) == pytest.approx((16 * 8 / 9 * 20_000 - 8 * 8 * 2500) / (0.003 + 9 * 0.002))
    assert break_even(few, plain, 100) == 0.0
    assert break_even(plain, plain, 2) == 0.0
    assert break_even(sixteen_bits(1000, 0.1, 1), plain, 2) == math.inf


@pytest.mark.parametrize(
    ("text", "bandwidth", "latency"),
    [("10mbit", 1e7, 0), ("2.5gbit", 2.5e9, 0), (" 64kbit:1.5s", 64e3, 1.5), ("10mbit:20ms", 1e7, 0.02)],
)
def test_links_are_read(text, bandwidth, latency):
    found = parsed_link(text)
    assert (found.name, found.bandwidth, found.latency) == (text.strip(), bandwidth, pytest.approx(latency))


@pytest.mark.parametrize("text", ["", "10", "10mb", "0mbit", "-1mbit", "1e3mbit", "10mbit:20", "10mbit:", "10 mbit"])
def test_what_is_no_link_is_said(text):
    with pytest.raises(LinkError, match=r"found link '.*allowed: a rate above 0 .* 100mbit"):
        parsed_link(text)


def test_lists_are_read():
    assert [one.name for one in parsed_links("10mbit, 1gbit,10mbit")] == ["10mbit", "1gbit"]
    assert parsed_workers("2, 64,2") == (2, 64)
    for text in ("1", "2,", "x", "-2", "1000001", "²"):
        with pytest.raises(LinkError, match="allowed: numbers from 2 to 1000000"):
            parsed_workers(text)


def test_bandwidths_are_shown():
    numbers = (math.inf, 0.0, 500.0, 2e3, 2.25e7, 1e12)
    assert [*map(shown_bandwidth, numbers)] == ["any", "none", "500 bit/s", "2 kbit/s", "22.5 Mbit/s", "1e+03 Gbit/s"]


def test_hosts_by_hand():
    """Four hosts of 1,000 bytes, as an all_gather of them: three payloads, 24,000 bits, and four are decoded."""
    step = Step("hierarchical", 0.1, 1000, encode=0.02, decode=0.003)
    assert step.wire_seconds(4, MEGABIT) == pytest.approx(3 * 0.01 + 0.024)
    assert step.seconds(4, MEGABIT) == pytest.approx(0.1 + 0.02 + 4 * 0.003 + 0.054)


def test_what_a_process_of_hosts_counted_is_split():
    # Eight workers on two hosts of two processes: each sends half of a payload of 100 bytes to the other host.
    assert split_hosts(8, 2, 100, 50, 700) == OnHosts(2, 1, 2, 100)
    # The same found by placement, and with a process for each host, of which nothing travels inside.
    assert split_hosts(8, None, 100, 50, 700) == OnHosts(2, 1, 2, 100)
    assert split_hosts(8, None, 100, 100, 0) == OnHosts(4, 1, 2, 100)
    # Four hosts on two processes, and all on one, which hands over four payloads and sends nothing.
    assert split_hosts(8, 4, 200, 200, 0) == OnHosts(4, 2, 4, 100)
    assert split_hosts(8, 4, 400, 0, 0) == OnHosts(8, 4, 4, 100)
    assert split_hosts(8, 3, 100, 100, 0) is None
    assert split_hosts(8, 2, 0, 0, 0) is None


def test_a_run_by_way_of_hosts_has_a_modelled_step(tmp_path):
    """Four workers on two hosts of two processes, 100,000 coordinates in 2 bits: encoded once, two payloads decoded."""
    counts = {"wire/payload_bytes": 25e3, "wire/bytes_sent": 4e5, "wire/bits_per_coordinate": 2.0}
    counts |= {"wire/bytes_between_hosts": 12.5e3, "wire/bytes_within_hosts": 387.5e3}
    seconds = phases(forward=0.01, backward=0.02, encode=0.002, decode=0.004)
    params = SHARED | {"workers": 4, "exchange.reduction": "hierarchical", "exchange.hosts": "2"}
    made = Store(tmp_path)
    made.run("eden", 1, [0.9], params=params, metrics=counts | seconds)
    (found,) = report(made, links=[Link("10gbit", 1e10), Link("1mbit", 1e6)], workers=[2, 1024]).modelled.groups
    assert found.step == Step("hierarchical", pytest.approx(0.03), 25e3, 0.0, 0.002, 0.002)
    assert found.predictions[1].seconds == pytest.approx(0.03 + 0.002 + 1024 * 0.002 + 1023 * 2e5 / 1e10)
    assert found.predictions[2].seconds == pytest.approx(0.03 + 0.002 + 2 * 0.002 + 0.2)


def none(share, processes):
    return 0.0


def test_what_a_process_counted_is_split_among_its_workers():
    # Eight workers of 100 bytes on four processes of two.
    assert split_payload("all_gather", 8, 200, 3 * 200, none) == (2, 100, 0)
    assert split_payload("all_gather", 8, 800, 0, none) == (8, 100, 0)
    # An all-reduce takes the mean of a process's workers.
    assert split_payload("all_reduce", 8, 100, 150, none) == (2, 100, 0)
    # 2 * 100 to all, and a fourth of a mean of 240 bytes, of which 248 were expected.
    share, payload, mean = split_payload("scatter_reduce", 8, 260, 0.75 * 440, lambda share, processes: 248)
    assert (share, payload, mean) == (2, pytest.approx(100), pytest.approx(240))
    assert split_payload("scatter_reduce", 2, 440, 0, lambda share, processes: 240) == (2, 100, 240)
    assert split_payload("a.b:c", 8, 200, 600, none) is None
    assert split_payload("all_gather", 8, 0, 0, none) is None
    assert split_payload("all_gather", 10**15, 1, 1, none) is None


SHARED = {"workers": 2, "data.name": "digits", "model.name": "mlp", "schedule.batch_size": 8}


def phases(**seconds):
    return {f"time/{phase}_seconds": value for phase, value in seconds.items()}


@pytest.fixture
def store(tmp_path):
    """100,000 coordinates, two processes: full precision, which waits 10 ms for its exchange within the backward pass,
    2 bits, and 2 bits at every fourth step."""
    made = Store(tmp_path)
    alone = {"data": 0.001, "forward": 0.004, "optimizer": 0.005}
    made.run(
        "full_precision",
        1,
        [0.9],
        params=SHARED,
        metrics={"wire/payload_bytes": 4e5, "wire/bytes_sent": 4e5, "wire/bits_per_coordinate": 32.0}
        | phases(**alone, backward=0.020),
    )
    made.run(
        "eden",
        1,
        [0.9],
        params=SHARED | {"exchange.reduction": "all_gather", "exchange.every": "null"},
        metrics={"wire/payload_bytes": 25e3, "wire/bytes_sent": 25e3, "wire/bits_per_coordinate": 2.0}
        | phases(**alone, backward=0.010, encode=0.002, exchange=0.9, decode=0.004),
    )
    made.run(
        "eden",
        1,
        [0.9],
        name="seldom",
        params=SHARED | {"exchange.reduction": "all_gather", "exchange.every": "4"},
        metrics={"wire/payload_bytes": 6250, "wire/bytes_sent": 6250, "wire/bits_per_coordinate": 0.5}
        | phases(**alone, backward=0.015, encode=0.002, exchange=0.9, decode=0.004),
    )
    made.run("alq", 1, [0.9], params=SHARED, metrics={"wire/payload_bytes": 25e3, "wire/bytes_sent": 25e3})
    return made


def test_recorded_steps_on_other_links(store):
    made = report(store, links=[Link("1mbit", 1e6), MEGABIT], workers=[2, 4])
    found = {
        (group.keys["quantizer.method"], group.keys["exchange.every"]): one
        for group, one in zip(made.comparison.groups, made.modelled.groups, strict=True)
    }
    plain, eden, seldom = found["full_precision", "null"], found["eden", "null"], found["eden", "4"]
    # The shortest step computes for all: 1 + 4 + 10 + 5 ms.
    assert plain.step == Step("all_reduce", pytest.approx(0.020), 4e5, messages=1)
    assert eden.step == Step("all_gather", pytest.approx(0.020), 25e3, encode=0.002, decode=0.002)
    assert seldom.step == Step("all_gather", pytest.approx(0.020), 6250, encode=5e-4, decode=5e-4, messages=0.25)
    assert [one.seconds for one in plain.predictions] == pytest.approx([3.22, 4.82, 3.24, 4.88])
    # 20 + 2 + 2 * 2 ms, and 25,000 bytes or three times as many; 10 ms a message.
    assert [one.seconds for one in eden.predictions] == pytest.approx([0.226, 0.63, 0.236, 0.66])
    assert eden.predictions[0].by_bf16 == pytest.approx((0.02 + 1.6) / 0.226)
    assert eden.break_even[2] == pytest.approx((1_600_000 - 200_000) / 0.006)
    assert seldom.predictions[1].seconds == pytest.approx(0.02 + 5e-4 + 4 * 5e-4 + 0.15)
    assert found["alq", "null"] is None


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("every", [None, 8])
@pytest.mark.parametrize("method", ["eden", "random_k"])
def test_a_scatter_reduce_that_was_recorded_is_split(tmp_path, processes, every, method):
    """Four workers of a million coordinates each in 3 bits; the mean comes back in 8, or, of random_k, as a payload."""
    share, exchanges = 4 // processes, 1 / (every or 1)
    payload = 375_000 * exchanges
    mean = payload if method == "random_k" else (1_000_000 + 4 * 123) * exchanges
    handed = share * payload + mean / processes
    sent = (processes - 1) / processes * (share * payload + mean)
    counts = {"wire/payload_bytes": handed, "wire/bytes_sent": sent, "wire/bits_per_coordinate": 8e-6 * handed / share}
    seconds = phases(forward=0.01, backward=0.02, optimizer=0.004, encode=0.001, decode=0.001)
    params = {"workers": 4, "exchange.reduction": "scatter_reduce", "exchange.every": str(every or "null")}
    made = Store(tmp_path)
    made.run(method, 1, [0.9], params=SHARED | params, metrics=counts | seconds)
    (found,) = report(made, links=[Link("1mbit", 1e6)], workers=[2]).modelled.groups
    assert (found.step.payload, found.step.mean) == (pytest.approx(payload), pytest.approx(mean))
    # With local steps each worker of a process has an optimizer of its own.
    assert found.step.compute == pytest.approx(0.03 / share + 0.004 / (share if every else 1))


def test_torchs_averages_are_those_of_a_ring(tmp_path):
    made = Store(tmp_path)
    counts = {"wire/payload_bytes": 1e5, "wire/bytes_sent": 1e5, "wire/bits_per_coordinate": 8.0}
    seconds = phases(forward=0.01, backward=0.02)
    made.run("post_local_sgd", 1, [0.9], params=SHARED | {"exchange.every": "4"}, metrics=counts | seconds)
    (found,) = report(made, links=[Link("1mbit", 1e6)], workers=[4]).modelled.groups
    assert found.predictions[0].seconds == pytest.approx(0.03 + 1.5 * 0.8)


@pytest.mark.parametrize(
    ("params", "metrics"),
    [
        ({"workers": "9" * 18}, {}),
        ({"workers": "x", "quantizer.bucket_size": "0", "exchange.reduction": "scatter_reduce"}, {}),
        ({"exchange.bucket_cap_mb": "1e-300", "exchange.every": "0"}, {}),
        ({"exchange.bucket_cap_mb": "what"}, phases(forward=-1.0, backward=1.0, encode=0.0, decode=0.0)),
        ({}, {"wire/bits_per_coordinate": 1e-308}),
        ({}, {"wire/bytes_sent": -1e308}),
        ({}, {"wire/payload_bytes": 1e308}),
    ],
)
def test_what_others_recorded_is_modelled_or_left_out(tmp_path, params, metrics):
    """Folders of others say anything; nothing hangs, and nothing raises."""
    counts = {"wire/payload_bytes": 25e3, "wire/bytes_sent": 25e3, "wire/bits_per_coordinate": 2.0}
    made = Store(tmp_path)
    seconds = phases(forward=0.01, backward=0.02, encode=0.001, decode=0.001)
    made.run("eden", 1, [0.9], params=SHARED | params, metrics=counts | seconds | metrics)
    found = report(made, links=[Link("1mbit", 1e6)], workers=[2])
    for shape in ("markdown", "csv", "latex"):
        written(found, shape)
    json.loads(written(found, "json"), parse_constant=pytest.fail)


def test_they_are_marked_as_modelled_in_every_format(store):
    made = report(store, links=[Link("1mbit", 1e6)], workers=[2])
    text = written(made, "markdown")
    assert "| modelled step, 1mbit, 2 workers | faster than bf16 below, 2 workers |" in text
    assert "| 226 ms (7.17×) | 233 Mbit/s |" in text
    assert "* Modelled, not measured: " in text
    assert "* Rows without a modelled step " in text
    assert text.count("\n| alq ") == 2
    rows = list(csv.DictReader(io.StringIO(written(made, "csv"))))
    assert [row["modelled seconds per step 1mbit 2 workers"] for row in rows].count("") == 1
    assert list(rows[0])[-1] == "run_ids"
    document = json.loads(written(made, "json"))
    assert [one["modelled"] is None for one in document["groups"]].count(True) == 1
    own = next(one["modelled"] for one in document["groups"] if _is_eden(one["keys"]))
    assert own["predictions"][0]["seconds_per_step"] == pytest.approx(0.226)
    assert own["faster_than_bf16_below"]["2"] == pytest.approx(1.4e6 / 0.006)
    latex = written(made, "latex")
    assert latex.count("\\begin{tabular}") == 2
    assert "% Modelled, not measured" in latex
    plain = report(store)
    assert plain.modelled is None
    for shape in ("markdown", "csv", "json", "latex"):
        assert "odelled" not in written(plain, shape)


def _is_eden(keys):
    return keys["quantizer.method"] == "eden" and keys["exchange.every"] == "null"


def test_on_the_command_line(store):
    call = ["report", store.experiment, "--uri", store.uri]
    shown = CliRunner().invoke(main, [*call, "--format", "csv", "--link", "10mbit,1gbit:1ms"])
    assert shown.exit_code == 0, shown.output
    assert "modelled seconds per step 1gbit:1ms 64 workers" in shown.output
    terminal = CliRunner().invoke(main, [*call, "--link", "10mbit", "--workers", "2"])
    assert "Modelled, not measured" in terminal.output
    for options, said in (
        (["--link", "10"], "found link '10'"),
        (["--link", "10mbit", "--workers", "1"], "found workers '1'"),
        (["--workers", "2"], "found --workers without --link"),
    ):
        refused = CliRunner().invoke(main, [*call, *options])
        assert refused.exit_code == 2
        assert said in refused.output


def test_what_an_exchange_takes_besides_is_counted(tmp_path):
    """100 ms of computing, as bf16 shows; 2 ms to encode, 4 to decode two; the coded step took 127: 21 are others'."""
    made = Store(tmp_path)
    counted = {"wire/payload_bytes": 2e5, "wire/bytes_sent": 2e5, "wire/bits_per_coordinate": 16.0}
    made.run("bf16", 1, [0.9], params=SHARED, metrics=counted | phases(forward=0.04, backward=0.06))
    few = {"wire/payload_bytes": 25e3, "wire/bytes_sent": 25e3, "wire/bits_per_coordinate": 2.0}
    coded = phases(forward=0.04, backward=0.087, encode=0.002, decode=0.004)
    made.run("eden", 1, [0.9], params=SHARED, metrics=few | coded)
    plain, own = report(made, links=[Link("10mbit", 1e7)], workers=[2, 8]).modelled.groups
    assert plain.step.other == 0.0
    assert own.step.other == pytest.approx(0.021)
    assert [one.seconds for one in own.predictions] == pytest.approx([0.127 + 0.02, 0.1 + 0.002 + 0.016 + 0.021 + 0.14])
