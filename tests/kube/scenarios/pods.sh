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
kinds() { # the manifests, and the API server knows what they are of
  kubectl apply -k "$kube/manifests" &&
    kubectl wait --for=condition=Established crd/gateways.moorline.io crd/shares.moorline.io --timeout=30s
}
secret() { kubectl -n moorline-system create secret generic moorline-keys "${@/#/--from-file=$keys/}"; } # secret FILE...: what tunnels need
deployed() { kinds && secret "$@" && eventually 60 registered; } # deployed FILE...: kubelet knows the driver
registered() { [ "$(kubectl get csinode node1 -o jsonpath='{.spec.drivers[*].name}')" = moorline.io ]; }
agent_pid() { on-node "pgrep -f '^/moorline agent'"; }

namespace() {
  kubectl create namespace training &&
    kubectl label namespace training pod-security.kubernetes.io/enforce=restricted &&
    eventually 30 kubectl -n training get serviceaccount default
}
restricted='securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}'
manifest_of() { # manifest_of NAME NAMESPACE VOLUMES MOUNTS COMMAND...: a restricted pod with these, a line each
  local name=$1 namespace=$2 volumes=$3 mounts=$4 arguments; shift 4
  arguments=$(printf '"%s", ' "$@")
  cat <<END
apiVersion: v1
kind: Pod
metadata: {name: $name, namespace: $namespace}
spec:
  terminationGracePeriodSeconds: $grace
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: localhost/busybox:1
    command: [${arguments%, }]
    $restricted
    volumeMounts:
$(sed 's/^/    - /' <<<"$mounts")
  volumes:
$(sed 's/^/  - /' <<<"$volumes")
END
}
manifest() { # manifest NAME "SHARE[:ro]..." APP_ARG...: of inline volumes
  local name=$1 shares=$2 share volumes="" mounts="" only; shift 2
  for share in $shares; do
    only=$([[ $share = *:ro ]] && echo true || echo false) share=${share%:ro}
    volumes+=$'\n'"{name: $share, csi: {driver: moorline.io, readOnly: $only, volumeAttributes: {share: $share}}}"
    mounts+=$'\n'"{name: $share, mountPath: /mnt/$share}"
  done
  manifest_of "$name" training "${volumes#?}" "${mounts#?}" app "$@"
}
pod() { manifest "$@" | kubectl apply -f -; }
user() { # user NAME CLAIM COMMAND...: a pod with the claim at /mnt/v, and nothing said of propagation
  local name=$1 claim=$2; shift 2
  manifest_of "$name" training "{name: v, persistentVolumeClaim: {claimName: $claim}}" '{name: v, mountPath: /mnt/v}' "$@" |
    kubectl apply -f -
}
volume() { # volume NAME SHARE MODE [ATTRIBUTES]: a PersistentVolume and the claim that it is for
  cat <<END
apiVersion: v1
kind: PersistentVolume
metadata: {name: $1}
spec:
  capacity: {storage: 4Gi}
  accessModes: [$3]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {namespace: training, name: $1}
  mountOptions: [vers=4.1, hard]
  csi: {driver: moorline.io, volumeHandle: $1, volumeAttributes: {share: $2${4:+, $4}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1, namespace: training}
spec: {accessModes: [$3], storageClassName: "", volumeName: $1, resources: {requests: {storage: 4Gi}}}
---
END
}
all_bound() { kubectl -n training wait --for=jsonpath='{.status.phase}'=Bound pvc --all --timeout=60s; }
told() { # told KIND NAME REGEX: an Event says so
  kubectl get events -A --field-selector "involvedObject.kind=$1,involvedObject.name=$2" | grep -- "$3"
}

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
