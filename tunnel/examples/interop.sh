#!/bin/sh
# moorline's tunnel against wireguard-go, natively. Root; wireguard-go, wireguard-tools, iproute2, iperf3, ping, python3.
#
#   namespace ml-tun             namespace ml-node                        namespace ml-server
#   TUN tun0 10.9.0.1  == carry == veth 192.0.2.1 ------- 192.0.2.2 veth == wireguard-go == wg0 10.9.0.2
#
# Usage: interop.sh CARRY_BINARY [IPERF_SECONDS]
set -eu
carry=$1 seconds=${2:-5}
work=$(mktemp -d)
pids=

finish() {
    status=$?
    for pid in $pids; do kill "$pid" 2>/dev/null || :; done
    for ns in ml-tun ml-node ml-server; do ip netns del $ns 2>/dev/null || :; done
    [ $status = 0 ] || tail -n 5 "$work"/*.log
    rm -f "$work"/* && rmdir "$work"
    exit $status
}
trap finish EXIT INT TERM

# Waits up to 30 s until a command succeeds.
until_ok() {
    deadline=$(($(date +%s) + 30))
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt $deadline ] || { echo "waited in vain for: $*" >&2; return 1; }
        sleep 0.1
    done
}

for ns in ml-tun ml-node ml-server; do
    ip netns add $ns
    ip -n $ns link set lo up
done
ip link add vnode netns ml-node type veth peer name vserver netns ml-server
ip -n ml-node addr add 192.0.2.1/24 dev vnode
ip -n ml-server addr add 192.0.2.2/24 dev vserver
ip -n ml-node link set vnode up
ip -n ml-server link set vserver up

umask 077
for end in node server; do wg genkey | tee "$work/$end.key" | wg pubkey >"$work/$end.pub"; done

server() {
    ip netns exec ml-server env LOG_LEVEL=error wireguard-go -f wg0 >"$work/server.log" 2>&1 &
    server_pid=$!
    pids="$pids $server_pid"
    until_ok ip netns exec ml-server wg show wg0
    ip netns exec ml-server wg set wg0 listen-port 51820 private-key "$work/server.key" \
        peer "$(cat "$work/node.pub")" allowed-ips 10.9.0.1/32
    ip -n ml-server addr add 10.9.0.2/24 dev wg0
    ip -n ml-server link set wg0 mtu 1420 up
}
server

ip netns exec ml-tun ip tuntap add dev tun0 mode tun
ip -n ml-tun addr add 10.9.0.1/24 dev tun0
ip -n ml-tun link set tun0 mtu 1420 up
# The descriptor is attached in ml-tun and becomes carry's standard input; carry's socket is of ml-node.
cat >"$work/attach.py" <<'PYTHON'
import fcntl, os, struct, sys
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
os.dup2(tun, 0)
os.execvp("ip", ["ip", "netns", "exec", "ml-node"] + sys.argv[1:])
PYTHON
ip netns exec ml-tun python3 "$work/attach.py" "$carry" "$work/node.key" "$(cat "$work/server.pub")" 192.0.2.2:51820 \
    10.9.0.1 10.9.0.2 >"$work/carry.log" 2>&1 &
carry_pid=$!
pids="$pids $carry_pid"

echo "== first packet"
until_ok ip netns exec ml-tun ping -c 1 -W 1 10.9.0.2
echo "== ping"
ip netns exec ml-tun ping -q -c 200 -i 0.01 10.9.0.2 | tail -n 2
echo "== the largest packet that fits, unfragmented"
ip netns exec ml-tun ping -q -c 3 -i 0.1 -M do -s 1392 10.9.0.2 | tail -n 2
ip netns exec ml-server wg show wg0 | grep -E 'handshake|transfer'

ip netns exec ml-server iperf3 -s >"$work/iperf3.log" 2>&1 &
pids="$pids $!"
until_ok ip netns exec ml-server sh -c 'ss -ltn | grep -q :5201'
cpu() { awk '{ print ($14 + $15) / 100 }' "/proc/$1/stat"; }
for way in "" -R; do
    before=$(cpu $carry_pid)
    echo "== iperf3 TCP ${way:-forth}"
    ip netns exec ml-tun iperf3 -c 10.9.0.2 -t "$seconds" $way | grep -E 'sender|receiver'
    echo "carry used $before -> $(cpu $carry_pid) CPU seconds"
done

echo "== the server is killed and started again"
kill -9 $server_pid
until_ok sh -c '! ip -n ml-server link show wg0'
server
begun=$(date +%s)
until_ok ip netns exec ml-tun ping -c 1 -W 1 10.9.0.2
echo "answered again after about $(($(date +%s) - begun)) s"
tail -n 1 "$work/carry.log"
