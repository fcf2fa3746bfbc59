# shellcheck shell=bash disable=SC1091
# The environment of Ray, and so of every job, on a machine of a cluster; read by its shells (deploy/setup_node.sh).
# ~/.lqray.env holds what is of this cluster: MLFLOW_TRACKING_URI, LQRAY_STORAGE, LQRAY_DATA, user names, passwords. Its
# lines are NAME=VALUE, a value as it stands, whatever is in it: it is read, not run, and only while it is its user's.
. "${LQRAY_VENV:-$HOME/lqray-venv}/bin/activate"
export RAY_AUTH_MODE=token
lqray_read_environment() {
  local file=$1 line name value number=0
  [ -r "$file" ] || return 0
  if [ ! -O "$file" ]; then
    echo "$file is another user's, and is not read" >&2
    return 0
  fi
  chmod go-rwx "$file" 2>/dev/null || echo "$file may hold passwords: chmod 600 it" >&2
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'}
    line=${line#"${line%%[![:space:]]*}"}
    case $line in '' | '#'*) continue ;; esac
    line=${line#export }
    name=${line%%=*}
    value=${line#*=}
    if [ "$name" = "$line" ] || [[ ! $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then
      echo "$file: line $number is not NAME=VALUE, and is left out" >&2
      continue
    fi
    # Quotes around all of a value belong to the file, as they do for Docker and systemd.
    case $value in
      \'*\' | \"*\") [ ${#value} -ge 2 ] && value=${value:1:${#value}-2} ;;
    esac
    export "$name=$value"
  done <"$file"
}
chmod go-rwx "$HOME/.ray/auth_token" 2>/dev/null || true  # Ray writes it for all to read
lqray_read_environment "$HOME/.lqray.env"
unset -f lqray_read_environment
