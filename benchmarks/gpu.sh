#!/usr/bin/env bash
# Builds, tests and measures everything on a machine with an NVIDIA GPU, its CUDA toolkit and a torch built for CUDA:
#   bash benchmarks/gpu.sh            (under 8 minutes; figures go to benchmarks/results/)
# PYTHON names the Python that has torch; without one, .venv is made first.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  python=.venv/bin/python
  "$python" -m pip install --quiet torch setuptools numpy scipy pydantic pyyaml pytest hypothesis
fi

echo "== build"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
LQRAY_CUDA=1 "$python" setup.py -q build_ext --inplace
"$python" setup.py -q cuda_check

echo "== tests: every backend, byte for byte; the codec's contract"
PYTHONPATH=. "$python" -m pytest -q tests/ops/test_reference.py tests/ops/test_backends.py tests/ops/test_fuzz.py \
  tests/quantization/test_quantizer.py

echo "== compute-sanitizer: memory, races, uninitialized reads"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    PYTHONPATH=. PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest -q -x tests/ops/test_backends.py -k "native-cuda and (views or hadamard or statistics)"
  done
else
  echo "compute-sanitizer is not here: skipped"
fi

echo "== benchmark"
PYTHONPATH=. "$python" benchmarks/codec.py
