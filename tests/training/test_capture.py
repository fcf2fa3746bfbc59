"""Captured gradients are those of the training that they are taken from."""

import pytest
import torch

from lqray.experiment.errors import UnfitTrialError
from lqray.experiment.schema import Resources, Trial
from lqray.experiment.seeding import derive_seed
from lqray.training.capture import CaptureError, capture, read_captures, write_captures
from lqray.training.extra_gradients import extra_gradient
from lqray.training.worker import run_worker


def trial(**changes) -> Trial:
    config = {
        "data": {"name": "digits"},
        "model": {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"iterations": 5, "batch_size": 8},
        "quantizer": {"method": "alq", "bucket_size": 256, "update_at": [0, 2]},
        "workers": 2,
    }
    return Trial.model_validate(config | changes)


def test_gradients_are_of_the_parameters_of_then_and_of_minibatches_to_come():
    """As a full run of the trial has them after its steps 1 and 3, with BatchNorm and dropout."""
    chosen, seen = trial(), {}

    def look(stepped) -> None:
        for sample in range(2):
            for worker in range(2):
                seed = derive_seed(chosen.seed, "captured", stepped.done, sample, worker)
                indices = stepped.batches.indices(stepped.done + sample, worker)
                batch = stepped.dataset.train_batch(indices, seed)
                seen[stepped.done, sample, worker] = extra_gradient(stepped.network, stepped.objective, batch, seed)

    found = capture(chosen, Resources(), [3, 1, 3], samples=2)
    assert [one.iteration for one in found] == [1, 3]
    run_worker(chosen, lambda report: None, torch.device("cpu"), 1, after_step=look)
    for one in found:
        for name, gradients in one.gradients.items():
            assert gradients.dtype == torch.float32
            for sample in range(2):
                for worker in range(2):
                    assert torch.equal(gradients[sample, worker], seen[one.iteration, sample, worker][name])
    assert not torch.equal(found[0].flat(), found[1].flat())
    rows = found[0].flat().view(4, -1)
    assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))


def test_what_is_written_is_read(tmp_path):
    found = capture(trial(), Resources(), [2], samples=1)
    write_captures(tmp_path / "gradients.pt", trial(), "small", found)
    document = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert (document["name"], document["trial"], document["config"]) == ("small", trial().id, trial().config())
    (again,) = read_captures(tmp_path / "gradients.pt")
    assert again.iteration == 2
    assert list(again.gradients) == list(found[0].gradients)
    assert torch.equal(again.flat(), found[0].flat())


@pytest.mark.parametrize("content", [b"", b"no file of torch's", None, {"version": 1}, {"version": 2, "captures": []}])
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "gradients.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(CaptureError, match="gradients"):
        read_captures(file)


def test_an_iteration_that_the_trial_has_not_is_refused_before_the_training():
    reports = []
    with pytest.raises(UnfitTrialError, match="allowed: 1 to 5"):
        capture(trial(), Resources(), [2, 6], say=reports.append)
    assert len(reports) <= 1


@pytest.mark.parametrize(("at", "samples"), [([], 1), ([0], 1), ([1], 0)])
def test_nothing_to_capture(at, samples):
    with pytest.raises(ValueError, match="from 1 on"):
        capture(trial(), Resources(), at, samples)
