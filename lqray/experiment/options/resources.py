"""What trials run on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from lqray.experiment.options.section import MOST_OF_A_WORD, MOST_UNITS, MOST_WORKERS, Section


def _share_of_gpus(share: float) -> float:
    # Ray counts in ten-thousandths.
    if (share > 1 and share != int(share)) or 0 < share < 1e-4:
        raise ValueError("a whole number of GPUs, or a share of one below 1, of at least 0.0001; 0: none")
    return share


def _trials_at_a_time(count: Any) -> Any:
    if count != "auto" and (not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_WORKERS):
        raise ValueError(f"auto, or a number of trials from 1 to {MOST_WORKERS}")
    return count


class Resources(Section):
    """Where trials run. Not part of a trial: elsewhere, on devices of one kind with as many threads, it gives the same
    bits. With another number of `processes`, too, where all that is exchanged is quantized; what is averaged in full
    precision, or by torch's own hooks, agrees up to the order of float sums, and such a trial that has begun goes on
    with as many processes as it had."""

    processes: int | None = Field(default=None, ge=1, le=MOST_WORKERS)
    """Processes of a trial, a divisor of its workers; by default one for each. Workers that share a process compute
    their gradients in turn, each encoded on its own."""
    cpus_per_process: int = Field(default=1, ge=1, le=4096)
    """CPU cores, and torch threads, of a process."""
    gpus_per_process: Annotated[float, AfterValidator(_share_of_gpus)] = Field(default=0, ge=0, le=MOST_WORKERS)
    """GPUs of a process: a whole number, or a share of one below 1; 0 trains on the CPU."""
    memory_gib_per_process: float | None = Field(default=None, ge=2**-10, le=MOST_UNITS)
    """Memory that a process may use, in GiB; beyond it, the trial fails as out of memory. Ray sets as much aside."""
    timeout_seconds: float = Field(default=600.0, ge=0.01, le=30 * 86400)
    """How long a process waits for the others in a collective before it fails; at most a month."""
    trial_time_limit: float | None = Field(default=None, ge=1, le=366 * 86400)
    """Seconds that a trial may run in one launch, from its beginning there and over all its tries; null: any time. One
    that runs longer stops after a checkpoint, as by `lqray stop`, is KILLED with that reason, and the next one begins.
    The same command again continues it, for as long once more: the limit is of a launch, as a batch system's is of a
    job."""
    network_interface: str | None = Field(default=None, min_length=1, max_length=MOST_OF_A_WORD)
    """Network interface that gradients travel over, such as eth0, on every machine; a prefix will do for NCCL. By
    default GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME of the machine's environment, or else torch's choice."""
    concurrent_trials: Annotated[int | Literal["auto"], BeforeValidator(_trials_at_a_time)] = "auto"
    """Trials at a time, from 1 to 16,384; auto: as many as fit."""
