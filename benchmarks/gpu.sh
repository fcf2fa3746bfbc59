#!/usr/bin/env bash
# Builds, tests and measures everything on a machine with an NVIDIA GPU, its CUDA toolkit and a torch built for CUDA:
#   bash benchmarks/gpu.sh            (under 8 minutes; figures go to benchmarks/results/)
# PYTHON names the Python that has torch; without one, .venv is made first. A part that fails does not keep the others
# away; the exit status says that one did.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  python=.venv/bin/python
  "$python" -m pip install --quiet torch torchvision setuptools numpy scipy pydantic pyyaml scikit-learn pytest hypothesis click
fi
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} LQRAY_CUDA=1 PYTHONUNBUFFERED=1
failed=()

part() {  # name, command...
  local name=$1 started=$SECONDS
  shift
  echo "== $name"
  local status=0
  "$@" || status=$?
  [ $status = 0 ] || failed+=("$name")
  echo "== $name: $((SECONDS - started)) s"
  return $status
}

sanitizer() {  # tool
  if command -v compute-sanitizer >/dev/null; then
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 120 compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20 \
      "$python" -m pytest -q -x -p no:cacheprovider tests/ops/test_backends.py -k "native-cuda and (views or hadamard or statistics)"
  else
    echo "compute-sanitizer is not here: skipped"
  fi
}

train() {  # reduction, command that starts Python...
  local reduction=$1
  shift
  timeout 120 "$@" -m lqray train benchmarks/gpu_exchange.yaml --trial "$reduction"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
part "build" "$python" setup.py -q build_ext --inplace || exit 1
part "every backend, byte for byte" "$python" -m pytest -q -p no:cacheprovider tests/ops/test_backends.py tests/ops/test_norms.py \
  tests/ops/test_fuzz.py -k "cuda or fuzz"
part "codec" "$python" benchmarks/codec.py
part "training" "$python" benchmarks/training_gpu.py
for tool in memcheck racecheck synccheck initcheck; do part "compute-sanitizer $tool" sanitizer "$tool"; done
for reduction in all_gather scatter_reduce; do
  part "torch's sanitizer of streams, $reduction" train "$reduction" env TORCH_CUDA_SANITIZER=1 "$python"
  if [ "$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)" -ge 2 ]; then
    part "two processes over NCCL, $reduction" train "$reduction" "$python" -m torch.distributed.run --standalone --nproc-per-node 2
  fi
done
echo "failed: ${failed[*]:-nothing}"
[ ${#failed[@]} = 0 ]
