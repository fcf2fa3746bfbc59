"""An experiment file is read once: what runs is what is recorded, whatever becomes of the file meanwhile."""

from pathlib import Path

import yaml
from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main
from lqray.experiment.plan import published_plan
from lqray.orchestration.plan import plan
from tests.testing.small import write


def test_a_file_edited_while_another_runs_is_recorded_as_it_was_read(tmp_path, monkeypatch):
    first, second = write(tmp_path, "first"), write(tmp_path, "second")
    before = plan.make_plan

    def edited_meanwhile(experiment, options):
        if experiment.name == "first":
            second.write_text(second.read_text().replace("lr: 0.05", "lr: 0.9"))
        return before(experiment, options)

    monkeypatch.setattr(plan, "make_plan", edited_meanwhile)
    result = CliRunner().invoke(main, ["run", str(first), str(second), "--launcher", "inline"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    client = MlflowClient(f"sqlite:///{tmp_path}/lqray.db")
    found = client.get_experiment_by_name("second")
    for one in client.search_runs([found.experiment_id]):
        assert one.data.params["optimizer.lr"] == "0.05"
        kept = Path(client.download_artifacts(one.info.run_id, "experiment.yaml")).read_text()
        assert yaml.safe_load(kept)["base"]["optimizer"]["lr"] == 0.05
    published = published_plan(found.tags)
    assert published is not None
    assert yaml.safe_load(published[1])["base"]["optimizer"]["lr"] == 0.05
