//! The fault matrix: what breaks, under which policy, read-only or read-write, and what the application must see.
//!
//! The application is one container, never restarted: it opens, reads and verifies, or writes with fsync and writes down
//! what was acknowledged; it keeps a descriptor, a lock and a working directory on the share.

use std::time::Duration;

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
            // A major timeout of 3 s. The first call after a loss takes four or five of them, since its connection must be
            // given up before; later ones take one or two.
            Self::Soft => "policy: soft, acceptLostWrites: true, mountOptions: {timeo: 10, retrans: 2}",
            Self::Bounded => "policy: bounded, after: 10s",
        }
    }

    /// No call ends with an error before.
    fn patience(self) -> Option<Duration> {
        match self {
            Self::Hard => None,
            Self::Soft => Some(seconds(3)),
            Self::Bounded => Some(seconds(10)),
        }
    }
}

/// From a server's return to the application's next success: the kernel's client tries to connect again less and less
/// often, and asks for its locks back first.
const RETURN: Duration = seconds(100);

pub(super) fn run(fault: Fault, policy: Policy, access: Access) {
    let lab = Lab::start(fault, policy, access);
    match fault {
        Fault::ServerRestarted => {
            lab.sites[0].restart();
            lab.goes_on();
            lab.never_failed();
        }
        Fault::HostAway => lab.outage(policy, seconds(30), Site::blackhole, Site::heal),
        Fault::Blackhole => lab.outage(policy, seconds(60), Site::blackhole, Site::heal),
        Fault::NetworkLost => lab.outage(policy, seconds(30), Site::unplug, Site::plug_in),
        Fault::ExportReplaced => {
            lab.sites[0].replace_export(lab.export());
            lab.new_opens_go_on();
        }
        Fault::ExportRemoved => {
            lab.sites[0].unexport(lab.export());
            eventually("the application is told", seconds(20), || lab.failures().first().cloned().ok_or("not yet"));
            poll(seconds(20), || None::<()>);
            lab.sites[0].export_again(lab.export());
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
}

impl Lab {
    fn start(fault: Fault, policy: Policy, access: Access) -> Self {
        let node = Node::new("node1");
        let tree = Tree::new("data");
        tree.put("datasets/sample", &data::file("data", 100_000));
        let names: &[&str] = if fault == Fault::GoneForGood { &["a", "b"] } else { &["a"] };
        let sites: Vec<Site> = names.iter().map(|name| Site::serving(&node, name, tree.clone())).collect();
        let (export, written) = match access {
            Access::ReadOnly => ("datasets", "ReadOnly"),
            Access::ReadWrite => ("checkpoints", "ReadWrite"),
        };
        let objects = [
            objects::gateway("gw", true, &sites.iter().collect::<Vec<_>>()),
            objects::share_with("tested", "gw", export, written, policy.yaml()),
            objects::share_of("library", "gw", "datasets", "ReadOnly"),
        ];
        let agent = Agent::start(&node, &objects.join("---\n"));
        let pod = Draft::new("pod").with_share(&node, &agent, "tested", access == Access::ReadOnly);
        let pod = match access {
            Access::ReadOnly => pod.reading("/mnt/tested/sample").staying_in("/mnt/tested"),
            Access::ReadWrite => pod.writing("/mnt/tested/log").holding("/mnt/tested/held"),
        };
        let pod = pod.start();
        let neighbour = Draft::new("neighbour").with_share(&node, &agent, "library", true);
        let neighbour = neighbour.reading("/mnt/library/sample").start();
        let lab = Self { access, sites, agent, pod, neighbour };
        lab.goes_on();
        lab
    }

    fn export(&self) -> &'static str {
        match self.access {
            Access::ReadOnly => "datasets",
            Access::ReadWrite => "checkpoints",
        }
    }

    fn ops(&self) -> &'static [Op] {
        match self.access {
            Access::ReadOnly => &[Op::Read, Op::List],
            Access::ReadWrite => &[Op::Write],
        }
    }

    /// From now on each of the application's jobs succeeds, again and again, and so does the neighbour's.
    #[track_caller]
    fn goes_on(&self) {
        let paths: &[&str] = match self.access {
            Access::ReadOnly => &["/mnt/tested/sample", "/mnt/tested"],
            Access::ReadWrite => &["/mnt/tested/log", "/mnt/tested/held"],
        };
        for path in paths {
            self.succeeds(path);
        }
        self.neighbour.reads("data", RETURN);
    }

    /// What is opened from now on is well. What was open stays on the old mount, and has ended.
    #[track_caller]
    fn new_opens_go_on(&self) {
        self.succeeds(match self.access {
            Access::ReadOnly => "/mnt/tested/sample",
            Access::ReadWrite => "/mnt/tested/log",
        });
        self.neighbour.reads("data", RETURN);
    }

    /// Three times in a row, and what is acknowledged is there.
    #[track_caller]
    fn succeeds(&self, path: &str) {
        let known = self.pod.events().len();
        eventually(&format!("{path} is well"), RETURN, || {
            let events = self.pod.events();
            let mut mine = events.iter().skip(known).filter(|event| event.path == path && event.op != Op::Sync);
            let in_a_row = mine.clone().rev().take_while(|event| event.succeeded()).count();
            if in_a_row >= 3 { Ok(()) } else { Err(mine.next_back().cloned()) }
        });
    }

    fn failures(&self) -> Vec<Event> {
        let all = self.ops().iter().flat_map(|op| self.pod.events_of(*op));
        all.filter(|event| !event.succeeded()).collect()
    }

    #[track_caller]
    fn never_failed(&self) {
        assert_eq!(self.failures(), [], "the application saw an error");
        self.neighbour.never_failed(Op::Read);
    }

    /// The server is away for `time` and comes back.
    #[track_caller]
    fn outage(&self, policy: Policy, time: Duration, begin: fn(&Site), end: fn(&Site)) {
        let (began, since) = (now(), monotonic());
        begin(&self.sites[0]);
        if let Some(patience) = policy.patience() {
            let limit = if policy == Policy::Soft { time } else { time.min(5 * patience) };
            eventually("an error comes at its time", limit, || self.failures().first().cloned().ok_or("none yet"));
            let early = self.failures().into_iter().find(|event| event.at < since + patience.as_secs_f64());
            assert_eq!(early, None, "no error comes before {patience:?}; the outage began at {since}");
        }
        // The rest of the outage.
        poll(time.saturating_sub(now() - began), || None::<()>);
        end(&self.sites[0]);
        self.goes_on();
        if policy == Policy::Hard {
            self.never_failed();
        }
        self.neighbour.never_failed(Op::Read);
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
        self.pod.blocks(self.ops()[0], seconds(2));
        let (grace, began) = (seconds(15), now());
        self.pod.delete(&self.agent, grace);
        let took = now() - began;
        assert!(took < grace, "grace was {grace:?}, gone after {took:?}");
        self.sites[0].heal();
        self.neighbour.reads("data", RETURN);
        self.neighbour.never_failed(Op::Read);
        self.neighbour.delete(&self.agent, seconds(10));
    }

    /// Nothing that was acknowledged is lost, the lock is held, and both pods go.
    fn end(self) {
        let well = self.sites.iter().rfind(|site| site.name() == self.agent.target("tested")).expect("a site serves");
        if self.access == Access::ReadWrite {
            for file in ["log", "held"] {
                let acknowledged = self.pod.events_of(Op::Write).into_iter().filter(|event| event.succeeded());
                let numbers = acknowledged.filter(|event| event.path.ends_with(file));
                // A replaced export keeps what was written before.
                let both = ["checkpoints", "checkpoints.replaced"].map(|export| format!("{export}/{file}"));
                let there: Vec<u64> = both
                    .iter()
                    .filter_map(|path| well.tree().try_read(path))
                    .flat_map(|log| data::records(&log))
                    .collect();
                let lost: Vec<u64> = numbers
                    .filter_map(|event| event.tag.parse().ok())
                    .filter(|number| !there.contains(number))
                    .collect();
                assert!(lost.is_empty(), "records {lost:?} of {file} were acknowledged and are not there");
            }
            if self.failures().is_empty() {
                assert!(well.is_locked("checkpoints/held"), "the lock is lost");
            }
        }
        self.pod.delete(&self.agent, seconds(10));
        self.neighbour.delete(&self.agent, seconds(10));
    }
}
