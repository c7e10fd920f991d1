# Sourced by the scenarios: what a check is, how to wait for one, and the pods and servers they have in common.
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
kube=$(dirname "$here")
passed=0 failed=0

# A check's own output is shown only if it fails; it runs in this shell, so that it may set variables.
check() { # check NAME COMMAND...
  local name=$1 began=$EPOCHREALTIME status=0; shift
  "$@" >"$RESULTS/logs/check.log" 2>&1 || status=$?
  local seconds=$(((${EPOCHREALTIME/./} - ${began/./}) / 100000))
  seconds=$((seconds / 10)).$((seconds % 10))
  if [ $status = 0 ]; then
    passed=$((passed + 1))
    echo "PASS $name ($seconds s)"
  else
    failed=$((failed + 1))
    echo "FAIL $name ($seconds s)"
    tail -n 60 "$RESULTS/logs/check.log" | sed 's/^/     /'
  fi
  cat "$RESULTS/logs/check.log" >>"$RESULTS/logs/checks.log"
  return $status
}

# A check without which the rest would only wait for what cannot come.
must() { # must NAME COMMAND...
  check "$@" || { finish; exit 1; }
}

# What pods have said and what became of them, beside the daemons' logs; the last word of those who restarted included.
collect() {
  local namespace pod logs=$RESULTS/logs
  kubectl get pods -A --no-headers -o custom-columns=:metadata.namespace,:metadata.name |
    while read -r namespace pod; do
      kubectl -n "$namespace" logs "$pod" --previous --timestamps >"$logs/pod-$pod.before.log" 2>/dev/null ||
        rm -f "$logs/pod-$pod.before.log"
      kubectl -n "$namespace" logs "$pod" --timestamps >"$logs/pod-$pod.log"
      kubectl -n "$namespace" describe pod "$pod" >"$logs/pod-$pod.txt"
    done
} 2>/dev/null

finish() {
  [ $failed = 0 ] || collect
  echo "$passed passed, $failed failed"
  [ $failed = 0 ]
}

eventually() { # eventually SECONDS COMMAND...: polls; what the last try said is shown if none succeeded
  local deadline=$((SECONDS + $1)) said; shift
  until said=$("$@" 2>&1); do
    [ $SECONDS -lt $deadline ] || { echo "gave up waiting for: $*"; echo "$said"; return 1; }
    sleep 0.3
  done
}

for_seconds() { # for_seconds SECONDS COMMAND...: it is so all the time
  local end=$((SECONDS + $1)); shift
  while [ $SECONDS -lt $end ]; do "$@" || return; sleep 0.5; done
}

site() { on-node "$kube/site" "$*"; }

# --- keys: one pair for each site and for each tunnel of the node
keys=$RESULTS/keys
make_keys() { # make_keys NAME...
  local name
  mkdir -p "$keys"
  for name; do
    (umask 077; wg genkey >"$keys/$name.key")
    wg pubkey <"$keys/$name.key" >"$keys/$name.pub"
  done
}
private_key() { cat "$keys/$1.key"; }
public_key() { cat "$keys/$1.pub"; }
