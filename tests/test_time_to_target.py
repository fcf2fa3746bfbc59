"""benchmarks/time_to_target.py: what it extrapolates, what it compares, and a small run over shaped links."""

import importlib
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.testing.shaped_hosts import why_not

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    """The two modules, as the script sees them. A call of `main` sets what SIGTERM does."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("time_to_target"), importlib.import_module("timed_trial")
    for name in ("time_to_target", "timed_trial", "record"):
        sys.modules.pop(name)
    signal.signal(signal.SIGTERM, before)


def test_a_run_is_extrapolated_from_its_first_steps_and_typical_ones(benchmark):
    _, timed = benchmark
    assert timed.warm_up(None) == 12
    assert [timed.warm_up(every) for every in (1, 8, 12, 32)] == [12, 16, 12, 32]
    seconds = [5.0] * 12 + [1.0, 3.0]
    assert timed.typical(seconds, None) == 2.0
    assert timed.totalled(seconds, None, 112) == 60.0 + 100 * 2.0
    assert timed.totalled(seconds, None, 7) == 35.0
    # A round of eight, whose last step exchanges; the beginning of another one is no round.
    rounds = [*([1.0] * 7 + [9.0]) * 3, 1.0, 1.0, 1.0]
    assert timed.typical(rounds, 8) == 2.0
    assert timed.totalled(rounds, 8, 80) == pytest.approx(160.0)


def row(method, seconds, link=10, seed=1, reached=True, measured=True, **more):
    return {
        "workload": "digits",
        "link_megabits": link,
        "method": method,
        "seed": seed,
        "trial_id": f"{method}{seed}",
        "iterations": 100,
        "target": 0.9,
        "reached": reached,
        "seconds_to_target": 10 * seconds if reached else None,
        "seconds_per_step": seconds,
        "bytes_per_step": 2_500_000 if method == "bf16" else 1000,
        "measured": measured,
        "extrapolated_from_steps": None if measured else 8,
    } | more


def test_methods_are_compared_with_bf16_of_their_seed(benchmark):
    table, _ = benchmark
    rows = [row("bf16", 2.0), row("eden_2_bits", 0.5), row("bf16", 6.0, seed=2), row("eden_2_bits", 1.0, seed=2)]
    rows += [row("allocated_2_bits", 4.0, reached=False), row("eden_2_bits", 1.0, link=0)]
    found = table.summary(rows, {"digits, 10 Mbit/s": 0.5})["digits, 0.9 within 100 steps"]
    at = found["10 Mbit/s"]
    assert at["eden_2_bits"]["speed_up_over_bf16"] == 5.0  # of 4 and 6
    assert at["eden_2_bits"]["seconds_to_target"] == 7.5
    assert (at["allocated_2_bits"]["reached"], at["allocated_2_bits"]["speed_up_over_bf16"]) == (0, None)
    assert at["allocated_2_bits"]["step_by_bf16"] == 0.5
    # 2.5 MB at 10 Mbit/s are 2 seconds; steps of bf16 took 2 and 6.
    assert at["possible"] == {"step_by_bf16": 4.0 / 0.5, "by_rate": (0.5 + 2.0) / 0.5, "bf16_wire_seconds": 2.0}
    assert "possible" not in found["unlimited"]
    place = "digits, 0.9 within 100 steps, 10 Mbit/s"
    assert table.targets_of({"digits, 0.9 within 100 steps": found}) == {
        f"{place}: eden_2_bits reaches the target before bf16": True,
        f"{place}: the fastest has 85% of what is possible by the link's rate": True,  # 5 of 5
        f"{place}: the fastest has 85% of what is possible": False,  # 5 of 8
        f"{place}: the fastest is there 5 times as fast as bf16": True,
    }


def test_the_table_has_seconds_and_the_range_of_what_seeds_win(benchmark):
    table, _ = benchmark
    ended = {"curve": [[100, 0.95]]}
    rows = [
        row("bf16", 2.0, link=0, **ended),
        *(row("bf16", 2.0, seed=seed, measured=False) for seed in (1, 2)),
        *(row("eden_2_bits", 0.5 * seed, seed=seed) for seed in (1, 2)),
        row("powersgd_rank_4", 1.0, reached=False),
        *(row("fp16", 4.0, seed=seed, reached=seed == 1) for seed in (1, 2)),
    ]
    found = table.summary(rows, {"digits, 10 Mbit/s": 0.5})["digits, 0.9 within 100 steps"]
    assert table.markdown(found) == (
        "| method | final | 10 Mbit/s |\n"
        "| --- | ---: | ---: |\n"
        "| `bf16` | 0.950 | ~20 s (1.00×) |\n"
        "| `eden_2_bits` | - | 7.5 s (2.00–4.00×) |\n"
        "| `powersgd_rank_4` | - | never (1 seeds) |\n"
        "| `fp16` | - | 40 s (0.50×), 1 of 2 |\n"
        "| possible, of a step | | 4× |\n"
    )


def test_the_readme_has_what_the_file_says(benchmark):
    table, _ = benchmark
    results = table.Results(ROOT / "benchmarks/results/time_to_target.json")
    found = table.summary(results.rows, results.compute)
    assert table.markdown(found["gpt_small, 2.4 within 200 steps"]) in (ROOT / "README.md").read_text()
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/guide/exchange.md").read_text()
    told = [goal for goal, links in found.items() if table.markdown(links) in text]
    assert {goal.partition(",")[0] for goal in told} == {"gpt_small", "gpt_small_muon", "fashion_mnist"}


def test_sentences_about_the_table_are_what_the_file_says(benchmark):
    table, _ = benchmark
    results = table.Results(ROOT / "benchmarks/results/time_to_target.json")
    links = table.summary(results.rows, results.compute)["gpt_small, 2.4 within 200 steps"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    docs = (ROOT / "docs/guide/exchange.md").read_text()

    def final(method):
        return statistics.fmean(links["unlimited"][method]["final_metrics"])

    ten, hundred = links["10 Mbit/s"], links["100 Mbit/s"]
    assert "two bits halve the time" in readme
    assert all(hundred[one]["speed_up_over_bf16"] > 2 for one in ("eden_2_bits", "allocated_2_bits"))
    assert "they are 6 times as fast and end within 0.5% of bf16's loss" in readme
    assert all(round(ten[one]["speed_up_over_bf16"]) == 6 for one in ("eden_2_bits", "allocated_2_bits"))
    assert all(final(one) < 1.005 * final("bf16") for one in ("eden_2_bits", "allocated_2_bits"))
    assert "one bit at every eighth step 19 times, and 1.5% above it" in readme
    assert round(ten["eden_1_bit_every_8"]["speed_up_over_bf16"]) == 19
    assert round(final("eden_1_bit_every_8") / final("bf16"), 3) == 1.015

    def shares(of, methods):
        places = [links[f"{rate} Mbit/s"] for rate in (10, 100, 1000)]
        best = [max(own["speed_up_over_bf16"] for name, own in at.items() if methods(name)) for at in places]
        return [round(100 * most / at["possible"][of]) for most, at in zip(best, places, strict=True)]

    def local(name):
        return "every" in name

    assert "has 74% of that at 10 Mbit/s, 92% at 100 and 90% at 1000" in docs
    assert shares("step_by_bf16", local) == [74, 92, 90]
    assert "95%, 97% and 91%" in docs
    assert shares("by_rate", local) == [95, 97, 91]
    assert "24%, 71% and 84%" in docs
    assert shares("step_by_bf16", lambda name: not local(name) and name != "possible") == [24, 71, 84]


def test_rows_are_kept_and_measured_ones_take_the_place_of_extrapolated_ones(benchmark, tmp_path):
    table, _ = benchmark
    file = tmp_path / "results.json"
    results = table.Results(file)
    trial = table.Choice().trial("digits", "bf16", 1)
    results.add(row("bf16", 2.0, measured=False, trial_id=trial.id))
    results = table.Results(file)
    assert results.has(trial, 10, 0.9, 8)
    assert not results.has(trial, 10, 0.9, 4)
    assert not results.has(trial, 10, 0.9, None)
    assert not results.has(trial, 100, 0.9, 8)
    assert results.trajectory(trial, 0.9) is None
    results.add(row("bf16", 3.0, trial_id=trial.id))
    assert [one["seconds_per_step"] for one in table.Results(file).rows] == [3.0]
    assert results.has(trial, 10, 0.9, 8)
    assert results.trajectory(trial, 0.9)["seconds_per_step"] == 3.0


def test_steps_of_one_seed_count_for_the_others(benchmark, tmp_path, monkeypatch):
    """A run without limits says how many steps each seed takes; how long they take is measured once on a link."""
    table, timed = benchmark
    asked = []

    def on_hosts(script, order, hosts, rate, timeout):
        trial = table.Trial.model_validate(order.trial)
        asked.append((trial.seed, rate, order.steps, order.to_the_end, order.alone))
        if order.steps is None:
            reached = {1: 40, 2: 56}[trial.seed]
            return timed.Steps(
                [0.01] * 200, [100] * 200, [dict.fromkeys(timed.PHASES, 0.0)] * 200, [[200, 0.99]], reached
            ), 0
        count = order.steps
        seconds = [9.0] * min(12, count) + [2.0] * (count - 12)
        return timed.Steps(seconds, [100] * count, [dict.fromkeys(timed.PHASES, 0.0)] * count), 0

    monkeypatch.setattr(table, "on_hosts", on_hosts)
    choice = table.Choice(
        ("digits",), (10,), ("bf16",), (1, 2), measured_steps=4, steps_of_seed=1, out=tmp_path / "results.json"
    )
    table.Benchmark(choice).run()
    assert asked == [
        (1, "10mbit", 30, False, True),
        (1, None, None, True, False),
        (1, "10mbit", 16, False, False),
        (2, None, None, True, False),
    ]
    rows = {(one["seed"], one["link_megabits"]): one for one in table.Results(choice.out).rows}
    assert [rows[seed, 0]["steps"] for seed in (1, 2)] == [40, 56]
    assert rows[1, 0]["seconds_to_target"] == pytest.approx(0.4)
    assert rows[1, 10]["seconds_to_target"] == 12 * 9.0 + 28 * 2.0
    assert rows[2, 10]["seconds_to_target"] == 12 * 9.0 + 44 * 2.0
    assert (rows[2, 10]["steps_of_seed"], rows[2, 10]["measured"], rows[2, 10]["final_metric"]) == (1, False, 0.99)


def test_every_method_makes_a_trial_of_every_workload(benchmark):
    table, _ = benchmark
    choice = table.Choice()
    for workload in table.WORKLOADS:
        trials = {method: choice.trial(workload, method, 2) for method in choice.methods}
        assert len({one.id for one in trials.values()}) == len(trials)
        local = trials["eden_2_bits_every_32"]
        assert (local.exchange.every, local.exchange.outer.lr, local.exchange.outer.momentum) == (32, 1.0, 0.0)
        alone, plain = choice.trial(workload, "sgd", 2), trials["bf16"]
        assert alone.workers == 1
        # One process computes the batches of half of the workers, one after the other.
        assert alone.schedule.batch_size == plain.schedule.batch_size * plain.workers // 2
        assert alone.schedule.accumulate == plain.workers // 2


@pytest.mark.processes
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_runs_over_shaped_links(benchmark, tmp_path, monkeypatch, capsys):
    """bf16 runs until it is there, two bits in local steps are extrapolated; the same call again runs nothing."""
    table, _ = benchmark
    out = tmp_path / "results.json"
    common = ["--workload", "digits", "--links", "100", "--evaluate-every", "8", "--target", "0.4", "--out", str(out)]
    table.main([*common, "--methods", "bf16", "--iterations", "60"])
    table.main(
        [*common, "--methods", "eden_2_bits_every_8", "--iterations", "24", "--target", "2", "--measured-steps", "8"]
    )
    figures = json.loads(out.read_text())["figures"]
    plain, whole, local = figures["rows"]
    assert plain["reached"]
    assert plain["measured"]
    assert 8 <= plain["steps_to_target"] < 60
    assert plain["steps_to_target"] % 8 == 0
    assert plain["final_metric"] >= 0.4
    # Two of two ranks all-reduce 16 bits: as many bytes as there are, all on the wire.
    assert plain["bytes_per_step"] == 150_004
    assert plain["interface_bytes"] > plain["steps"] * plain["bytes_per_step"]
    assert plain["seconds_to_target"] > plain["steps"] * 8e-8 * plain["bytes_per_step"]
    assert (whole["link_megabits"], whole["measured"], whole["steps"]) == (0, True, 24)
    assert (local["link_megabits"], local["measured"], local["extrapolated_from_steps"]) == (100, False, 8)
    assert (local["reached"], local["steps"], local["seconds_to_target"]) == (False, 24, None)
    assert local["final_metric"] == whole["final_metric"]
    # Two workers a process, two bits each, at one step of eight.
    assert local["bytes_per_step"] == pytest.approx(2 * 75_002 / 4 / 8, rel=0.06)
    assert all(local["phase_seconds"][phase] > 0 for phase in ("compute", "encode", "exchange", "decode"))
    assert "not reached~" in capsys.readouterr().out

    monkeypatch.setattr(table.Benchmark, "_on_hosts", lambda *_: pytest.fail("ran again"))
    table.main([*common, "--methods", "bf16", "--iterations", "60"])
    assert json.loads(out.read_text())["figures"] == figures


@pytest.mark.processes
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_one_that_is_ended_leaves_no_hosts(tmp_path):
    script, out = ROOT / "benchmarks/time_to_target.py", tmp_path / "results.json"
    command = [sys.executable, str(script), "--workload", "digits", "--links", "100", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        own = f"lq{running.pid % 100_000}-"
        deadline = time.monotonic() + 120
        while f"{own}1" not in _namespaces():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running.terminate()
        assert running.wait(60) == 143
    assert own not in _namespaces()


def _namespaces():
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
