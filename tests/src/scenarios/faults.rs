//! The fault matrix: what breaks, under which policy, read-only or read-write, and what the application must see.
//!
//! The application is one container, never restarted: it opens, reads and verifies, or writes with fsync and writes down
//! what was acknowledged; it keeps a descriptor, a lock, a mapping and a working directory on the share.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::errno::Errno;

use crate::agent::Agent;
use crate::data;
use crate::event::{Event, Op};
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, Pod};
use crate::site::{Site, Tree};
use crate::wait::{eventually, monotonic, now, poll, seconds};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server's kernel threads end and start again.
    ServerRestarted,
    /// Nothing passes for half a minute.
    HostAway,
    /// The server dies, and after half a minute its address is with a standby of the same identity.
    Standby,
    /// The server dies, and another target holds the same data.
    GoneForGood,
    /// Another directory, with a copy of the data, is exported in the place of the first.
    ExportReplaced,
    /// The export is taken away for twenty seconds.
    ExportRemoved,
    /// Nothing passes for a minute.
    Blackhole,
    /// The node's link, address and route are away for half a minute.
    NetworkLost,
    AgentKilled,
    /// A pod is deleted while its server does not answer.
    PodDeleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Hard,
    Soft,
    /// With the kernel's own limits, which are longer than any outage here.
    SoftByDefault,
    Bounded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

impl Policy {
    /// Both limits fall well into each outage.
    fn yaml(self) -> &'static str {
        match self {
            Self::Hard => "",
            // A major timeout of 3 s.
            Self::Soft => "policy: soft, acceptLostWrites: true, mountOptions: {timeo: 10, retrans: 2}",
            Self::SoftByDefault => "policy: soft, acceptLostWrites: true",
            Self::Bounded => "policy: bounded, after: 10s",
        }
    }

    /// No call ends with an error before.
    fn patience(self) -> Option<Duration> {
        match self {
            Self::Hard | Self::SoftByDefault => None,
            Self::Soft => Some(seconds(3)),
            Self::Bounded => Some(seconds(10)),
        }
    }

    /// When an error is promised.
    fn limit(self) -> Option<Duration> {
        match self {
            Self::Soft => self.patience().map(|major| 2 * major),
            _ => self.patience(),
        }
    }
}

/// What a call ends with when its server, or the file on it, is gone for good: EIO, ESTALE, and the kernel's own name for an
/// fsync that was cut short, which it should not show and does.
const LOST: [i32; 3] = [Errno::EIO as i32, Errno::ESTALE as i32, 512];

/// From a server's return to the application's next success: the kernel's client tries to connect again less and less
/// often, and asks for its locks back first.
const RETURN: Duration = seconds(100);

/// What is done over and over, and where.
type Job = (Op, &'static str);

impl Access {
    /// By opening it each time.
    fn opened_anew(self) -> Job {
        match self {
            Self::ReadOnly => (Op::Read, "/mnt/tested/sample"),
            Self::ReadWrite => (Op::Write, "/mnt/tested/log"),
        }
    }

    /// By what was opened once: a descriptor (that of a writer holds a lock), a mapping, a working directory.
    fn kept(self) -> [Job; 3] {
        match self {
            Self::ReadOnly => {
                [(Op::Keep, "/mnt/tested/sample"), (Op::Map, "/mnt/tested/sample"), (Op::List, "/mnt/tested")]
            }
            Self::ReadWrite => {
                [(Op::Write, "/mnt/tested/held"), (Op::Map, "/mnt/tested/mapped"), (Op::List, "/mnt/tested")]
            }
        }
    }

    fn export(self) -> &'static str {
        match self {
            Self::ReadOnly => "datasets",
            Self::ReadWrite => "checkpoints",
        }
    }
}

pub(super) fn run(fault: Fault, policy: Policy, access: Access) {
    let mut lab = Lab::start(fault, policy, access);
    match fault {
        Fault::ServerRestarted => {
            // Long enough for several questions without an answer, and not for a server that is away.
            lab.sites[0].restart(seconds(2));
            lab.goes_on();
            // A busy machine may be longer about it than a soft call waits.
            lab.never_failed_early(policy, |event, patience| event.took < patience);
        }
        Fault::HostAway => lab.outage(policy, seconds(30), |site| site.blackhole(), |site| site.heal()),
        Fault::Blackhole => lab.outage(policy, seconds(60), |site| site.blackhole(), |site| site.heal()),
        Fault::NetworkLost => lab.outage(policy, seconds(30), |site| site.unplug(), |site| site.plug_in()),
        Fault::Standby => lab.outage(policy, seconds(30), Site::die, Site::take_over),
        Fault::ExportReplaced => {
            lab.sites[0].replace_export(access.export());
            lab.new_opens_go_on();
            lab.kept_have_ended();
        }
        Fault::ExportRemoved => {
            lab.sites[0].unexport(access.export());
            eventually("the application is told", seconds(20), || lab.failures().first().cloned().ok_or("not yet"));
            poll(seconds(20), || None::<()>);
            lab.sites[0].export_again(access.export());
            // What was open may be known to the server again, and may have ended by then.
            lab.new_opens_go_on();
        }
        Fault::GoneForGood => return lab.fails_over(),
        Fault::AgentKilled => return lab.outlives_its_agent(),
        Fault::PodDeleted => return lab.loses_a_pod(),
    }
    lab.end();
}

struct Lab {
    access: Access,
    sites: Vec<Site>,
    agent: Agent,
    pod: Pod,
    /// On another share of the same export, under hard: what is done for the pod's share is not done to it.
    neighbour: Pod,
    /// What lay on the servers when all was well.
    names: BTreeSet<String>,
}

impl Lab {
    fn start(fault: Fault, policy: Policy, access: Access) -> Self {
        let node = Node::new("node1");
        let tree = Tree::new("data");
        tree.put("datasets/sample", &data::file("data", 100_000));
        let names: &[&str] = if fault == Fault::GoneForGood { &["a", "b"] } else { &["a"] };
        let start = if fault == Fault::Standby { Site::paired } else { Site::serving };
        let sites: Vec<Site> = names.iter().map(|name| start(&node, name, tree.clone())).collect();
        let written = match access {
            Access::ReadOnly => "ReadOnly",
            Access::ReadWrite => "ReadWrite",
        };
        // A pair's address is where its users find it: no tunnel has to follow.
        let gateway = if fault == Fault::Standby { objects::direct_gateway } else { objects::gateway };
        let objects = [
            gateway("gw", true, &sites.iter().collect::<Vec<_>>()),
            objects::share_with("tested", "gw", access.export(), written, policy.yaml()),
            objects::share_of("library", "gw", "datasets", "ReadOnly"),
        ];
        let agent = Agent::start(&node, &objects.join("---\n"));
        let pod = Draft::new("pod").with_share(&node, &agent, "tested", access == Access::ReadOnly);
        let pod = match access {
            Access::ReadOnly => {
                pod.reading("/mnt/tested/sample").keeping("/mnt/tested/sample").mapping("/mnt/tested/sample")
            }
            Access::ReadWrite => {
                pod.writing("/mnt/tested/log").holding("/mnt/tested/held").altering("/mnt/tested/mapped")
            }
        };
        let pod = pod.staying_in("/mnt/tested").start();
        let neighbour = Draft::new("neighbour").with_share(&node, &agent, "library", true);
        let neighbour = neighbour.reading("/mnt/library/sample").start();
        let mut lab = Self { access, sites, agent, pod, neighbour, names: BTreeSet::new() };
        lab.goes_on();
        lab.names = lab.sites[0].tree().names();
        lab
    }

    /// From now on each of the application's jobs succeeds, again and again, and so does the neighbour's.
    #[track_caller]
    fn goes_on(&self) {
        self.succeeds(self.access.opened_anew());
        for job in self.access.kept() {
            self.succeeds(job);
        }
        self.neighbour.reads("data", RETURN);
    }

    /// What is opened from now on is well. What was open stays on the old mount.
    #[track_caller]
    fn new_opens_go_on(&self) {
        self.succeeds(self.access.opened_anew());
        self.neighbour.reads("data", RETURN);
    }

    /// What was open before is no use any more, and says so: each call ends, and with an error.
    #[track_caller]
    fn kept_have_ended(&self) {
        for (op, path) in self.access.kept() {
            eventually(&format!("{op:?} of {path} has ended"), seconds(60), || {
                let all = self.pod.events_of(op);
                let last: Vec<_> = all.into_iter().filter(|event| event.path == path).rev().take(3).collect();
                let ended = |event: &Event| LOST.contains(&event.errno);
                if last.len() == 3 && last.iter().all(ended) { Ok(()) } else { Err(last) }
            });
        }
    }

    /// Three times in a row, and what is acknowledged is there.
    #[track_caller]
    fn succeeds(&self, (op, path): Job) {
        let known = self.pod.events().len();
        eventually(&format!("{op:?} of {path} is well"), RETURN, || {
            let events = self.pod.events();
            let mut mine = events.iter().skip(known).filter(|event| event.path == path && event.op == op);
            let in_a_row = mine.clone().rev().take_while(|event| event.succeeded()).count();
            if in_a_row >= 3 { Ok(()) } else { Err(mine.next_back().cloned()) }
        });
    }

    fn failures(&self) -> Vec<Event> {
        self.pod.events().into_iter().filter(|event| !event.succeeded()).collect()
    }

    #[track_caller]
    fn never_failed(&self) {
        assert_eq!(self.failures(), [], "the application saw an error");
        self.neighbour.never_failed(Op::Read);
    }

    /// `is_early` is asked of each failure, and told the seconds that must have passed.
    #[track_caller]
    fn never_failed_early(&self, policy: Policy, is_early: impl Fn(&Event, f64) -> bool) {
        let Some(patience) = policy.patience() else { return self.never_failed() };
        let early = self.failures().into_iter().find(|event| is_early(event, patience.as_secs_f64()));
        assert_eq!(early, None, "no call ends with an error before {patience:?}");
        self.neighbour.never_failed(Op::Read);
    }

    /// The server is away for `time` and comes back.
    #[track_caller]
    fn outage(&mut self, policy: Policy, time: Duration, begin: fn(&mut Site), end: fn(&mut Site)) {
        let (began, since) = (now(), monotonic());
        begin(&mut self.sites[0]);
        if let Some(limit) = policy.limit() {
            let limit = time.min(5 * limit);
            eventually("an error comes at its time", limit, || self.failures().first().cloned().ok_or("none yet"));
        }
        // The rest of the outage.
        poll(time.saturating_sub(now() - began), || None::<()>);
        end(&mut self.sites[0]);
        self.goes_on();
        self.never_failed_early(policy, |event, patience| event.at < since + patience);
    }

    fn fails_over(mut self) {
        let serving = self.agent.target("tested");
        let index = self.sites.iter().position(|site| site.name() == serving).expect("a site of that name");
        let process = self.pod.container().pid();
        self.sites[index].die();
        eventually("it moves", seconds(45), || {
            let target = self.agent.target("tested");
            if target == serving { Err(target) } else { Ok(()) }
        });
        self.new_opens_go_on();
        self.kept_have_ended();
        assert!(self.pod.container().alive() && self.pod.container().pid() == process);
        self.end();
    }

    fn outlives_its_agent(mut self) {
        self.agent.kill9();
        self.agent.restart();
        self.goes_on();
        self.never_failed();
        self.end();
    }

    fn loses_a_pod(self) {
        self.sites[0].blackhole();
        self.pod.blocks(self.access.opened_anew().0, seconds(2));
        let (grace, began) = (seconds(15), now());
        self.pod.delete(&self.agent, grace);
        let took = now() - began;
        assert!(took < grace, "grace was {grace:?}, gone after {took:?}");
        self.sites[0].heal();
        nothing_is_deleted(&self.names, &self.sites);
        self.neighbour.reads("data", RETURN);
        self.neighbour.never_failed(Op::Read);
        self.neighbour.delete(&self.agent, seconds(10));
    }

    /// Nothing that was acknowledged is lost, nothing is deleted, the lock is held, and both pods go.
    fn end(self) {
        nothing_is_deleted(&self.names, &self.sites);
        let well = self.sites.iter().rfind(|site| site.name() == self.agent.target("tested")).expect("a site serves");
        if self.access == Access::ReadWrite {
            // A replaced export keeps what was written before.
            let exports = ["checkpoints", "checkpoints.replaced"];
            for file in ["log", "held"] {
                let acknowledged = self.pod.events_of(Op::Write).into_iter().filter(|event| event.succeeded());
                let numbers = acknowledged.filter(|event| event.path.ends_with(file));
                let there: Vec<u64> = exports
                    .iter()
                    .filter_map(|export| well.tree().try_read(&format!("{export}/{file}")))
                    .flat_map(|log| data::records(&log))
                    .collect();
                let lost: Vec<u64> = numbers
                    .filter_map(|event| event.tag.parse().ok())
                    .filter(|number| !there.contains(number))
                    .collect();
                assert!(lost.is_empty(), "records {lost:?} of {file} were acknowledged and are not there");
            }
            // Written over and over: the last that was acknowledged is there, or the one that was on its way after it.
            let altered = self.pod.events_of(Op::Map).into_iter().filter(Event::succeeded);
            let altered = altered.filter_map(|event| event.tag.parse::<u64>().ok()).max();
            let there: Vec<u64> = exports
                .iter()
                .filter_map(|export| well.tree().try_read(&format!("{export}/mapped")))
                .flat_map(|page| data::records(&page))
                .collect();
            assert!(
                there.iter().max() >= altered.as_ref(),
                "by mmap {altered:?} was acknowledged, and {there:?} is there"
            );
            if self.failures().is_empty() {
                assert!(well.is_locked("checkpoints/held"), "the lock is lost");
            }
        }
        self.pod.delete(&self.agent, seconds(10));
        self.neighbour.delete(&self.agent, seconds(10));
    }
}

/// An export that was replaced lies beside the new one.
#[track_caller]
fn nothing_is_deleted(names: &BTreeSet<String>, sites: &[Site]) {
    let there: BTreeSet<String> =
        sites.iter().flat_map(|site| site.tree().names()).map(|name| name.replace(".replaced", "")).collect();
    let gone: Vec<&String> = names.difference(&there).collect();
    assert!(gone.is_empty(), "{gone:?} were on the server, and are not any more");
}
