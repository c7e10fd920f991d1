# Sourced by the scenarios with a moorline in them, after lib.sh: its objects, pods that use them, and what these have said.
grace=20 # terminationGracePeriodSeconds of the pods

gateway() { # gateway NAME ADDRESS SPEC: both sites, in this order
  cat <<END
apiVersion: moorline.io/v1alpha1
kind: Gateway
metadata: {name: $1}
spec:
  path: tunnel
  $3
  tunnel: {address: $2, privateKeyFile: /etc/moorline-keys/$1.key, mtu: 1420}
  targets:
  - {name: a, endpoint: "192.0.2.1:51820", publicKey: "$(public_key a)", server: 10.90.0.1}
  - {name: b, endpoint: "192.0.2.5:51820", publicKey: "$(public_key b)", server: 10.90.1.1}
---
END
}
share() { # share NAME GATEWAY ACCESS
  cat <<END
apiVersion: moorline.io/v1alpha1
kind: Share
metadata: {name: $1}
spec: {gateway: $2, export: /$1, access: $3, namespaces: [training]}
---
END
}
registered() { [ "$(kubectl get csinode node1 -o jsonpath='{.spec.drivers[*].name}')" = moorline.io ]; }
agent_pid() { on-node "pgrep -f '^/moorline agent'"; }

namespace() {
  kubectl create namespace training &&
    kubectl label namespace training pod-security.kubernetes.io/enforce=restricted &&
    eventually 30 kubectl -n training get serviceaccount default
}
restricted='securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}'
manifest() { # manifest NAME "SHARE[:ro]..." APP_ARG...
  local name=$1 shares=$2 share volumes="" mounts="" arguments; shift 2
  for share in $shares; do
    volumes+="  - {name: ${share%:ro}, csi: {driver: moorline.io, readOnly: $([[ $share = *:ro ]] && echo true || echo false), "
    volumes+="volumeAttributes: {share: ${share%:ro}}}}"$'\n'
    mounts+="    - {name: ${share%:ro}, mountPath: /mnt/${share%:ro}}"$'\n'
  done
  arguments=$(printf ', %s' "$@")
  cat <<END
apiVersion: v1
kind: Pod
metadata: {name: $name, namespace: training}
spec:
  terminationGracePeriodSeconds: $grace
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: localhost/busybox:1
    command: [app$arguments]
    $restricted
    volumeMounts:
${mounts%$'\n'}
  volumes:
${volumes%$'\n'}
END
}
pod() { manifest "$@" | kubectl apply -f -; }

# --- what the application has said, and what of it is new since a mark
said() { kubectl -n training logs $1; } # said POD, or "POD -c CONTAINER"
declare -A marks
mark() { marks[$1]=$(said "$1" | wc -l); }
since_mark() { said "$1" | tail -n "+$((${marks[$1]:-0} + 1))"; }
says() { since_mark "$1" | grep -E -- "$2"; } # says POD REGEX
says_often() { [ "$(says "$1" "$2" | wc -l)" -ge 3 ]; }
no_errors() { # no_errors POD: nothing failed since the mark
  local errors
  errors=$(since_mark "$1" | grep ERROR)
  [ -z "$errors" ] || { echo "$errors"; return 1; }
}
identity() {
  kubectl -n training get pod "$1" \
    -o jsonpath='{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}'
}
same_container() { # never restarted, never replaced
  local now
  now=$(identity trainer)
  [ "$now" = "$trainer" ] && [[ $now = *" 0" ]] || { echo "was $trainer, is $now"; return 1; }
}
stuck='ps -eo pid,ppid,stat,wchan:32,args | grep -E "PID|[ ]D|Z"
  for pid in $(ps -eo pid,stat | sed -n "s/ *\([0-9]*\) D.*/\1/p"); do echo "== $pid"; cat /proc/$pid/stack; done'
gone_in_time() { # gone_in_time POD: deleted, and out of the API within its grace period
  local began=$SECONDS
  kubectl -n training delete pod "$1" --timeout=${grace}s || { on-node "$stuck"; return 1; }
  echo "gone after $((SECONDS - began)) s of $grace"
}
