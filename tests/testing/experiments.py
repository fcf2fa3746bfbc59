"""Experiments of one small trial and any sweep, in memory."""

from lqray.experiment.grid import Experiment
from lqray.experiment.layout import read_layout
from lqray.experiment.yaml import parse

BASE = """
name: test
base:
  data: {name: digits}
  model: {name: cnn}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 10, batch_size: 4}
  workers: 2
  quantizer: {method: qsgd, bits: 3, bucket_size: 64}
"""
KNOWN = """
name: known
base:
  data: {name: digits}
  model: {name: linear}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 100, batch_size: 8}
  quantizer: {method: alq}
"""
"""What reports are of, without a sweep."""


def experiment(sweep: str, base: str = BASE) -> Experiment:
    """The experiment of a base and what follows it in its file."""
    document = parse(base + sweep, "test.yaml")
    return Experiment(document, read_layout(document))


def values(sweep: str, *keys: str) -> list[tuple]:
    """What each trial has under these keys; None: nothing."""
    return [tuple(named.trial.flat().get(key) for key in keys) for named in experiment(sweep).trials()]
