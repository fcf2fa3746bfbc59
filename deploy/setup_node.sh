#!/usr/bin/env bash
# What a machine of a cluster needs: a virtual environment with the versions of requirements.lock, the same as the
# client's, and lqray from this source tree, with its kernels built for this machine's processor and GPUs.
# cluster.yaml and cluster.aws.yaml run it on every machine; running it again changes nothing.
set -euo pipefail
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=${LQRAY_VENV:-$HOME/lqray-venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "lqray needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Set PYTHON to another one." >&2
  exit 1
}
[ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
install=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check)
"${install[@]}" -r "$tree/requirements.lock"
# nvcc compiles for the GPUs that are here; setup.py leaves CUDA out where there is no nvcc, and says so.
if command -v nvidia-smi >/dev/null; then
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | paste -sd ';' -)}
  export TORCH_CUDA_ARCH_LIST
fi
# The kernels take a minute to compile: once, until something of what they are made of, or for, has changed.
made_of=$(
  cat "$tree"/{requirements.lock,pyproject.toml,setup.py} "$tree"/lqray/kernels/*.py "$tree"/csrc/*
  env | grep -E '^(LQRAY_(NATIVE|CUDA|SANITIZE)|CUDA_HOME|TORCH_CUDA_ARCH_LIST|CXX)=' | sort || true
  "$environment/bin/python" -VV
  grep -m1 ^flags /proc/cpuinfo || uname -m
  nvcc --version 2>/dev/null || true
)
made_of="$tree $(sha256sum <<<"$made_of")"
mark=$environment/lqray-made-of
if [ "$(cat "$mark" 2>/dev/null)" != "$made_of" ] || ! ls "$tree"/lqray/_native*.so >/dev/null 2>&1; then
  rm -f "$mark"
  "${install[@]}" --no-deps --no-build-isolation --editable "$tree"
  printf '%s\n' "$made_of" >"$mark"
fi

# Ray runs its commands in shells that read this file.
line=". $tree/deploy/environment.sh"
grep -qxF "$line" "$HOME/.bashrc" 2>/dev/null || echo "$line" >>"$HOME/.bashrc"
