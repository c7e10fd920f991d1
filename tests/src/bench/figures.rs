//! What is measured, how, and what it may be.

/// What a figure may be, at the most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    None,
    Below(f64),
    AtMost(f64),
    /// So many times another figure.
    Times(f64, &'static str),
    /// More than this peer's.
    Beats(&'static str),
}

#[derive(Debug)]
pub(super) struct Definition {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) limit: Limit,
    pub(super) method: &'static str,
}

const fn define(name: &'static str, unit: &'static str, limit: Limit, method: &'static str) -> Definition {
    Definition { name, unit, limit, method }
}

pub(super) const PEER: &str = "kernel-defaults";

pub(super) const MOUNT: &[Definition] = &[
    define(
        "publish_ro_p99_ms",
        "ms",
        Limit::Below(2.0),
        "NodePublishVolume of a read-only volume over the CSI socket, as kubelet calls it, while 99 others are there \
         (10 of them read-write). The 99th percentile of 100, each taken back before the next, 10 ms apart. Peer: \
         `mount -t nfs4 -o ro` of the same export, with another mount of it there already. Floor: the system calls alone: \
         mkdir, open_tree, mount_setattr, move_mount.",
    ),
    define(
        "publish_1000_p99_ms",
        "ms",
        Limit::None,
        "The same with 999 others, 100 of them read-write. Floor: as above.",
    ),
    define(
        "publish_rw_rpcs",
        "RPCs",
        Limit::None,
        "Calls that the kernel's client counts (/proc/net/rpc/nfs) while one read-write volume is published, which is a \
         mount of its own. Peer: `mount -t nfs4`. Both find a client of that server there already.",
    ),
    define(
        "agent_working_set_mb_1000",
        "MB",
        Limit::Below(24.0),
        "memory.current less inactive_file of the agent's cgroup, as kubelet reports it, children and kernel memory \
         included: the highest of 20 looks in 5 s, with 900 read-only and 100 read-write volumes there, path: direct. A MB \
         is 10^6 bytes.",
    ),
    define(
        "reconcile_idle_us_10",
        "µs",
        Limit::None,
        "What one round of the loop takes with 10 volumes there, one of them read-write, and nothing to do: \
         moorline_loop_busy_seconds_total by moorline_loop_rounds_total, over 5 s. A round waits for nothing, so on an idle \
         machine its time is what it costs the CPU; there are two a second.",
    ),
    define(
        "reconcile_idle_us_100",
        "µs",
        Limit::Times(10.0, "reconcile_idle_us_10"),
        "The same with 100, 10 of them read-write.",
    ),
    define(
        "reconcile_idle_us_1000",
        "µs",
        Limit::Times(10.0, "reconcile_idle_us_100"),
        "The same with 1,000, 100 of them read-write.",
    ),
    define(
        "detect_s",
        "s",
        Limit::AtMost(5.0),
        "From the moment when nothing passes to or from a server any more until the agent's event says that it is away, \
         with its Gateway's defaults.",
    ),
    define(
        "recover_s",
        "s",
        Limit::AtMost(1.0),
        "From that event until a process in each of 100 mount namespaces, which hold a private copy of a volume each and \
         nothing else of the node's, has opened and read a file on the next server. Each has read twice a second until then.",
    ),
    define(
        "read_10ms_rtt_mb_s",
        "MB/s",
        Limit::Beats(PEER),
        "A file of 64 MiB read once from its beginning to its end, 128 KiB at a time as cat does, from a server 10 ms away (netem), nothing \
         of it cached. Peer: `mount -t nfs4 -o ro` and no other option. Each has a connection of its own: the other's mount \
         is gone before.",
    ),
];

/// Kubelet's own volumes, `nfs:`.
pub(super) const IN_TREE: &str = "in-tree-nfs";

/// What of the area kubernetes is measured without a cluster, and what in one.
pub(super) const HERE: &[Definition] = KUBERNETES.split_at(1).0;
pub(super) const IN_CLUSTER: &[Definition] = KUBERNETES.split_at(1).1;

pub(super) const KUBERNETES: &[Definition] = &[
    define(
        "publish_110_p99_ms",
        "ms",
        Limit::Below(20.0),
        "NodePublishVolume of 110 read-only volumes of 4 shares, each mounted already, at one moment, each on a connection of its own \
         to the CSI socket: the 99th percentile of how long after that moment they are answered, in 2 rounds. On one CPU the \
         last is answered when all are done. Peer: what kubelet runs for a volume of its own, `mount -t nfs -o ro`, 110 at one \
         moment. Floor: the system calls alone, by 110 threads.",
    ),
    define(
        "agent_working_set_mb",
        "MB",
        Limit::None,
        "As kubelet tells it (stats/summary: workingSetBytes) of the agent's container in a cluster, with one pod of two volumes \
         there, one read-write, through a tunnel. A MB is 10^6 bytes.",
    ),
    define(
        "recover_in_pod_s",
        "s",
        Limit::None,
        "From the moment when nothing passes to or from a pod's server any more until a restricted pod, in the same container, reads \
         and verifies a file of the next server's, by the time of its log; it tries five times a second, and the read \
         that waits is one of them. Peer: the same pod on volumes of kubelet's own (`nfs:`, hard, 4.1), at the same time; no other \
         server is its own, and it is watched for 30 s.",
    ),
    define(
        "unpublish_hung_s",
        "s",
        Limit::AtMost(2.0),
        "What kubelet takes to unmount both volumes of a pod whose server is silent, one read-write with a write under way: \
         storage_operation_duration_seconds, volume_unmount, of all attempts. Peer: at the same time, for 40 s.",
    ),
    define(
        "deleted_while_hung_s",
        "s",
        Limit::AtMost(20.0),
        "From the deletion of that pod until the API server does not know it any more; its grace period is 20 s. Peer: at the same \
         time, on a server that is silent for longer, for 40 s.",
    ),
];
