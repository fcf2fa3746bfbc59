"""A run goes on in another number of processes, as often as it likes, and ends in the bits of one that never did."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from lqray.experiment.schema import Trial
from lqray.quantization.compressor import Compressor
from lqray.quantization.regrouping import Regrouping, RegroupingError, alike, same
from lqray.training.checkpoint import CheckpointError, Checkpoints, read_checkpoint
from lqray.training.worker import run_worker
from tests.testing.ranks import run_ranks

CPU = torch.device("cpu")
CNN = {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2}
ALQ = {"method": "alq", "bucket_size": 64, "update_at": [1, 5], "samples": 3}
FEEDBACK = {"error_feedback": True}
LAST = 8
KINDS = {
    "alq": {"quantizer": ALQ, "exchange": FEEDBACK},
    "alq of a convolutional network": {"model": CNN, "quantizer": ALQ, "exchange": FEEDBACK},
    "qsgd_inf": {"quantizer": {"method": "qsgd_inf", "bucket_size": 64}, "exchange": {"error_feedback": "scaled"}},
    "eden, moments": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "exchange": {"precondition": True},
        "telemetry": {"every": 4, "moments": True},
    },
    "eden, the optimizer's moments": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "exchange": {"precondition": "optimizer"},
    },
    "dither": {"quantizer": {"method": "dither", "bucket_size": 64}, "exchange": {"rounding": "correlated"}},
    "topk": {"quantizer": {"method": "topk", "density": 0.05}, "exchange": FEEDBACK},
    "random_k": {"quantizer": {"method": "random_k", "density": 0.6}, "exchange": FEEDBACK},
    "signsgd": {"quantizer": {"method": "signsgd"}, "exchange": {**FEEDBACK, "feedback_decay": 0.5}},
    "muon": {
        "quantizer": {"method": "allocated", "bits": 2},
        "optimizer": {"name": "muon", "lr": 0.01, "clip_norm": 0.5},
        "exchange": FEEDBACK,
    },
    "levels by layer": {
        "quantizer": {
            **ALQ,
            "method": "slopes",
            "bits": {"*.bias": 8, "default": 3},
            "levels": "layer",
            "levels_from": 10,
            "sampling": "fresh",
        },
        "exchange": {**FEEDBACK, "buckets": "layer"},
    },
    "scatter_reduce": {
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [2], "samples": 2},
        "exchange": {**FEEDBACK, "reduction": "scatter_reduce", "feedback_stages": "both", "buckets": "layer"},
    },
    "scatter_reduce, local steps": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "exchange": {
            **FEEDBACK,
            "reduction": "scatter_reduce",
            "feedback_stages": "both",
            "every": 2,
            "fragments": 2,
            "overlap": 1,
            "mixing": 0.5,
            "outer": {"optimizer": "adam", "lr": 0.1},
        },
    },
    "local steps": {
        "quantizer": {**ALQ, "update_at": [0, 2], "samples": 2},
        "optimizer": {"name": "muon", "lr": 0.01},
        "schedule": {"iterations": LAST, "batch_size": 8, "on_nonfinite": "skip", "accumulate": 2},
        "exchange": {"every": 2, **FEEDBACK, "outer": {"optimizer": "nesterov", "lr": 0.7}},
    },
    "hosts": {"quantizer": ALQ, "exchange": {"reduction": "hierarchical", "hosts": 2, "within": "bf16", **FEEDBACK}},
    "hosts, local steps": {
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "exchange": {"reduction": "hierarchical", "hosts": 2, "every": 2, "overlap": 1, **FEEDBACK},
    },
    "bfloat16": {
        "data": {"name": "gaussian_mixture"},
        "model": {"name": "mlp", "layers": [16], "dtype": "bf16"},
        "quantizer": {"method": "eden", "bits": 2, "bucket_size": 64},
        "exchange": FEEDBACK,
    },
}


def trial(kind: str, **changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "layers": [16]},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"iterations": LAST, "batch_size": 8, "evaluate_every": 100},
        "exchange": {},
        "telemetry": {"every": 4},
        "workers": 4,
    }
    return Trial.model_validate(config | KINDS.get(kind, {}) | changes)


class _StoppedError(Exception):
    pass


def train(chosen: Trial, folder: Path, until: int) -> None:
    """Goes on until so many steps are done, and writes a checkpoint."""

    def after_step(stepped) -> None:
        if stepped.done == until < LAST:
            raise _StoppedError

    with suppress(_StoppedError):
        run_worker(chosen, lambda report: None, CPU, 1, checkpoints=Checkpoints(folder, until), after_step=after_step)


def part(rank: int, folder: str, *runs: tuple[str, int]) -> None:
    for name, until in runs:
        for kind in KINDS:
            train(trial(kind), Path(folder) / kind / name, until)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """Every kind, in 4 processes; in 4, 2 and 1, one after the other; in 1 and 4."""
    folder = tmp_path_factory.mktemp("regrouped")
    for world, runs in (
        (1, [("up", 3)]),
        (4, [("whole", LAST), ("up", LAST), ("down", 3)]),
        (2, [("down", 5)]),
        (1, [("down", LAST)]),
    ):
        run_ranks(part, world, str(folder), *runs)
    return folder


def last(folder: Path) -> dict:
    return read_checkpoint(folder / f"step-{LAST:010d}.pt", CPU)


@pytest.mark.processes
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_in_the_same_bits_however_many_processes_there_were(ran, kind):
    whole = last(ran / kind / "whole")
    assert len(whole["ranks"]) == 4
    for name, world in (("down", 1), ("up", 4)):
        found = last(ran / kind / name)
        assert len(found["ranks"]) == world
        for part in ("network", "optimizer", "anchors", "outer"):
            assert same(found["shared"].get(part), whole["shared"].get(part)), (name, part)
    assert whole["ranks"][0]["bytes_sent"] > last(ran / kind / "down")["ranks"][0]["bytes_sent"] > 0


@pytest.mark.processes
def test_what_is_kept_of_workers_is_handed_out_and_what_a_process_owns_has_one_owner(ran):
    """Errors of scatter-reduce's second rounding, too, lie with one process each."""
    for kind in KINDS:
        whole, up, down = (last(ran / kind / name)["ranks"] for name in ("whole", "up", "down"))
        if "hosts" in kind:
            whole, up = whole[::2], up[::2]  # both processes of a host have the same
        for part in [part for part in ("residuals", "reduction") if part in down[0]]:
            counts = [sum(len(own[part]) for own in owns) for owns in (whole, up, down)]
            assert counts[0] == counts[1] == counts[2], (kind, part)
        owned = [name for own in up for name in own.get("reduction", ())]
        assert len(owned) == len(set(owned)), kind


REFUSED = {
    "full_precision": ({"quantizer": {"method": "full_precision"}}, "averaged as an all-reduce does"),
    "bf16": ({"quantizer": {"method": "bf16"}}, "averaged as torch's own hook does"),
    "powersgd": ({"quantizer": {"method": "powersgd"}}, "what PowerSGD keeps of them, are other bits"),
    "skip": ({"quantizer": ALQ, "exchange": {"skip": ["bias"]}}, r"leaves 1\.bias, 3\.bias to sums in full precision"),
    "later": ({"quantizer": ALQ, "exchange": {"quantize_from": 7}}, "before exchange.quantize_from: 7 it trains on"),
    "measured": ({"quantizer": ALQ, "exchange": {"trajectory": "full_precision"}}, "trajectory: full_precision trains"),
    "local steps in full precision": (
        {"quantizer": {"method": "full_precision"}, "exchange": {"every": 2}},
        "averaged as an all-reduce does",
    ),
}


def refused(rank: int, folder: str) -> list[str]:
    said = []
    for name, (changes, _) in REFUSED.items():
        try:
            train(trial("", **changes), Path(folder) / name, LAST)
            said.append("")
        except CheckpointError as error:
            said.append(str(error))
    return said


def begun(rank: int, folder: str) -> None:
    for name, (changes, _) in REFUSED.items():
        train(trial("", **changes), Path(folder) / name, 3)


@pytest.mark.processes
def test_where_bits_depend_on_the_processes_it_is_refused_with_the_reason(tmp_path):
    run_ranks(begun, 2, str(tmp_path))
    said = run_ranks(refused, 1, str(tmp_path))[0]
    for (name, (_, why)), text in zip(REFUSED.items(), said, strict=True):
        assert re.search(why, text), (name, text)
        assert f"{tmp_path / name} was written by 2 processes, now there is 1" in text
        assert "Allowed: as many as before (resources.processes: 2)" in text
    assert run_ranks(refused, 2, str(tmp_path))[0] == [""] * len(REFUSED)


def post_local(rank: int, folder: str, until: int) -> None:
    options = {"quantizer": {"method": "post_local_sgd", "start_iteration": 2}, "exchange": {"every": 2}, "workers": 2}
    train(trial("", **options), Path(folder), until)


@pytest.mark.processes
def test_torchs_post_local_sgd_has_a_process_for_each_worker(tmp_path):
    run_ranks(post_local, 2, str(tmp_path), 3)
    with pytest.raises(ProcessRaisedException, match="allowed: a rank for each worker"):
        run_ranks(post_local, 1, str(tmp_path), LAST)


def test_a_compressor_that_keeps_something_of_its_own_is_refused_unless_it_is_equal():
    class Own(Compressor):
        def encode(self, tensor, *, seed, offset):
            raise NotImplementedError

        def decode(self, payload):
            raise NotImplementedError

    grouping = Regrouping((range(0, 1), range(1, 2)), range(0, 2))
    states = [{"noise": torch.tensor([1.0, float("nan")])} for _ in range(2)]
    assert same(Own(None).regrouped(states, grouping), states[0])
    states[1]["noise"][0] = 2
    with pytest.raises(RegroupingError, match="the state of Own of process 1 differs from that of process 0"):
        Own(None).regrouped(states, grouping)


def test_what_is_kept_of_senders_keeps_their_numbers():
    """Six workers, of three processes to two."""
    held = tuple(range(first, first + 2) for first in (0, 2, 4))
    states = [{f"{number}/a/b": 10 * rank + number for number in range(2)} for rank in range(3)]
    assert Regrouping(held, range(0, 3)).numbered(states) == {"0/a/b": 0, "1/a/b": 1, "2/a/b": 10}
    assert Regrouping(held, range(3, 6)).numbered(states) == {"0/a/b": 11, "1/a/b": 20, "2/a/b": 21}
    assert Regrouping(held, range(3, 6)).first("abc") == "b"
    beside = (range(0, 1), range(0, 1), range(1, 2), range(1, 2))  # two processes for each of two hosts
    seen = [{"statistics/0": host} for host in (5, 5, 6, 6)]
    assert Regrouping(beside, range(0, 2)).numbered(seen, "statistics/") == {"statistics/0": 5, "statistics/1": 6}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor(1.0), torch.tensor(1)),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.zeros(2), torch.zeros(3)),
        ({"a": 1}, {"b": 1}),
        ([1], [1, 2]),
        ([1], (1,)),
        (1, 2),
    ],
)
def test_equal_is_equal_to_the_bit(one, other):
    assert same(one, one)
    assert not same(one, other)
    with pytest.raises(RegroupingError, match="it of process 1 differs"):
        alike([one, other], "it")
