"""What a step of training does; the loop around it is the same. `data_parallel.py`: gradients are exchanged at every
step. `local_steps.py`: each worker trains alone, and how far it came is exchanged now and then. `post_local.py`: so,
but by torch's own means; `apart.py` is what these two have in common."""

from lqray.experiment.options.quantizer import PostLocalSgdOptions
from lqray.training.steps.data_parallel import DataParallel
from lqray.training.steps.local_steps import LocalSteps
from lqray.training.steps.setting import Progress, Setting, Steps

__all__ = ["Progress", "Setting", "Steps", "steps_of"]


def steps_of(setting: Setting, progress: Progress) -> Steps:
    """Those of a trial. progress: of the run, in which they count what they skip. Collective."""
    if setting.trial.exchange.every is None:
        return DataParallel(setting, progress)
    if isinstance(setting.trial.quantizer, PostLocalSgdOptions):
        # A second of torch's modules, of sharded tensors and their optimizers, that no other trial needs.
        from lqray.training.steps.post_local import PostLocalSgd

        return PostLocalSgd(setting, progress)
    return LocalSteps(setting, progress)
