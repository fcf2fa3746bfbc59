"""The experiment that `lqray init` writes for a user to edit: short, whole, and each of its examples valid."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

PLAIN = "first"
_GENERIC = ("experiments", "lqray", "lqray-leases")
_NAME = re.compile(r"(?!(?:true|false|null|yes|no|on|off|y|n)\Z)[a-z][A-Za-z0-9_-]{0,99}")
"""Of those that YAML reads as a word, without quotes."""

_TEXT = """\
# NAME: which way of sending gradients is worth its bits? Six short trials, about a minute on a laptop without a GPU.
#
# Lines in which two spaces or none follow the "#" are examples: take the "#" away, and they stand where they belong,
# "besides" what is there or "instead" of the line above them. `lqray expand FILE` checks the file and lists its trials;
# it runs nothing. An error says which line, what was found there and what is allowed.
name: NAME                          # also that of the experiment in MLflow

# What every trial starts from.
base:
  # What is learned: 1,797 small pictures of handwritten digits, which come with scikit-learn.
  data: {name: digits}
  # instead, files that are downloaded once, to LQRAY_DATA or ~/data (also mnist, cifar10, cifar100, svhn):
#  data: {name: fashion_mnist, download: true}

  # What learns it: a network with one hidden layer of 64 units.
  model: {name: mlp, layers: [64]}
  # instead (also resnet, wide_resnet and torchvision, for larger pictures; your own as "module:function"):
#  model: {name: cnn, channels: [16, 32], hidden: 64}
  # instead of data and model, a small GPT that reads your Python's standard library:
#  data: {name: text, context: 64, evaluation_examples: 100}
#  model: {name: gpt, layers: 2, heads: 2, width: 64}

  optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
  # instead:
#  optimizer: {name: adamw, lr: 0.002}

  # batch_size: of each worker. evaluate_every: steps from one look at the test set to the next.
  schedule: {iterations: 200, batch_size: 32, evaluate_every: 50}
  # instead, in passes over the training set, with a lower learning rate at the end:
#  schedule: {epochs: 5, batch_size: 32, decay_at: [4]}

  # How many workers compute gradients of their own and exchange them at each step.
  workers: 2

  # How gradients are compressed. A method that has no use for an option is given none of it. bits: of a coordinate.
  # bucket_size: coordinates that share a norm.
  quantizer: {bits: 3, bucket_size: 256}

  # How the compressed gradients travel: each worker sends its own to every other one.
  exchange: {reduction: all_gather}
  # instead, each worker averages a part of them for all:
#  exchange: {reduction: scatter_reduce}
  # instead, local steps: workers train alone, and exchange at every eighth step:
#  exchange: {every: 8}

# Trials: one for each combination of a matrix. Keys are dotted keys of `base`.
sweep:
  - matrix:
      quantizer.method: [full_precision, qsgd_inf, alq]
      seed: [1, 2]
    # besides, as in a GitHub Actions matrix: leave combinations out,
#    exclude: [{quantizer.method: alq, seed: 2}]
    # besides: add keys to those that fit,
#    include: [{quantizer.method: alq, quantizer.bits: 2}]
  # besides: another block, whose trials are added to these.
#  - matrix: {quantizer.method: [eden], quantizer.bits: [1, 2], seed: [1, 2]}

# besides: hyperparameters drawn beside the sweep, the same draws for every method.
#search: {samples: 3, space: {optimizer.lr: {log_uniform: [0.01, 0.2]}}}
# besides: stop the worst trials early (ASHA).
#search: {early_stopping: {grace_period: 50, reduction_factor: 2}}

# What is of the machine and no part of a trial: the same file runs elsewhere with other numbers.
# processes: that a trial's workers are spread over.
resources: {processes: 2, cpus_per_process: 1}
# instead, on GPUs:
#resources: {processes: 2, cpus_per_process: 1, gpus_per_process: 1}
# instead, one trial at a time:
#resources: {processes: 2, cpus_per_process: 1, concurrent_trials: 1}

# On a cluster the file stays as it is: `lqray submit FILE --cluster cluster.yaml` sends it there. Its machines share a
# folder of checkpoints, or a bucket, and a server of runs; the environment can say both (LQRAY_STORAGE,
# MLFLOW_TRACKING_URI), or the file.
# besides:
#storage: {folder: /shared/lqray, checkpoint_every: 500}
# besides:
#tracking: {uri: "http://mlflow.example.org:5000"}
"""


def name_of(directory: Path, taken: Collection[str] = ()) -> str:
    """What an experiment in a directory is called: as the directory is, where that can be a name, says something, and
    is none of those that are `taken`."""
    called = directory.absolute().name
    fits = bool(_NAME.fullmatch(called)) and called not in (*_GENERIC, *taken)
    return called if fits else PLAIN


def first_experiment(name: str) -> str:
    """The text of its file."""
    return _TEXT.replace("NAME: which", f"{name}: which").replace("name: NAME ", f"name: {name} ")
