"""Tags that other users of a store have written: each costs at most what it is of."""

import json
import logging
import random
import sqlite3
import time
import unicodedata
from contextlib import closing, suppress
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lqray.cli import main
from lqray.experiment.plan import PLAN, plan_tags, published_plan
from lqray.orchestration.recording.claims import Holder
from lqray.orchestration.recording.overview import progress_of
from lqray.reporting.report import _diverged
from lqray.store.runs import Run
from tests.testing.fuzzing import COUNT, count, mutants, odd_text
from tests.testing.stores import Store

PROGRESS = json.dumps({"rate": 1.5, "iteration": 4, "iterations": 9, "host": "vm:1", "time": 1e9})
SOUND = {
    "lqray.progress": PROGRESS,
    "lqray.attempt": "1",
    "lqray.error": "boom [enforce fail at alloc_cpu.cpp:127] err == 0",
    "lqray.failure": "user_error",
    "lqray.failed_host": "vm",
    "lqray.failed_rank": "0",
    "lqray.folder": "/nowhere/at/all",
    "lqray.nan_metrics": "train/loss",
    "lqray.stopped": "lqray stop",
    "lqray.trial_name": "alq-seed1",
    "lqray.command": "lqray run x.yaml",
    "lqray.git_dirty": "true",
    "lqray.code": "abc",
}
QUICKSTART = Path(__file__).parents[2] / "experiments/quickstart.yaml"
YAML = "name: known\nbase: {}\nsweep:\n- matrix: {seed: [1, 2], quantizer.method: [alq, qsgd]}\n"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


def is_plain(text):
    return all(unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in text.replace("\n", ""))


def sound_end(done):
    """A table, or one of our own errors; nothing of what others wrote acts on the terminal."""
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert done.exit_code in (0, 2)
    assert is_plain(done.output), ascii(done.output)
    if done.exit_code:
        assert done.stderr.startswith("Error: ")
    return done.output


def test_a_bad_tag_costs_its_cell_and_no_more(store):
    store.run("alq", 1, status="RUNNING", tags={"lqray.progress": "{not json"})
    now = json.dumps({"rate": 2.0, "iteration": 40, "iterations": 90, "host": "vm:1", "time": time.time()})
    store.run("alq", 2, status="RUNNING", tags={"lqray.progress": now})
    store.run("qsgd", 1, status="FAILED", tags={"lqray.failure": "no such kind", "lqray.attempt": "9" * 4000})
    for arguments in (["status"], ["status", "known"]):
        shown = sound_end(invoke(*arguments, "--uri", store.uri))
        row = next(line for line in shown.splitlines() if "alq-seed1" in line)
        assert "lqray.progress is unreadable" in row
        assert "40/90" in shown
    assert "user_error: " in sound_end(invoke("failures", "known", "--uri", store.uri))
    sound_end(invoke("report", "known", "--uri", store.uri))


HOSTILE = "[/x] [bold]\x1b[2J\x1b]0;t\x07\x1b]8;;http://e\x1b\\\u202e| <b>\n=1$x"


def test_what_others_wrote_is_shown_as_it_is_and_does_nothing(store):
    names = [HOSTILE, "[old]"]
    for seed, name in enumerate(names):
        tags = {"lqray.error": f"[enforce fail at alloc_cpu.cpp:127] err == 0 {HOSTILE}", "lqray.failure": "user_error"}
        params = {"quantizer.bits": f"{HOSTILE}{seed}"}
        store.run("alq", seed, [0.5], "FAILED", params=params, tags=tags, name=name)
        params |= {"quantizer.method": f"{HOSTILE}\n\\input{{/etc/passwd}}"}
        store.run("alq", seed + 5, [0.5], params=params, name=f"{name} {seed}")
    shown = sound_end(invoke("status", "--uri", store.uri))
    assert r"[/x] [bold]\x1b[2J\x1b]0;t\x07" in shown
    assert "[old]" in shown
    assert "[enforce fail at alloc_cpu.cpp:127] err == 0" in shown
    assert "[enforce fail" in sound_end(invoke("failures", "known", "--uri", store.uri))
    for arguments in (["report", "known", "--group-by", "trial"], ["report", "known"]):
        for shape in ("terminal", "markdown", "csv", "json", "latex"):
            shown = sound_end(invoke(*arguments, "--format", shape, "--uri", store.uri))
            if shape == "latex":
                assert all(line.startswith("%") or r"\input" not in line for line in shown.splitlines())
                assert not any(line.startswith(r"\input") for line in shown.splitlines())
            if shape == "markdown":
                rows = [line.replace("\\\\", "").replace(r"\|", "") for line in shown.splitlines() if line[:1] == "|"]
                assert len({row.count("|") for row in rows}) == 1
                assert "<b>" not in shown
    compared = ["compare", "[old] 1", "[old]", "--uri", store.uri, "--all"]
    for shape in ("terminal", "markdown"):
        assert "[/x]" in sound_end(invoke(*compared, "--format", shape)).replace("\\", "")


def test_logs_are_shown_and_obeyed_by_nothing(store, tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    (folder / "rank-0.log").write_text(f"10%\r100%\n\x1b[31mred\x1b[0m {HOSTILE}\n")
    (folder / "rank-x.log").write_text("no rank's")
    store.run("alq", 1, [0.5], tags={"lqray.folder": str(folder)})
    store.run("alq", 2, [0.5], tags={"lqray.folder": "/\x00"})
    shown = sound_end(invoke("logs", "alq-seed1", "--uri", store.uri))
    assert "100%\nred [/x] [bold]" in shown
    assert shown.count("==> ") == 1
    assert "cannot be read" in sound_end(invoke("logs", "alq-seed2", "--uri", store.uri))


def test_warnings_are_shown_and_obeyed_by_nothing(store, capfd):
    invoke("status", "--uri", store.uri)
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "of %s", (HOSTILE,), None)
    assert logging.lastResort
    logging.lastResort.handle(record)
    said = capfd.readouterr().err
    assert is_plain(said)
    assert r"of [/x] [bold]\x1b[2J" in said


def test_experiments_that_others_named(store):
    store.client.create_experiment(HOSTILE)
    for command in ("status", "report", "failures"):
        shown = sound_end(invoke(command, "unknown", "--uri", store.uri))
        assert r"[/x] [bold]\x1b[2J" in shown
        assert r"<b>\n=1$x" in shown
    sound_end(invoke("status", "--uri", store.uri))


def test_a_plan_of_more_trials_than_anybody_can_expand_is_passed_over(store):
    store.run("alq", 1, [0.5])
    keys = ("seed", "schedule.batch_size", "quantizer.bucket_size")  # a file of more than ten million is no file at all
    axes = {key: list(range(1, 150)) for key in keys}
    base = yaml.safe_load(QUICKSTART.read_text())["base"]
    base["quantizer"]["method"] = "alq"
    text = yaml.safe_dump({"name": "known", "base": base, "sweep": [{"matrix": axes}]})
    for key, value in plan_tags("launch", text).items():
        store.client.set_experiment_tag(store.number, key, value)
    shown = sound_end(invoke("report", "known", "--uri", store.uri))
    assert "has more than 1,000,000 trials" in shown
    assert "alq" in shown


@pytest.mark.fuzz
def test_readers_of_single_tags_survive_any_text():
    plan = plan_tags("launch", YAML + "# " + "x" * 20)
    holder = str(Holder.this_process("launch"))
    for _, draw in mutants("single tags", 10 * COUNT):
        text = odd_text(draw, PROGRESS)
        state = Run("r", "t", "n", "RUNNING", tags={"lqray.progress": text})
        found = progress_of(state, 2e9)
        assert found is None or found.eta is None or found.eta == found.eta
        assert isinstance(Run("r", "t", "n", "RUNNING", tags={"lqray.attempt": odd_text(draw, "12")}).order[0], int)
        changed = {**plan, PLAN: odd_text(draw, plan[PLAN])}
        read = published_plan(changed)
        assert read is None or read.text
        with suppress(ValueError):
            Holder.parse(odd_text(draw, holder))


def test_names_of_metrics_stay_in_their_line():
    odd = Run("r", "t", "n", "FINISHED", {}, {"a\tb\nc": float("nan")}, None)
    assert _diverged([odd], []) == ["1 finished runs ended with a\\tb\\nc not finite; --metric shows them."]


@pytest.mark.fuzz
def test_commands_survive_any_tags_of_any_run(store):
    ids = [
        store.run("alq", seed, [0.5, 0.6], status, tags={**SOUND, "lqray.trial_name": f"alq-seed{seed}"})
        for seed, status in enumerate(("RUNNING", "FINISHED", "FAILED", "KILLED") * 10)
    ]
    rounds = max(1, count() // len(ids))
    for number in range(rounds):
        with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as tables, tables:
            for place, run_id in enumerate(ids):
                draw = random.Random(f"{number} {place}")
                key = draw.choice(list(SOUND))
                text = odd_text(draw, SOUND[key])[:5000].replace("\ud800", "")
                tables.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (text, run_id, key))
        for command in ("status", "failures", "report"):
            sound_end(invoke(command, "known", "--uri", store.uri))
        for shape in ("csv", "latex"):
            sound_end(invoke("report", "known", "--group-by", "trial", "--format", shape, "--uri", store.uri))
