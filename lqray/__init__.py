"""lqray: learning to quantize on Ray.

A YAML file becomes a grid of trials; each trial trains data-parallel with gradients exchanged in a few bits; MLflow
records it. Rooms, top to bottom: `cli`, `orchestration` and `reporting`, `training`, `communication`, `quantization`,
`ops`; `experiment` is the leaf that all may read.
"""
