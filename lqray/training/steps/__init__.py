"""What a step of training does; the loop around it is the same. `data_parallel.py`: gradients are exchanged at every
step. `local_steps.py`: each worker trains alone, and how far it came is exchanged now and then."""

from lqray.training.steps.data_parallel import DataParallel
from lqray.training.steps.local_steps import LocalSteps
from lqray.training.steps.setting import Progress, Setting, Steps

__all__ = ["Progress", "Setting", "Steps", "steps_of"]


def steps_of(setting: Setting, progress: Progress) -> Steps:
    """Those of a trial. progress: of the run, in which they count what they skip. Collective."""
    chosen = DataParallel if setting.trial.exchange.every is None else LocalSteps
    return chosen(setting, progress)
