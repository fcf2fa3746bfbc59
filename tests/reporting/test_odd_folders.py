"""Exported folders that anybody may have written, and artifacts that are damaged."""

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.experiment.errors import ExperimentError
from lqray.reporting.artifacts import ArtifactError, read_density
from lqray.reporting.comparison import bytes_sent
from lqray.reporting.exported import ExportedFolderError
from lqray.reporting.figures import load_kind
from lqray.reporting.figures.recordings import NothingToDrawError, Options
from lqray.reporting.figures.style import styled
from lqray.reporting.levels import level_histories, read_levels
from lqray.reporting.planned import Recorded
from lqray.reporting.plot import PlotError, Request, recordings_of
from lqray.reporting.records import Run, UnknownExperimentError, read_records
from lqray.reporting.report import ReportOptions, make_report, written
from lqray.reporting.selection import UnknownKeyError
from tests.testing.fuzzing import mutants, odd_bytes, odd_tree
from tests.testing.stores import Store

PUBLISHED = Path(__file__).parents[2] / "experiments/results/2026-11-25-digits"
SNAPSHOT = {"method": "alq", "levels": [-1.0, 0.0, 1.0], "edges": [-1.0, 0.0, 1.0], "density": [0.5, 0.5]}


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    """A small copy of what this repository has published."""
    made = tmp_path / "folder"
    made.mkdir()
    document = json.loads((PUBLISHED / "runs.json").read_text())
    document["runs"] = [one for one in document["runs"] if one["params"]["seed"] in ("1", "2")]
    (made / "runs.json").write_text(json.dumps(document))
    for name in ("metrics.parquet", "experiment.yaml"):
        shutil.copy(PUBLISHED / name, made / name)
    for one in document["runs"]:
        if one["params"]["quantizer.method"] == "alq":
            (made / "artifacts" / one["run_id"]).mkdir(parents=True)
            (made / "artifacts" / one["run_id"] / "density.json").write_text(json.dumps(SNAPSHOT))
    return made


def changed(folder, change):
    document = json.loads((folder / "runs.json").read_text())
    change(document)
    (folder / "runs.json").write_text(json.dumps(document))


@pytest.mark.parametrize("identifier", ["../../PWN", "a\n\\input{/etc/passwd}", "A" * 32, "0" * 31, None, 7])
def test_ids_are_hexadecimal_digits(folder, tmp_path, identifier):
    changed(folder, lambda document: document["runs"][1].update(run_id=identifier))
    for arguments in (["export", folder, tmp_path / "out/x"], ["report", folder, "--format", "latex"]):
        done = invoke(*arguments)
        assert done.exit_code == 2
        assert f"{folder}/runs.json: runs[1].run_id: found {identifier!a}" in done.stderr.replace("\\\\n", "\\n")
        assert "allowed: 32 hexadecimal digits" in done.stderr
    assert {one.name for one in tmp_path.iterdir()} == {"folder"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "found an empty file"),
        ('{"experiment": "x", "ru', "found what is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\x00\x01", "found what is no JSON"),
        ("[]", "found []; allowed: a mapping with experiment and runs"),
        ('{"runs": []}', "experiment: found nothing"),
        ('{"experiment": "x", "runs": [3]}', "runs[0]: found 3"),
        ('{"experiment": "x", "runs": [{}]}', "runs[0].run_id: found nothing"),
    ],
)
def test_a_damaged_list_of_runs_is_named(folder, content, said):
    (folder / "runs.json").write_text(content)
    compared = ["compare", "a", "b", "--experiment", folder]
    for arguments in (["report", folder], ["plot", folder, "--kind", "curves"], compared):
        done = invoke(*arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"Error: {folder}/runs.json: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_every_fault_is_named_by_its_key(folder):
    def change(document):
        document["runs"][0]["metrics"]["test/accuracy"] = "high"
        document["runs"][1]["params"]["seed"] = 1
        document["runs"][2]["status"] = "DONE"
        document["runs"][3]["started"] = "yesterday"
        del document["runs"][4]["trial_id"]

    changed(folder, change)
    said = invoke("report", folder).stderr
    for fault in (
        "runs[0].metrics.test/accuracy: found 'high'; allowed: a number",
        "runs[1].params.seed: found 1; allowed: a text",
        "runs[2].status: found 'DONE'; allowed: FINISHED,",
        "runs[3].started: found 'yesterday'",
        "runs[4].trial_id: found nothing",
    ):
        assert fault in said


@pytest.mark.parametrize("name", ["metrics.parquet", "experiment.yaml"])
def test_links_out_of_a_folder_are_not_followed(folder, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    done = invoke("report", folder)
    assert done.exit_code == 2
    assert f"{folder}/{name}: found a link to {tmp_path}/secret" in done.stderr


@pytest.mark.parametrize("content", [b"", b"PAR1", (PUBLISHED / "metrics.parquet").read_bytes()[:-200]])
def test_damaged_points_are_named(folder, content):
    (folder / "metrics.parquet").write_bytes(content)
    done = invoke("report", folder)
    assert done.exit_code == 2
    assert f"{folder}/metrics.parquet: found what is no table of points" in done.stderr


def test_points_in_csv_are_those_of_their_columns(folder):
    (folder / "metrics.parquet").unlink()
    for content, said in (
        ("a,b\n1,2\n", "no columns metric, run_id"),
        ("run_id,trial,metric,step,value,time\nr,t,test/accuracy,one,1,1\n", "invalid value 'one'"),
        ("run_id,trial,metric,step,value,time\nr,t,test/accuracy,,1,1\n", "points without step"),
    ):
        (folder / "metrics.csv").write_text(content)
        done = invoke("report", folder)
        assert done.exit_code == 2
        assert f"{folder}/metrics.csv: found what is no table of points" in done.stderr
        assert said in done.stderr


DAMAGED = [
    json.dumps(SNAPSHOT)[:50],
    "",
    "[]",
    json.dumps({**SNAPSHOT, "density": [1.0]}),
    json.dumps({**SNAPSHOT, "zeros": 1.5}),
    json.dumps({**SNAPSHOT, "zeros": True}),
    json.dumps({**SNAPSHOT, "levels": "all"}),
    json.dumps({**SNAPSHOT, "edges": [1, 0, 2]}),
    json.dumps({**SNAPSHOT, "density": [1e300, float("inf")]}),
    json.dumps({key: value for key, value in SNAPSHOT.items() if key != "method"}),
    "x" * (17 << 20),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_density_is_left_out_with_a_word(tmp_path, content):
    store = Store(tmp_path)
    ids = {method: store.run(method, 1, [0.5], metrics={"quantizer/level/0": 0.1}) for method in ("alq", "qsgd")}
    client = MlflowClient(store.uri)
    client.log_text(ids["alq"], content, "density.json")
    alone = invoke("plot", "known", "--kind", "density", "--uri", store.uri, "--out", tmp_path / "none")
    assert alone.exit_code == 2
    assert f"density.json of run {ids['alq']}" in alone.stderr
    client.log_text(ids["qsgd"], json.dumps(SNAPSHOT), "density.json")
    both = invoke("plot", "known", "--kind", "density", "--uri", store.uri, "--out", tmp_path / "f", "--format", "svg")
    assert both.exit_code == 0, both.output
    assert "left out: " in both.stdout
    assert f"density.json of run {ids['alq']}" in both.stdout


def test_an_export_leaves_out_what_is_damaged_with_a_word(tmp_path, caplog):
    store = Store(tmp_path)
    runs = [store.run("alq", seed, [0.5]) for seed in (1, 2)]
    odd = store.run("alq", 3, [0.5], tags={"lqray.trial_id": "../../PWN"})
    client = MlflowClient(store.uri)
    client.log_text(runs[0], json.dumps(SNAPSHOT)[:50], "density.json")
    client.log_text(runs[1], json.dumps(SNAPSHOT), "density.json")
    client.log_artifact(runs[0], _binary(tmp_path, "experiment.yaml"))
    done = invoke("export", "known", tmp_path / "out", "--uri", store.uri)
    assert done.exit_code == 0, done.output
    assert f"density.json of run {runs[0]}" in caplog.text
    assert f"run {odd} (alq-seed3): trial_id: found '../../PWN'" in caplog.text
    assert "experiment.yaml of run" in caplog.text
    assert f"density.json of run {runs[0]}" in (tmp_path / "out/README.md").read_text()
    assert [one.name for one in (tmp_path / "out/artifacts").iterdir()] == [runs[1]]
    assert invoke("report", tmp_path / "out").exit_code == 0


def _binary(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    return str(tmp_path / name)


def outcome(folder, draw):
    """What commands make of a folder: None for a table, else the text of one of our own errors."""
    try:
        group_by = draw.choice(((), ("trial",), ("quantizer.bits",)))
        report = make_report([Recorded("digits", str(folder))], ReportOptions(group_by=group_by))
        for shape in ("markdown", "latex", "csv", "json"):
            text = written(report, shape)
            assert not any(line.startswith("\\input") for line in text.splitlines())
    except (ExportedFolderError, ExperimentError, UnknownExperimentError, UnknownKeyError) as error:
        return str(error)
    return None


@pytest.mark.fuzz
def test_any_folder_is_read_or_refused(folder):
    sound = {name: (folder / name).read_bytes() for name in ("runs.json", "metrics.parquet", "experiment.yaml")}
    document = json.loads(sound["runs.json"])
    for _, draw in mutants("folders", 200):
        name = draw.choice(("runs.json", "runs.json", "runs.json", "metrics.parquet", "experiment.yaml"))
        file = folder / name
        if name == "runs.json" and draw.random() < 0.7:
            file.write_text(json.dumps(odd_tree(draw, document)))
        else:
            file.write_bytes(odd_bytes(draw, sound[name]))
        said = outcome(folder, draw)
        assert said is None or name in said or said.startswith(("no experiment", "found parameter")), said
        file.write_bytes(sound[name])


@pytest.mark.fuzz
def test_any_density_is_read_or_refused(folder):
    runs = read_records(str(folder), "digits")
    run = next(one for one in runs if (folder / "artifacts" / one.run_id).exists())
    file = folder / "artifacts" / run.run_id / "density.json"
    sound = file.read_bytes()
    for _, draw in mutants("densities"):
        tree = odd_tree(draw, json.loads(sound))
        file.write_bytes(odd_bytes(draw, sound) if draw.random() < 0.5 else json.dumps(tree).encode())
        said = f"density.json of run {run.run_id}"
        try:
            assert read_density(str(folder), run) is not None
        except ArtifactError as error:
            said = str(error)
        assert f"density.json of run {run.run_id}" in said


@pytest.mark.fuzz
def test_any_levels_are_read_or_refused(folder):
    run = next(one for one in read_records(str(folder), "digits") if (folder / "artifacts" / one.run_id).exists())
    file = folder / "artifacts" / run.run_id / "levels.json"
    series = {"steps": [1, 11, 21], "rows": [0, 0, 1], "values": [[-1.0, 1.0], [-1.0, 0.5, 1.0]]}
    document = {"every": 1, "series": {"quantizer/level": series}}
    for _, draw in mutants("levels"):
        sound = json.dumps(document).encode()
        file.write_bytes(
            odd_bytes(draw, sound) if draw.random() < 0.5 else json.dumps(odd_tree(draw, document)).encode()
        )
        said, found = f"levels.json of run {run.run_id}", {}
        try:
            found = level_histories(read_levels(str(folder), run))
        except ArtifactError as error:
            said = str(error)
        assert f"levels.json of run {run.run_id}" in said
        assert all(len(one.steps) == len(one.values) for one in found.values())


@pytest.mark.fuzz
def test_any_parameters_are_drawn_or_left_out(folder):
    document = json.loads((folder / "runs.json").read_text())
    keys = ("quantizer.bits", "schedule.decay_at", "schedule.decay_every", "quantizer.method", "seed")
    odd = ("[1, 20]", "1e-300", "-1", "x", "{}", "$\\frac{$", "0", "9" * 400, "4")
    for _, draw in mutants("figures", 25):
        mutant = copy.deepcopy(document)
        for run in mutant["runs"]:
            if draw.random() < 0.5:
                run["params"][draw.choice(keys)] = draw.choice(odd)
                run["metrics"][draw.choice(list(run["metrics"]))] = draw.choice((0, -1, 1e299, 1e-299, "nan", "inf"))
        (folder / "runs.json").write_text(json.dumps(mutant))
        with suppress(ExportedFolderError, NothingToDrawError, PlotError, UnknownExperimentError, UnknownKeyError):
            found = recordings_of([Recorded("digits", str(folder))], Request("all"))
            kind = load_kind(draw.choice(("curves", "bits", "levels", "links", "density", "throughput")))
            with styled():
                kind.draw(found, Options()).canvas.draw()


def test_a_count_of_any_length_costs_no_more_than_itself():
    many, metrics = "9" * 5000, {"wire/bytes_sent": 1.0}
    run = Run("r", "t", "n", "FINISHED", {"schedule.iterations": many}, metrics, None, {"lqray.attempt": many})
    assert run.attempt == 1
    assert bytes_sent(run) is None
