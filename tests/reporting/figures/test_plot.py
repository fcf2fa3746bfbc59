"""`lqray plot`: its kinds, the files that it writes, and what it says where it cannot draw."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from lqray.cli import main
from lqray.reporting.figures import kinds, load_kind
from lqray.reporting.figures.recordings import NothingToDrawError
from lqray.reporting.planned import Recorded
from lqray.reporting.plot import Request, plot
from tests.testing.drawn_figures import drawn, plotted
from tests.testing.figure_stores import FigureStore


def test_every_kind_is_a_file_with_what_the_command_needs():
    assert kinds() == (
        "bits",
        "bucket_size",
        "bytes_to_accuracy",
        "curves",
        "density",
        "levels",
        "links",
        "loss_to_bytes",
        "profile",
        "throughput",
        "variance",
    )
    for name in kinds():
        kind = load_kind(name)
        assert kind.about.endswith(".")
        assert "group_by" in kind.takes
        assert f" {name}" in CliRunner().invoke(main, ["plot", "--help"]).stdout


def test_files_are_the_same_bytes_for_the_same_records(store, tmp_path):
    first, second = (
        next(plot([Recorded("known", store.uri)], Request("curves", out=tmp_path / folder))).files
        for folder in ("a", "b")
    )
    assert [file.name for file in first] == ["known-curves.png", "known-curves.svg", "known-curves.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    png, svg, pdf = (file.read_bytes() for file in first)
    assert png.startswith(b"\x89PNG")
    assert b">test accuracy</text>" in svg
    assert b"dc:date" not in svg
    assert b"/CreationDate" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, type 42
    assert b"/Type3" not in pdf
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == sorted(file.name for file in first)


def test_the_users_matplotlib_settings_do_not_matter(store, tmp_path):
    import matplotlib

    plain = next(plot([Recorded("known", store.uri)], Request("curves", formats=("svg",), out=tmp_path / "a"))).files[0]
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        loud = next(
            plot([Recorded("known", store.uri)], Request("curves", formats=("svg",), out=tmp_path / "b"))
        ).files[0]
    assert loud.read_bytes() == plain.read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_the_command_says_what_it_writes(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = plotted(store, "known", "--kind", "curves", "--format", "svg,pdf")
    assert done.exit_code == 0, done.output
    said = "  thin lines are single runs: intervals of fewer than 5 would hide the means\n"
    assert done.stdout == f"figures/known-curves.svg figures/known-curves.pdf\n{said}"
    assert Path("figures/known-curves.pdf").exists()
    assert plotted(store, "known", "--kind", "curves", "--out", "one.png").stdout == f"one.png\n{said}"
    assert sorted(file.name for file in Path().glob("one.*")) == ["one.png"]
    assert Path("one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("out", "formats", "files"),
    [
        ("paper/bytes.pdf", ("png", "svg", "pdf"), ["bytes.pdf", "bytes.png", "bytes.svg"]),
        ("paper/bytes.pdf", ("svg",), ["bytes.svg"]),
        ("paper/bytes.pdf", (), ["bytes.pdf"]),
        ("paper", ("svg",), ["known-curves.svg"]),
        ("paper", (), ["known-curves.pdf", "known-curves.png", "known-curves.svg"]),
    ],
)
def test_a_file_is_written_in_all_formats_that_are_asked_for(store, tmp_path, out, formats, files):
    request = Request("curves", formats=formats, out=tmp_path / out)
    written = next(plot([Recorded("known", store.uri)], request)).files
    assert sorted(file.name for file in (tmp_path / "paper").iterdir()) == files
    assert sorted(file.name for file in written) == files


def test_kind_all_draws_what_it_can_and_says_why_not_the_rest(store, tmp_path):
    done = plotted(store, "known", "--kind", "all", "--format", "png", "--out", str(tmp_path / "all"))
    assert done.exit_code == 0, done.output
    assert [file.name for file in (tmp_path / "all").iterdir()] == ["known-curves.png"]
    for kind in set(kinds()) - {"curves"}:
        assert f"{kind} is left out:" in done.stdout
    assert "telemetry.samples of 2 or more" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["known", "--kind", "curves", "--metric", "test/acuracy"],
            "did you mean 'test/accuracy'? allowed: test/accuracy",
        ),
        (["unknown", "--kind", "curves"], "no experiment 'unknown'"),
        (["known", "--kind", "curve"], "did you mean 'curves'? allowed: bits"),
        (["known", "--kind", "curves", "--format", "gif"], "allowed: png, svg, pdf"),
        (["known", "--kind", "curves", "--target", "0.9"], "allowed: with bytes_to_accuracy, links, profile"),
        (["known", "--kind", "curves", "--workers", "4"], "found --workers with --kind curves; allowed: with links"),
        (["known", "--kind", "links", "--measured", "none.json"], "found no file none.json"),
        (["known", "--kind", "levels", "--smooth", "3"], "allowed: with bytes_to_accuracy, curves, profile, variance"),
        (["known", "--kind", "all", "--out", "one.png"], "allowed: a folder"),
        (
            ["known", "--kind", "curves", "--only", "nope*"],
            "no trial of known matches --only nope*; allowed: full_precis",
        ),
        (["known", "--kind", "curves", "--where", "quantizer.method=qsgd"], "no trial of known matches --where"),
        (["known", "--kind", "curves", "--group-by", "quantizer.metod"], "did you mean 'quantizer.method'?"),
        (["known", "--kind", "variance"], "no trial has recorded quantizer/quantized_variance"),
        (["known", "--kind", "levels"], "no trial has recorded levels"),
        (["known", "--kind", "density"], "no finished trial has the artifact density.json"),
        (["known", "--kind", "throughput"], "telemetry.every"),
        (["known", "--kind", "bytes_to_accuracy"], "no trial that has sent anything has recorded"),
    ],
)
def test_errors_teach(store, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = plotted(store, *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert not Path("figures").exists()


def test_no_finished_trial_is_an_error_with_counts(tmp_path):
    store = FigureStore(tmp_path)
    store.run("alq", 1, {"test/accuracy": {100: 0.5}}, status="RUNNING")
    store.run("alq", 2, status="FAILED")
    store.run("alq", 3, status="FAILED")
    done = plotted(store.save(), "known", "--kind", "curves")
    assert done.exit_code == 2
    assert "no trial of known has finished: 2 failed, 1 running" in done.stderr
    assert f"`lqray failures known --uri {store.uri}`" in done.stderr
    assert "--running" in done.stderr
    figure, _ = drawn(store, "curves", Request("curves", running=True))
    assert len(figure.axes[0].get_lines()) == 1
    with pytest.raises(NothingToDrawError):
        drawn(store, "bits", Request("bits", running=True))
