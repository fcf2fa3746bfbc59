"""What a step of training does; the loop around it is the same. `data_parallel.py`: gradients are exchanged at every
step."""

from lqray.training.steps.data_parallel import DataParallel
from lqray.training.steps.setting import Progress, Setting, Steps

__all__ = ["Progress", "Setting", "Steps", "steps_of"]


def steps_of(setting: Setting, progress: Progress) -> Steps:
    """Those of a trial. progress: of the run, in which they count what they skip."""
    return DataParallel(setting, progress)
