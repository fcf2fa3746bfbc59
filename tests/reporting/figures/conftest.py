import pytest

from tests.testing.drawn_figures import ACCURACY, at_steps
from tests.testing.figure_stores import FigureStore


@pytest.fixture
def store(tmp_path):
    """Three methods, three seeds, the learning rate dropping twice."""
    filled = FigureStore(tmp_path)
    for method, seeds in ACCURACY.items():
        for seed, values in seeds.items():
            metrics = {"test/accuracy": at_steps(values)}
            filled.run(method, seed, metrics, {"schedule.decay_at": "[150, 250]"})
    return filled.save()
