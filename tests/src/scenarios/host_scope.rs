//! Gateways of scope host: whoever mounts on the node from their servers goes through the tunnel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::mortal::Death;
use crate::agent::Agent;
use crate::command::{run, sh};
use crate::data;
use crate::event::Op;
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::Draft;
use crate::site::Site;
use crate::wait::{eventually, seconds, throughout};

const DEFAULTS: &str = "/etc/nfsmount.conf.d/moorline.conf";

fn gateway(name: &str, site: &Site, more: &str) -> String {
    objects::gateway(name, false, &[site]).replace("  path: tunnel\n", &format!("  scope: host\n{more}"))
}

/// Devices of ours in the node's own network.
fn devices() -> BTreeSet<String> {
    let names = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("moorline")).collect()
}

/// The node's own network leads to the site, through which the server answers.
#[track_caller]
fn leads_to(site: &Site) {
    eventually(&format!("the node's network leads to {}", site.server()), seconds(30), || {
        let route = route_to(site);
        if route.contains(" dev moorline") { Ok(()) } else { Err(route) }
    });
}

/// Or why there is none.
fn route_to(site: &Site) -> String {
    sh(&format!("ip route get {} 2>&1 || true", site.server()))
}

/// As kubelet mounts its own `nfs:` volumes.
#[track_caller]
fn mount(server: &str, export: &str, options: &str, place: &str) {
    sh(&format!("mkdir -p {place} && mount -t nfs {options} {server}:/{export} {place}"));
}

fn options_of(place: &str) -> String {
    mounts::at(Path::new(place)).pop().map(|mount| mount.options).unwrap_or_default()
}

/// Somebody who writes and reads by a mount that the agent knows nothing of, and minds each error.
struct Guest {
    ends: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    work: JoinHandle<Result<(), String>>,
}

impl Guest {
    fn at(place: &str) -> Self {
        let (ends, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (file, over, made) = (Path::new(place).join("guest"), ends.clone(), rounds.clone());
        let work = thread::spawn(move || {
            let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
            while !over.load(Ordering::Relaxed) {
                let text = format!("round {}\n", made.load(Ordering::Relaxed));
                let mut open = File::create(&file).map_err(|error| failed("open", error))?;
                open.write_all(text.as_bytes()).map_err(|error| failed("write", error))?;
                open.sync_all().map_err(|error| failed("fsync", error))?;
                let read = fs::read_to_string(&file).map_err(|error| failed("read", error))?;
                if read != text {
                    return Err(format!("read {read:?}, and wrote {text:?}"));
                }
                made.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { ends, rounds, work }
    }

    /// It may wait all the while.
    #[track_caller]
    fn meets_no_error(&self, time: Duration) {
        throughout(
            "a guest's calls do not fail",
            time,
            || {
                if self.work.is_finished() { Err("one has") } else { Ok(()) }
            },
        );
    }

    /// How many rounds it made, at least one.
    #[track_caller]
    fn once(self) -> u64 {
        eventually("a guest reads what it wrote", seconds(30), || match self.rounds.load(Ordering::Relaxed) {
            0 => Err("it waits"),
            _ => Ok(()),
        });
        self.end()
    }

    /// How many rounds it made, none with an error.
    #[track_caller]
    fn end(self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        self.work.join().expect("a guest").unwrap_or_else(|error| panic!("the guest met an error: {error}"));
        self.rounds.load(Ordering::Relaxed)
    }
}

/// A plain mount rides the tunnel; the agent's death and the object's are nothing to it; what nobody uses any more goes.
pub(super) fn plain_mounts_ride_the_tunnel() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.put("datasets/sample", &data::file("a", 50_000));
    let both =
        [gateway("gw", &a, ""), gateway("solo", &b, "  mountDefaults: {timeo: 100, retrans: 3}\n")].join("---\n");
    let mut agent = Agent::start(&node, &both);
    leads_to(&a);
    leads_to(&b);
    assert_eq!(devices().len(), 2);
    let others = run("ip", ["route", "show"]);
    let ours: Vec<&str> = others.lines().filter(|line| line.contains("moorline")).collect();
    assert!(ours.len() == 2 && ours.iter().all(|line| !line.contains("default")), "single addresses alone: {ours:?}");

    mount(&a.server(), "checkpoints", "-o vers=4.1,hard", "/mnt/guest");
    // Without a word, as an inline volume's.
    mount(&b.server(), "datasets", "", "/mnt/plain");
    let plain = options_of("/mnt/plain");
    for option in ["vers=4.1", "hard", "timeo=100", "retrans=3"] {
        assert!(plain.split(',').any(|given| given == option), "{option}: {plain}");
    }
    mount(&b.server(), "checkpoints", "-o soft,timeo=50", "/mnt/own");
    let own = options_of("/mnt/own");
    let says = |option: &str| own.split(',').any(|given| given == option);
    assert!(says("soft") && says("timeo=50") && says("retrans=3"), "what a mount says itself has precedence: {own}");

    let guest = Guest::at("/mnt/guest");
    agent.kill9();
    guest.meets_no_error(seconds(3));
    let before = devices();
    agent.restart();
    guest.meets_no_error(seconds(3));
    assert_eq!(devices(), before, "a new agent adopts what is there");

    // Somebody has set the node's network up anew.
    sh(&format!("ip route del {}", a.server()));
    leads_to(&a);
    guest.meets_no_error(seconds(1));

    // One gateway is gone, and its mount is not.
    agent.configure(&gateway("solo", &b, ""));
    eventually("the other's defaults follow its Gateway", seconds(20), || {
        let text = fs::read_to_string(DEFAULTS).unwrap_or_default();
        let both = text.contains("Gateway gw,") && text.contains("Gateway solo,");
        if both && !text.contains("timeo=100") { Ok(()) } else { Err(text) }
    });
    // Nor does the next agent take it away.
    agent.kill9();
    agent.restart();
    guest.meets_no_error(seconds(2));
    leads_to(&a);
    assert!(guest.once() > 0);
    assert_eq!(devices().len(), 2);
    let tree = String::from_utf8_lossy(&a.read("checkpoints/guest")).into_owned();
    assert!(tree.starts_with("round "), "{tree:?}");
    sh("umount /mnt/guest");
    eventually("the way goes with the last mount", seconds(20), || {
        let left = devices();
        if left.len() == 1 { Ok(()) } else { Err(left) }
    });

    agent.configure("");
    sh("umount /mnt/plain /mnt/own");
    eventually("nothing is left on the node", seconds(20), || {
        let (left, defaults) = (devices(), Path::new(DEFAULTS).exists());
        if left.is_empty() && !defaults { Ok(()) } else { Err((left, defaults)) }
    });
}

/// Shares of such a gateway are mounted by the node's own network, and are served as others are.
pub(super) fn shares_of_scope_host_are_served() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let parts = [
        gateway("gw", &site, ""),
        objects::share("datasets", "gw", "ReadOnly"),
        objects::share("checkpoints", "gw", "ReadWrite"),
    ];
    let mut agent = Agent::start(&node, &parts.join("---\n"));
    let pod = Draft::new("both")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .start();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));
    agent.kill9();
    agent.restart();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));
    // As though for ever, and then not.
    site.blackhole();
    pod.blocks(Op::Write, seconds(5));
    site.heal();
    pod.writes(seconds(60));
    pod.never_failed(Op::Read);
    pod.never_failed(Op::Write);
    pod.lost_nothing(&site.read("checkpoints/log"));
    pod.delete(&agent, seconds(15));
    assert_eq!(devices().len(), 1, "it stays as long as its Gateway");
}

/// The node's own network comes first, and nothing of somebody else's is touched.
pub(super) fn the_nodes_network_is_not_shadowed() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    sh(
        "ip link add lan type veth peer name lan-far && ip link set lan-far up && ip addr add 10.77.0.1/24 dev lan && ip link set lan up",
    );
    fs::create_dir_all("/etc/nfsmount.conf.d").expect("a directory");
    fs::write(DEFAULTS, "# an admin's own\n").expect("a file");
    let good = gateway("gw", &site, "");
    let agent = Agent::start(&node, &good.replace(&format!("server: {}", site.server()), "server: 10.77.0.9"));
    let says = |words: &str| {
        eventually(&format!("the status says {words:?}"), seconds(20), || {
            let problems = agent.status()["problems"].to_string();
            if problems.contains(words) { Ok(()) } else { Err(problems) }
        });
    };
    says("lies in 10.77.0.0/24, which this node reaches through lan");
    says("is not moorline's: give that file another name");
    assert!(devices().is_empty());
    agent.configure(&good.replace(&format!("server: {}", site.server()), "server: 10.77.0.1"));
    says("is this node's own (lan)");
    assert!(devices().is_empty());

    // Somebody's device by our name.
    let device = device_of_ours();
    sh(&format!("ip link add {device} type veth peer name far"));
    agent.configure(&good);
    says(&format!("a device {device} is there that is not the one"));
    assert!(run("ip", ["-d", "link", "show", &device]).contains("veth"));
    sh(&format!("ip link del {device}"));
    leads_to(&site);

    agent.configure("");
    eventually("the way is gone", seconds(20), || {
        let left = devices();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(fs::read_to_string(DEFAULTS).expect("the admin's file"), "# an admin's own\n");
}

fn device_of_ours() -> String {
    moorline_shared::way::device(&"gw.a".parse().expect("a target"))
}

/// Deaths while ways come and go: a gateway is written, somebody mounts and unmounts, and the gateway goes. One death may keep
/// others from where they were to be: who was spared has another round.
pub(super) fn dying(deaths: &[Death]) {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let mut agent = Agent::start_mortal(&node, "", &[]);
    agent.gets_ready();
    let before = mounts::of("self");
    let mut deaths = deaths.to_vec();
    for _ in 0..5 {
        agent.strike_at(&deaths);
        agent.configure(&gateway("gw", &site, ""));
        agent.outlast("the node's network leads there", seconds(60), |_| {
            let route = route_to(&site);
            if route.contains(" dev moorline") && Path::new(DEFAULTS).exists() { Ok(()) } else { Err(route) }
        });
        // It waits while nobody carries the way.
        let server = site.server();
        thread::scope(|scope| {
            let mounting = scope.spawn(|| mount(&server, "checkpoints", "", "/mnt/guest"));
            agent.outlast(
                "somebody mounts",
                seconds(90),
                |_| if mounting.is_finished() { Ok(()) } else { Err("not yet") },
            );
        });
        let guest = Guest::at("/mnt/guest");
        agent.outlast("a guest reads what it wrote", seconds(60), |_| match guest.rounds.load(Ordering::Relaxed) {
            0 => Err("it waits"),
            _ => Ok(()),
        });
        guest.end();
        sh("umount /mnt/guest");
        agent.configure("");
        agent.outlast("nothing is left of it on the node", seconds(60), |_| {
            let left = (devices(), Path::new(DEFAULTS).exists());
            if left.0.is_empty() && !left.1 { Ok(()) } else { Err(left) }
        });
        agent.leaves_nothing(&before);
        agent.gets_ready();
        deaths.retain(|(point, _)| agent.pardon(*point));
        if deaths.is_empty() {
            return;
        }
    }
    panic!("nobody came by: {deaths:?}");
}
