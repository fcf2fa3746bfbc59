"""A worker's process group: whose environment counts, and how it ends."""

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist

from lqray.experiment.options.resources import Resources
from lqray.experiment.schema import Trial
from lqray.training import worker
from lqray.training.standalone import LaunchVariablesError, run_standalone
from lqray.training.worker import release_ended_groups, run_worker

TRIAL = Trial.model_validate(
    {
        "data": {"name": "gaussian_mixture"},
        "model": {"name": "mlp", "layers": [8]},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"iterations": 2, "batch_size": 4, "evaluate_every": 2},
        "workers": 2,
        "quantizer": {"method": "alq", "bucket_size": 64, "update_at": [0]},
    }
)
INHERITED = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.255.255.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "mine",
}


def test_a_worker_alone_takes_no_notice_of_the_environment(monkeypatch):
    for name, value in INHERITED.items():
        monkeypatch.setenv(name, value)
    metrics = run_worker(TRIAL, lambda report: None, torch.device("cpu"), 1, timeout_seconds=5)
    assert "test/accuracy" in metrics


@pytest.mark.processes
def test_processes_of_a_given_place_take_no_notice_of_it_either():
    code = """
    import multiprocessing, os, socket, torch
    from lqray.training.worker import Place, run_worker
    from tests.training.test_worker import INHERITED, TRIAL

    def one(rank, port):
        os.environ |= INHERITED
        run_worker(TRIAL, lambda report: None, torch.device("cpu"), 1, 60, place=Place(rank, 2, port))
        os._exit(7)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=one, args=(rank, port)) for rank in (0, 1)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert [each.exitcode for each in both] == [7, 7]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"RANK": "0"}, "found RANK=0; missing: WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "missing: RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "allowed: whole numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK from 0 to WORLD_SIZE - 1"),
    ],
)
def test_half_of_torchruns_variables_is_an_error_that_names_the_rest(monkeypatch, found, says):
    for name in INHERITED:
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchVariablesError, match=says):
        run_standalone(TRIAL, Resources(), lambda line: None)


def test_a_master_alone_makes_no_rank(monkeypatch):
    for name in INHERITED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "10.255.255.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "test/accuracy" in run_standalone(TRIAL, Resources(), lambda line: None)


def test_the_last_reference_of_a_group_never_falls_on_a_thread_of_its_own():
    """A callback that returns late holds the group by its closure; torch then aborts ("Resource deadlock avoided")."""
    code = """
    import threading, time, torch, torch.distributed as dist
    from datetime import timedelta
    from lqray.training import worker

    over, done = threading.Event(), threading.Event()

    class Exchange:
        def __init__(self, group):
            self.group = group
        def __del__(self):
            done.set()

    def late(exchange):
        def callback(future):
            over.wait(10)
            return exchange.group.size()
        return callback

    def trial():
        with worker._process_group("gloo", timedelta(seconds=10), None, None) as group:
            work = dist.all_reduce(torch.ones(20_000_000), group=group, async_op=True)
            work.get_future().then(late(Exchange(group)))
            raise ValueError("diverged")

    try:
        trial()
    except ValueError:
        pass
    worker.release_ended_groups()
    assert len(worker._held) == 1 or done.is_set()
    over.set()
    assert done.wait(20)
    time.sleep(0.5)
    worker.release_ended_groups()
    assert not worker._held
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_ends_with_no_thread_of_a_group(fails):
    """One that asks for the GIL while the interpreter ends aborts the process, on a busy machine now and then."""
    code = f"""
    import atexit, os, torch

    def threads():
        return [open(f"/proc/self/task/{{task}}/comm").read().strip() for task in os.listdir("/proc/self/task")]

    @atexit.register  # the first one registered is the last one called
    def told():
        print("at the end", threads())

    from lqray.experiment.schema import Trial
    from lqray.training.worker import run_worker

    trial = Trial.model_validate_json({TRIAL.model_dump_json()!r})
    if {fails}:
        trial = trial.model_copy(update={{"optimizer": trial.optimizer.model_copy(update={{"lr": 1e30}})}})
    try:
        run_worker(trial, lambda report: print("during", threads()), torch.device("cpu"), 1)
    except Exception as error:
        print("failed", str(error)[:60])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert ("failed" in done.stdout) == fails
    during, end = done.stdout.split("at the end")
    assert "pt_gloo_runloop" in during or fails
    assert "gloo" not in end


def test_groups_of_trials_that_ended_are_let_go_of():
    run_worker(TRIAL, lambda report: None, torch.device("cpu"), 1)
    release_ended_groups()
    assert not worker._held
    diverging = TRIAL.model_copy(update={"optimizer": TRIAL.optimizer.model_copy(update={"lr": 1e30})})
    for _ in range(2):
        with pytest.raises(Exception, match="finite|NaN|nan|inf"):
            run_worker(diverging, lambda report: None, torch.device("cpu"), 1)
    release_ended_groups()
    assert not worker._held
    assert not dist.is_initialized()


def test_what_few_trials_need_is_not_imported_before():
    """A process of a trial, and the launch that looks at its network, begin a second or two sooner without."""
    code = "import lqray.training.worker, lqray.training.estimate, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spared = {"scipy", "sympy", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.optim"}
    assert spared.isdisjoint(done.stdout.split())
    assert {"matplotlib", "mlflow", "pandas", "ray", "torchvision"}.isdisjoint(done.stdout.split())
