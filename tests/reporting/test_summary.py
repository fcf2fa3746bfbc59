from lqray.experiment.headline import Headline
from lqray.experiment.standing import BestTrial, Standing
from lqray.reporting.summary import sweep_summary


def standing(**changes) -> Standing:
    told = {
        "experiment": "grid",
        "question": "Which method\n\nneeds fewest bits?",
        "axes": {"quantizer.method": ("alq", "qsgd"), "optimizer.lr": (0.1, 1e-05), "exchange.error_feedback": (True,)},
        "counts": {"finished": 2, "failed": 1, "not begun": 3, "running": 0},
        "best": [BestTrial("alq", "alq-seed1", 0.98765, 2)],
        "command": "lqray run grid.yaml",
        "time": 0.0,
    }
    return Standing(**told | changes)


def test_it_says_what_is_asked_how_it_stands_and_what_is_best():
    lines = sweep_summary(standing()).splitlines()
    assert lines[:3] == ["> Which method", ">", "> needs fewest bits?"]
    assert "- `quantizer.method`: alq, qsgd" in lines
    assert "- `optimizer.lr`: 0.1, 1e-05" in lines
    assert "- `exchange.error_feedback`: true" in lines
    assert any(line.startswith("**6 trials**: 2 finished, 1 failed, 3 not begun (19") for line in lines)
    assert "- **alq** 98.77%: `alq-seed1`, of 2 finished" in lines
    assert "lqray report grid" in lines
    assert "lqray plot grid --kind curves" in lines
    assert lines[-1] == "launched by `lqray run grid.yaml`"


def test_a_loss_is_written_as_one():
    lines = sweep_summary(standing(headline=Headline("test/loss", higher=False))).splitlines()
    assert "Best test loss of each method:" in lines
    assert "- **alq** 0.9877: `alq-seed1`, of 2 finished" in lines


def test_nothing_known_is_nothing_claimed():
    text = sweep_summary(standing(question="", axes={}, counts={}, best=[]))
    assert "**0 trials** (" in text
    assert "- " not in text
    assert ">" not in text


def test_it_fits_into_mlflows_tag_however_much_there_is():
    many = {f"key{number}": tuple(range(5000)) for number in range(40)}
    texts = {f"text{number}": tuple("|" * 50 for _ in range(30)) for number in range(40)}
    text = sweep_summary(standing(question="why? " * 5000, axes=many | texts, experiment="a b"))
    assert len(text) <= 4900
    assert "5000 values, 0 to 4999" in text
    assert any(line.startswith("> why?") and line.endswith(" …") for line in text.splitlines())
    assert "… 68 more axes" in text
    assert text.endswith("launched by `lqray run grid.yaml`")
    assert "18 more" in sweep_summary(standing(axes={"text": tuple("abc" for _ in range(30))}))
    assert "lqray report 'a b'" in sweep_summary(standing(experiment="a b"))
    assert "searched, 1e-05 to 0.1" in sweep_summary(standing(searched=True))
