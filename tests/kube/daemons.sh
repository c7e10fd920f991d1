# Sourced by tests/kube/cluster and tests/kube/node: starting daemons, and waiting for what they bring about.
# Wants LOGS, the directory for what they say.
declare -gA daemons # pid -> name

start() { # start NAME COMMAND...: a daemon, its output in $LOGS/NAME.log
  local name=$1; shift
  "$@" >"$LOGS/$name.log" 2>&1 </dev/null &
  daemons[$!]=$name
}

# Polls until COMMAND succeeds. Fails at the deadline, or at once if a daemon has died: then nothing will come any more.
wait_for() { # wait_for SECONDS COMMAND...
  local deadline=$((SECONDS + $1)) pid; shift
  until "$@" >/dev/null 2>&1; do
    for pid in "${!daemons[@]}"; do
      kill -0 "$pid" 2>/dev/null && continue
      echo "cluster: ${daemons[$pid]} ended; its last words:" >&2
      tail -n 5 "$LOGS/${daemons[$pid]}.log" >&2
      return 1
    done
    [ $SECONDS -lt $deadline ] || { echo "cluster: gave up waiting for: $*" >&2; return 1; }
    sleep 0.2
  done
  echo "$SECONDS s: $*" >>"$LOGS/timing.log"
}
