"""Exchange of gradients between workers: a torch DDP communication hook, the reductions it chooses from, and the count
of what they send."""

from lqray.communication.baselines import Baseline, is_baseline
from lqray.communication.hook import GradientExchange
from lqray.communication.replicas import RanksDisagreeError, ReplicasDivergedError, check_replicas
from lqray.communication.volume import Volume, full_precision_volume

__all__ = [
    "Baseline",
    "GradientExchange",
    "RanksDisagreeError",
    "ReplicasDivergedError",
    "Volume",
    "check_replicas",
    "full_precision_volume",
    "is_baseline",
]
