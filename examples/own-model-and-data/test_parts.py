"""What lqray takes for granted of models and datasets, asked of these: `python -m pytest` in this folder."""

from lqray.testing import dataset_suite, model_suite

TestWaves = model_suite("waves:build", shape=(1, 1, 2), classes=3, width=8, blocks=2)
TestSpirals = dataset_suite("spirals:load")
