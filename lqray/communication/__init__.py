"""Exchange of gradients between workers: a torch DDP communication hook, the reductions it chooses from, and the count
of what they send."""

from lqray.communication.baselines import Baseline, bucket_cap_mb, is_baseline
from lqray.communication.bypass import Decision, decide
from lqray.communication.checks.agreement import RanksDisagreeError
from lqray.communication.checks.lost_ranks import RaisedByAllError, RankLostError, naming_lost_ranks
from lqray.communication.checks.replicas import ReplicasDivergedError, check_replicas
from lqray.communication.checks.stalled_ranks import RankStalledError, naming_stalled_ranks
from lqray.communication.exchange import GradientExchange
from lqray.communication.residuals import NoContractionError
from lqray.communication.wire.parcel import LevelsDifferError
from lqray.communication.wire.volume import Volume, full_precision_volume

__all__ = [
    "Baseline",
    "Decision",
    "GradientExchange",
    "LevelsDifferError",
    "NoContractionError",
    "RaisedByAllError",
    "RankLostError",
    "RankStalledError",
    "RanksDisagreeError",
    "ReplicasDivergedError",
    "Volume",
    "bucket_cap_mb",
    "check_replicas",
    "decide",
    "full_precision_volume",
    "is_baseline",
    "naming_lost_ranks",
    "naming_stalled_ranks",
]
