#!/bin/sh
# The guest's first process. Its root is this machine's files, read-only; what it writes goes to memory, or to the
# results folder, which outlives it. GUEST_* are put in front of this by guest.rs.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mountpoint -q /dev || mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
mkdir -p /dev/pts /dev/shm /run/modules/lib/modules /run/results
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ln -s "$GUEST_MODULES" "/run/modules/lib/modules/$(uname -r)"
for module in overlay nfsv4 nfsd tun veth bridge nf_tables sch_netem fuse; do
  modprobe -d /run/modules "$module" || echo "no module $module"
done
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
mount -t hostfs -o "$GUEST_RESULTS" results /run/results
stty -F /dev/tty1 raw -echo 2>/dev/null
"$GUEST_KIT/lab" inside --kit "$GUEST_KIT" --results /run/results $GUEST_ARGUMENTS >/dev/tty1 2>&1 </dev/null
echo $? >/run/results/status
# Only the results: a plain `sync`, and a poweroff that does one, would wait for the dead servers' mounts.
sync -f /run/results/status
echo o >/proc/sysrq-trigger
poweroff -f -d --no-sync
