"""Which code a run says that it comes from."""

import subprocess

from lqray.orchestration.provenance import provenance

SOURCE, LQRAY = "mlflow.source.git.commit", "lqray.git_commit"


def test_the_source_is_the_project_of_the_experiment_file(tmp_path):
    folder = tmp_path / "project" / "experiments"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("name: a")

    def git(*arguments: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    known, own = provenance(), provenance(str(folder / "a.yaml"))
    assert own[SOURCE] == git("rev-parse", "HEAD") != known.get(SOURCE)
    assert own.get(LQRAY) == known.get(LQRAY)


def test_without_a_project_the_source_is_lqray(tmp_path):
    found = provenance(str(tmp_path / "a.yaml"))
    assert found.get(SOURCE) == found.get(LQRAY) == provenance().get(SOURCE)
