"""Datasets, one module each: `load(options) -> Dataset` (`lqray.training.dataset`), under its name in YAML."""
