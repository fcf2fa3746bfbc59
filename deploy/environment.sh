# shellcheck shell=bash disable=SC1091
# The environment of Ray, and so of every job, on a machine of a cluster; read by its shells (deploy/setup_node.sh).
# ~/.lqray.env holds what is of this cluster: MLFLOW_TRACKING_URI, LQRAY_STORAGE, LQRAY_DATA, user names, passwords.
. "${LQRAY_VENV:-$HOME/lqray-venv}/bin/activate"
export RAY_AUTH_MODE=token
if [ -r "$HOME/.lqray.env" ]; then
  set -a
  . "$HOME/.lqray.env"
  set +a
fi
