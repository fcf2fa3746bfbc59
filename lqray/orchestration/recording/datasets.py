"""The dataset of a trial, as MLflow's runs refer to it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lqray.experiment.identity import canonical_json
from lqray.experiment.options.data import DataOptions


def dataset_inputs(options: DataOptions, examples: tuple[int, int]) -> list[Any]:
    """MLflow's DatasetInputs of the training and the test set, with so many examples.

    A digest is a function of the split, its size, and the options that can change what a trial sees: not of where files
    are, nor of what is in them.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps(options.model_dump(mode="json"))
    inputs = []
    for split, count in zip(("train", "test"), examples, strict=True):
        digest = hashlib.sha256(f"{split} {count} {canonical_json(options)}".encode()).hexdigest()[:16]
        entity = Dataset(options.name, digest, "lqray", source, None, json.dumps({"num_rows": count}))
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", split)]))
    return inputs
