//! A storage site: the kernel's NFS server behind a WireGuard peer, in namespaces of its own.
//!
//! ```text
//!   node                       the wire                  site (network, mount and UTS namespace, hostname of its own)
//!   up-NAME 192.0.2.2/30 ── n-NAME bridge s-NAME ── eth0 192.0.2.1/30     the underlay: UDP 51820
//!   TUN     10.90.0.2    ╌╌╌╌╌╌╌╌ tunnel ╌╌╌╌╌╌╌╌ wg0  10.90.N.1        nfsd, mountd, nfsdcld
//! ```
//! Faults happen on the wire, where nobody is told: see `wire.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, flock};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::sh;
use crate::kit;
use crate::namespace::Namespace;
use crate::node::{self, Key, Node};
use crate::wait::{eventually, poll, seconds};
use crate::wire::Wire;

const PORT: u16 = 51820;
const OPTIONS: &str = "rw,no_root_squash,insecure,no_subtree_check";
/// What every site exports unless told otherwise.
pub const EXPORTS: [&str; 2] = ["datasets", "checkpoints"];

/// The files behind a site. Two sites on one tree really hold the same data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(PathBuf);

impl Tree {
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let folder = Path::new("/srv").join(name);
        for export in EXPORTS {
            let export = folder.join(export);
            // Anybody's to write: pods have users of their own, and NFS passes their numbers on.
            sh(&format!("mkdir -p {0} && chmod 1777 {0}", export.display()));
        }
        Self(folder)
    }

    /// Has this tree's `export` be that of another: the same data there, and data of its own elsewhere. Before a site
    /// serves it.
    #[track_caller]
    pub fn with_export_of(self, export: &str, other: &Self) -> Self {
        let (theirs, ours) = (other.0.join(export), self.0.join(export));
        sh(&format!("mount --bind {} {}", theirs.display(), ours.display()));
        self
    }

    #[track_caller]
    pub fn folder(&self, path: &str) {
        sh(&format!("mkdir -p {0} && chmod 1777 {0}", self.0.join(path).display()));
    }

    /// Replaces a file in one step, as a careful administrator would.
    #[track_caller]
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let (target, fresh) = (self.0.join(path), self.0.join(format!("{path}.new")));
        let put = fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, &target));
        put.unwrap_or_else(|error| panic!("put {}: {error}", target.display()));
    }

    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        let path = self.0.join(path);
        fs::read(&path).unwrap_or_else(|error| panic!("read {} on the site: {error}", path.display()))
    }

    pub fn try_read(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join(path)).ok()
    }

    /// Everything that lies in it. What a client has put aside for as long as it is open is nobody's file.
    pub fn names(&self) -> BTreeSet<String> {
        let (mut names, mut open) = (BTreeSet::new(), vec![self.0.clone()]);
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let (path, is_directory) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
                let name = path.strip_prefix(&self.0).unwrap_or(&path).display().to_string();
                if !entry.file_name().to_string_lossy().starts_with(".nfs") {
                    names.insert(name);
                }
                open.extend(is_directory.then_some(path));
            }
        }
        names
    }
}

#[derive(Debug)]
pub struct Site {
    name: String,
    number: u8,
    key: Key,
    tree: Tree,
    wire: Rc<Wire>,
    inside: Namespace,
    records_daemon: Child,
    /// The public keys that its WireGuard peer knows, and their addresses.
    clients: [(String, &'static str); 2],
    standby: Option<Namespace>,
    /// The machine that served before the standby took over.
    retired: Option<Namespace>,
}

/// How long a server waits for clients that it knows of to claim what they had; it ends early when all have.
#[derive(Debug, Clone, Copy)]
enum Grace {
    /// The lab's own: nobody waits for long.
    Short,
    /// As long as it may take a client to connect again, which tries less and less often.
    Ample,
}

impl Site {
    /// A site with a tree of its own.
    #[track_caller]
    pub fn start(node: &Node, name: &str) -> Self {
        Self::serving(node, name, Tree::new(name))
    }

    /// A site that serves `tree`, which others may serve as well.
    #[track_caller]
    pub fn serving(node: &Node, name: &str, tree: Tree) -> Self {
        let number = node.next_link();
        let inside = Namespace::new(&format!("site-{name}"));
        let key = Key::new();
        let wire = node.wire();
        wire.join(name, &inside, &outer(number, 2), &outer(number, 1));
        let clients = [(node.key().public.clone(), node::INNER), (node.solo_key().public.clone(), node::SOLO_INNER)];
        tunnel(&inside, number, &key, &clients);
        let records_daemon = serve(&inside, &tree, name, Grace::Short);
        // With an empty record of clients nobody has anything to reclaim, and nobody waits.
        eventually("the server's grace period is over", seconds(20), || {
            let ended = inside.sh("cat /proc/fs/nfsd/v4_end_grace");
            if ended.trim() == "Y" { Ok(()) } else { Err(ended) }
        });
        let name = name.to_owned();
        let (standby, retired) = (None, None);
        let site = Self { name, number, key, tree, wire, inside, records_daemon, clients, standby, retired };
        site.wait_until_serving();
        site
    }

    /// A site with a standby of the same identity: the same hostname, keys and exports, the same storage, and the same
    /// record of clients. It serves nothing until it takes over.
    #[track_caller]
    pub fn paired(node: &Node, name: &str, tree: Tree) -> Self {
        let mut site = Self::serving(node, name, tree);
        let standby = Namespace::new(site.inside.name());
        site.wire.join_standby(name, &standby);
        site.standby = Some(standby);
        site
    }

    /// The address moves to the standby, and the standby serves. Whoever served before must be dead ([`Self::die`]): a
    /// kernel that still held a lock on the storage would let nobody claim it.
    #[track_caller]
    pub fn take_over(&mut self) {
        let standby = self.standby.take().expect("a site that was started as a pair");
        self.wire.move_address(&self.name, &self.inside, &standby, &outer(self.number, 2), &outer(self.number, 1));
        self.retired = Some(std::mem::replace(&mut self.inside, standby));
        tunnel(&self.inside, self.number, &self.key, &self.clients);
        self.records_daemon = serve(&self.inside, &self.tree, &self.name, Grace::Ample);
        self.wait_until_serving();
        self.heal();
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its WireGuard peer listens.
    pub fn endpoint(&self) -> String {
        format!("{}:{PORT}", outer(self.number, 1))
    }

    /// Its NFS server's address inside the tunnel.
    pub fn server(&self) -> String {
        format!("10.90.{}.1", self.number)
    }

    /// Its NFS server's address outside the tunnel.
    pub fn direct_server(&self) -> String {
        outer(self.number, 1)
    }

    /// Lets another node in, whose machine that process is on, by a link of its own. Returns where that node finds its
    /// WireGuard peer.
    #[track_caller]
    pub fn admit(&self, node: &Node, machine: u32, key: &str, address: &str) -> String {
        let number = node.next_link();
        let (ours, theirs, site) = (outer(number, 2), outer(number, 1), self.inside.pid());
        let link = format!("up-{}{number}", self.name);
        let netns = format!("/proc/{machine}/ns/net");
        let own = fs::read_link("/proc/self/ns/net").ok();
        eventually("the other machine has a network of its own", seconds(20), || {
            let theirs = fs::read_link(&netns).ok();
            if theirs.is_some() && theirs != own { Ok(()) } else { Err(theirs) }
        });
        sh(&format!(
            "ip link add {link} netns {machine} type veth peer name eth{number} netns {site}
             nsenter --net={netns} ip addr add {ours}/30 dev {link}
             nsenter --net={netns} ip link set {link} up"
        ));
        self.inside.sh(&format!(
            "ip addr add {theirs}/30 dev eth{number}; ip link set eth{number} up
             wg set wg0 peer {key} allowed-ips {address}/32; ip route add {address} dev wg0"
        ));
        format!("{theirs}:{PORT}")
    }

    /// How the clients that its server knows name themselves.
    #[track_caller]
    pub fn client_names(&self) -> Vec<String> {
        // One may go away meanwhile.
        let text = self.inside.sh("cat /proc/fs/nfsd/clients/*/info || true");
        text.lines().filter_map(|line| Some(line.strip_prefix("name: ")?.to_owned())).collect()
    }

    pub fn public_key(&self) -> &str {
        &self.key.public
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    #[track_caller]
    pub fn put(&self, path: &str, bytes: &[u8]) {
        self.tree.put(path, bytes);
    }

    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        self.tree.read(path)
    }

    /// The site ends for good: not a word more on the wire, then its daemons, then the kernel's server with all its
    /// state (locks on a shared tree among it).
    #[track_caller]
    pub fn die(&mut self) {
        self.blackhole();
        let wireguard = self.inside.sh("pgrep --ns $$ --nslist net wireguard-go");
        for pid in wireguard.split_whitespace() {
            let pid = pid.parse().unwrap_or_else(|_| panic!("pgrep answered {wireguard:?}"));
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_else(|error| panic!("kill wireguard-go: {error}"));
        }
        // An error means that it has ended already.
        let _ = self.records_daemon.kill();
        let _ = self.records_daemon.wait();
        self.inside.sh("rpc.nfsd 0");
    }

    /// The kernel's server ends, and starts again after so long with what it wrote down of its clients.
    #[track_caller]
    pub fn restart(&self, after: Duration) {
        self.inside.sh("rpc.nfsd 0");
        poll(after, || None::<()>);
        self.inside.sh("rpc.nfsd -N 3 4");
        self.wait_until_serving();
    }

    /// Another directory is exported in the place of this one, with a copy of what is in it.
    #[track_caller]
    pub fn replace_export(&self, export: &str) {
        let (old, new) = (self.tree.0.join(export), self.tree.0.join(format!("{export}.replaced")));
        // Copied when nothing is written to it any more, or what was acknowledged meanwhile would be lost by us.
        self.unexport(export);
        sh(&format!("cp -a {} {}", old.display(), new.display()));
        self.export(export, &new, 40);
    }

    /// Not even an empty directory of its name is left, which would be mounted in its place.
    #[track_caller]
    pub fn unexport(&self, export: &str) {
        let target = format!("/run/exports/{export}");
        self.inside.sh(&format!("exportfs -u '*:{target}'; exportfs -f; umount -l {target}; rmdir {target}"));
    }

    /// What [`Self::unexport`] took away is there again.
    #[track_caller]
    pub fn export_again(&self, export: &str) {
        let number = EXPORTS.iter().position(|name| *name == export).expect("one of its exports");
        self.export(export, &self.tree.0.join(export), number + 1);
    }

    /// From now on the root of a node is nobody to this export, as servers have it that are told nothing else.
    #[track_caller]
    pub fn squash(&self, export: &str) {
        let number = EXPORTS.iter().position(|name| *name == export).expect("one of its exports");
        let options = OPTIONS.replace("no_root_squash", "root_squash");
        self.inside.sh(&format!("exportfs -o {options},fsid={} '*:/run/exports/{export}'; exportfs -f", number + 1));
    }

    /// In a moment when nobody can ask: the directory is there before it is an export of its own, and would be taken for it.
    #[track_caller]
    fn export(&self, export: &str, directory: &Path, id: usize) {
        let target = format!("/run/exports/{export}");
        self.blackhole();
        self.inside.sh(&format!(
            "mkdir {target}; mount --bind {} {target}
             exportfs -o {OPTIONS},fsid={id} '*:{target}'; exportfs -f",
            directory.display()
        ));
        self.heal();
    }

    /// The node's link, address and route to it are gone.
    #[track_caller]
    pub fn unplug(&self) {
        self.wire.unplug(&self.name);
    }

    #[track_caller]
    pub fn plug_in(&self) {
        let address = self.inside.sh("ip -br link show eth0");
        let mac = address.split_whitespace().nth(2).unwrap_or_default();
        self.wire.plug_in(&self.name, &outer(self.number, 2), &outer(self.number, 1), mac);
    }

    /// Whether a client holds a lock on this file.
    #[track_caller]
    pub fn is_locked(&self, path: &str) -> bool {
        let path = self.tree.0.join(path);
        let file = fs::File::open(&path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let mut lock = flock { l_type: F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).unwrap_or_else(|error| panic!("ask for a lock: {error}"));
        lock.l_type != F_UNLCK as i16
    }

    /// Nothing passes between node and site any more, either way, and nobody is told.
    #[track_caller]
    pub fn blackhole(&self) {
        self.wire.silence(&[&self.name]);
    }

    /// The opposite of [`Self::blackhole`] and [`Self::delay`].
    #[track_caller]
    pub fn heal(&self) {
        self.wire.restore(&self.name);
    }

    /// Every packet takes so much longer, each way.
    #[track_caller]
    pub fn delay(&self, time: Duration) {
        self.wire.delay(&self.name, time);
    }

    /// The node's own way out is gone: to these sites at one moment, however busy the machine is.
    #[track_caller]
    pub fn cut_uplink(sites: &[&Self]) {
        let names: Vec<&str> = sites.iter().map(|site| site.name()).collect();
        if let Some(first) = sites.first() {
            first.wire.silence(&names);
        }
    }

    /// A server that has just started accepts connections before it answers; its port is the first sign.
    fn wait_until_serving(&self) {
        eventually(&format!("site {} serves NFS", self.name), seconds(20), || {
            let listening = self.inside.sh("ss -Hltn sport = :2049");
            if listening.contains("2049") { Ok(()) } else { Err(listening) }
        });
    }
}

/// Address `host` (1 the site's, 2 the node's) in the underlay of site `number`.
fn outer(number: u8, host: u8) -> String {
    format!("192.0.2.{}", 4 * number + host)
}

#[track_caller]
fn tunnel(inside: &Namespace, number: u8, key: &Key, clients: &[(String, &str)]) {
    let private = &key.private;
    let peers: String = clients.iter().map(|(key, address)| format!(" peer {key} allowed-ips {address}/32")).collect();
    let routes: String = clients.iter().map(|(_, address)| format!("ip route add {address} dev wg0\n")).collect();
    inside.sh(&format!(
        "mount -t tmpfs run /run; mkdir -p /run/wireguard
         umask 077; echo {private} >/run/key
         wireguard-go wg0 2>/run/wireguard-go.log || {{ cat /run/wireguard-go.log; exit 1; }}
         wg set wg0 listen-port {PORT} private-key /run/key{peers}
         ip addr add 10.90.{number}.1/32 dev wg0
         ip link set wg0 mtu 1420 up
         {routes}"
    ));
}

/// nfsd with short lease and grace (or every recovery waits for 90 s), and nfsdcld, the one keeper of client records
/// that works in a network namespace.
#[track_caller]
fn serve(inside: &Namespace, tree: &Tree, name: &str, grace: Grace) -> Child {
    // Beside the storage: it is one for all that serve under this name, as the storage is.
    let records = format!("/srv/.records/{name}");
    let grace = match grace {
        Grace::Short => 10,
        Grace::Ample => 90,
    };
    let mut script = format!(
        "mount -t tmpfs nfs /var/lib/nfs; mkdir -p {records} /run/pipefs /run/exports
         touch /var/lib/nfs/etab /var/lib/nfs/rmtab
         mount -t nfsd nfsd /proc/fs/nfsd; mount -t rpc_pipefs pipefs /run/pipefs
         echo {grace} >/proc/fs/nfsd/nfsv4gracetime; echo 10 >/proc/fs/nfsd/nfsv4leasetime
         mount -t tmpfs root /run/exports
         exportfs -o {OPTIONS},fsid=0 '*:/run/exports'\n"
    );
    for (number, export) in EXPORTS.iter().enumerate() {
        let (source, target) = (tree.0.join(export), format!("/run/exports/{export}"));
        script += &format!(
            "mkdir {target}; mount --bind {} {target}
             exportfs -o {OPTIONS},fsid={} '*:{target}'\n",
            source.display(),
            number + 1
        );
    }
    inside.sh(&script);
    let log = kit::results().join(format!("{}.nfsdcld.log", inside.name()));
    let opened = fs::File::options().create(true).append(true).open(&log);
    let log = opened.unwrap_or_else(|error| panic!("open {}: {error}", log.display()));
    let records_daemon = inside
        .command("nfsdcld", &["-F", "-p", "/run/pipefs", "-s", &records])
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("start nfsdcld: {error}; is nfs-kernel-server installed?"));
    // It watches for the kernel's pipe, which nfsd makes when it starts.
    eventually("nfsdcld watches", seconds(10), || {
        let open = inside.sh(&format!("ls -l /proc/{}/fd 2>&1 || true", records_daemon.id()));
        if open.contains("inotify") { Ok(()) } else { Err(open) }
    });
    inside.sh("rpc.mountd --no-udp -N 2 -N 3; rpc.nfsd -N 3 4");
    records_daemon
}
