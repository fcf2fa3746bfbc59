"""The CUDA kernels executed without a GPU: as C++ on an emulated machine, held to the reference's bytes.

`python -m tests.ops.emulation` builds and asks; `--csrc DIR` takes another copy of the kernels. What it sees and what
not: docs/verification.md.
"""
