#!/usr/bin/env bash
#SBATCH --job-name=lqray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
# A sweep in a SLURM allocation, in place of `sbatch --array`: one Ray over its nodes, for as long as the sweep runs.
#   sbatch --nodes=4 --gpus-per-node=4 deploy/slurm.sh experiments/quickstart.yaml [options of lqray run]
# Run it again, after a time limit or a failure, for what is missing. `python` is that of an environment with lqray, which
# all nodes see, and so are MLFLOW_TRACKING_URI and LQRAY_STORAGE. Two minutes before the time limit trials are recorded
# as KILLED; they continue from their checkpoints.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch [--nodes=N ...] deploy/slurm.sh FILE... [options of lqray run]" >&2; exit 2; }
: "${SLURM_JOB_ID:?is not set: run this with sbatch}"
nodes=${SLURM_JOB_NUM_NODES:-1}

# Ports and folders of this job's own: other jobs may have Rays on the same machines. The folder's name cannot be guessed,
# and every machine makes it for this user alone: Ray's own, in it, is open to all. The token is made for this job and
# reaches its tasks in their environment.
export lqray_port=$((20000 + SLURM_JOB_ID % 3000 * 4))
export lqray_head=${LQRAY_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}
lqray_folder=$(mktemp -d /tmp/lqray-XXXXXXXX)  # short: paths of sockets have a limit
export lqray_folder
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_enable_metrics_collection=0  # everybody on the network could read them, without a token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

# A node that is told to end does: by default it waits for half a minute for leases to be given back, and SLURM kills it.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

# Ray on one node, until SIGTERM. What Ray says is shown where it ends by itself.
# shellcheck disable=SC2317  # srun calls it
start_node() {
  mkdir -m 700 "$lqray_folder" 2>/dev/null || { [ -d "$lqray_folder" ] && [ ! -L "$lqray_folder" ] && [ -O "$lqray_folder" ]; } || {
    echo "$lqray_folder on $(hostname) is another user's or no folder: submit the job again" >&2
    return 1
  }
  local asked='' status=0 ray='' tried log=$lqray_folder/start-$SLURM_PROCID.log
  local resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-$(nproc)}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
  resources+=(--block --disable-usage-stats)
  trap 'asked=1; kill -TERM $ray 2>/dev/null' TERM INT
  if [ "$SLURM_PROCID" = 0 ]; then
    ray start --head --node-ip-address="$lqray_head" --port="$lqray_port" --temp-dir="$lqray_folder/ray" \
      --dashboard-host=127.0.0.1 --dashboard-port=$((lqray_port + 1)) --ray-client-server-port=$((lqray_port + 2)) \
      "${resources[@]}" >"$log" 2>&1 &
  else
    for tried in $(seq 300) none; do
      [ -z "$asked" ] || return 0
      (: <"/dev/tcp/$lqray_head/$lqray_port") 2>/dev/null && break
      [ "$tried" != none ] || { echo "no Ray head at $lqray_head:$lqray_port after 300 s" >&2; return 1; }
      sleep 1
    done
    ray start --address="$lqray_head:$lqray_port" "${resources[@]}" >"$log" 2>&1 &
  fi
  ray=$!
  wait $ray || status=$?
  # A signal ends the wait, not Ray.
  while kill -0 $ray 2>/dev/null; do wait $ray && status=0 || status=$?; done
  [ -n "$asked" ] && status=0
  [ $status = 0 ] || { echo "Ray on $(hostname) ended with exit status $status. Its last lines:" && tail -n 40 "$log"; } >&2
  # The first node's folder is the sweep's, too, and goes with it.
  [ "$SLURM_PROCID" = 0 ] || rm -rf "$lqray_folder"
  return $status
}
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c "$(declare -f start_node); start_node" &
ray_nodes=$!
# srun itself, told to end, has its tasks killed: they are told first, and given time to clear away.
# shellcheck disable=SC2317  # the trap calls it
end_nodes() {
  scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null || kill -TERM $ray_nodes 2>/dev/null || true
  for _ in $(seq 50); do kill -0 $ray_nodes 2>/dev/null || break; sleep 0.4; done
  kill -TERM $ray_nodes 2>/dev/null || true
  wait $ray_nodes 2>/dev/null || true
  rm -rf "$lqray_folder"
}
trap end_nodes EXIT

# Trials at a time follow the machines that are there. All are waited for all the same: one that cannot start is an error
# of this job, and no sweep on fewer machines than were asked for.
export RAY_ADDRESS=$lqray_head:$lqray_port
python - "$nodes" "$ray_nodes" <<'PYTHON'
import os, socket, sys, time
host, port = os.environ["RAY_ADDRESS"].rsplit(":", 1)
wanted, starter, deadline = int(sys.argv[1]), int(sys.argv[2]), time.monotonic() + 300
joined = None
while joined is None or sum(node["Alive"] for node in joined.nodes()) < wanted:
    os.kill(starter, 0)  # the error, when there is nothing to wait for
    if time.monotonic() > deadline:
        sys.exit(f"not all {wanted} nodes have joined Ray within 300 s")
    time.sleep(1)
    if joined is None and socket.socket().connect_ex((host, int(port))) == 0:
        import ray as joined

        joined.init(logging_level="ERROR")
print(f"Ray on {wanted} nodes: {joined.cluster_resources()}", flush=True)
PYTHON

python -m lqray run "$@" &
sweep=$!
trap 'kill -TERM $sweep 2>/dev/null' TERM INT
status=0
wait $sweep || status=$?
# A signal ends the first wait, not the sweep, which has to record what it interrupts.
while kill -0 $sweep 2>/dev/null; do wait $sweep && status=0 || status=$?; done
exit $status
