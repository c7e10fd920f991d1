//! An agent that dies at kill points and comes again, and what outlasts that: the pods, the calls that kubelet repeats, and at
//! the end a node on which nothing is left.

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::time::Duration;

use moorline_agent::killpoint::Point;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::agent::{Agent, Whom, hands};
use crate::csi::Csi;
use crate::event::Op;
use crate::mounts::{self, Mount};
use crate::pod::Pod;
use crate::wait::{poll, seconds};

/// A file system of the agent's own, and its state in it.
pub(super) const NODE: &str = "/run/moorline/node";

pub(super) type Death = (Point, Whom);

impl Agent {
    #[track_caller]
    pub(super) fn strike_at(&self, deaths: &[Death]) {
        deaths.iter().for_each(|(point, whom)| self.strike(*point, *whom));
    }

    /// Waits, while the agent dies and comes again, until `look` answers `Ok`. Each that comes has the whole of the deadline: how
    /// long it takes to come is the machine's.
    #[track_caller]
    pub(super) fn outlast<T, E: Debug>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut(&Agent) -> Result<T, E>,
    ) -> T {
        let mut last = None;
        loop {
            self.revive();
            let answer = poll(deadline, || match look(self) {
                Ok(answer) => Some(Some(answer)),
                Err(seen) => {
                    last = Some(seen);
                    (!self.alive()).then_some(None)
                }
            });
            match answer {
                Some(Some(answer)) => return answer,
                Some(None) => {}
                None => panic!("{what}: not within {deadline:?}; last seen: {last:?}"),
            }
        }
    }

    /// The pod reads once more, on a node whose agent may die yet.
    #[track_caller]
    pub(super) fn reads(&mut self, pod: &Pod) {
        let so_far = || pod.events_of(Op::Read).iter().filter(|event| event.succeeded() && event.tag == "data").count();
        let before = so_far();
        self.outlast(&format!("pod {} reads", pod.name()), seconds(30), |_| {
            if so_far() > before { Ok(()) } else { Err(pod.events_of(Op::Read).last().cloned()) }
        });
    }

    /// The pod's processes are asked to end. What they still wait for may go through an agent that is dead.
    #[track_caller]
    pub(super) fn sees_the_end_of(&mut self, pod: &Pod) {
        if pod.container().alive() {
            pod.container().kill(Signal::SIGTERM);
        }
        self.outlast(&format!("pod {} ends", pod.name()), seconds(30), |_| {
            if pod.container().alive() { Err("it runs") } else { Ok(()) }
        });
    }

    /// Somebody came by each of these points.
    #[track_caller]
    pub(super) fn were_struck(&mut self, deaths: &[Death]) {
        self.outlast("somebody comes by", seconds(30), |agent| {
            let spared: Vec<Point> =
                deaths.iter().map(|(point, _)| *point).filter(|point| agent.spared(*point)).collect();
            if spared.is_empty() { Ok(()) } else { Err(spared) }
        });
    }

    #[track_caller]
    pub(super) fn gets_ready(&mut self) {
        self.insist("ask whether it is ready", |csi| match csi.probe()? {
            true => Ok(()),
            false => Err(tonic::Status::unavailable("not yet")),
        });
    }

    /// As kubelet does, on a node whose agent dies: what has got no answer is asked again.
    #[track_caller]
    pub(super) fn insist(&mut self, what: &str, call: impl Fn(&Csi) -> Result<(), tonic::Status>) {
        self.outlast(what, seconds(60), |agent| {
            let csi = Csi::connect()?;
            match call(&csi) {
                Ok(()) => Ok(()),
                // The last three are a connection that broke.
                Err(status)
                    if matches!(
                        status.code(),
                        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                    ) =>
                {
                    Err(status.to_string())
                }
                Err(status) => panic!("{what}: {status}\n{}", agent.logs()),
            }
        });
    }

    /// No mount, namespace, record, mark, target or process: the node is as before.
    #[track_caller]
    pub(super) fn leaves_nothing(&mut self, before: &[Mount]) {
        self.outlast("nothing is left behind", seconds(40), |_| {
            let mut left: Vec<String> = Vec::new();
            let now = mounts::of("self");
            left.extend(now.iter().filter(|mount| !before.contains(mount)).map(|mount| format!("{mount:?}")));
            left.extend(before.iter().filter(|mount| !now.contains(mount)).map(|mount| format!("gone: {mount:?}")));
            if now.len() != before.len() {
                left.push(format!("{} mounts, and {} before", now.len(), before.len()));
            }
            for directory in ["mounts", "netns", "fenced", "publications", "given-up"] {
                left.extend(entries(&Path::new(NODE).join(directory)));
            }
            let unfinished = |name: &String| name.contains(".new") || name.ends_with("returning.json");
            left.extend(entries(Path::new(NODE)).into_iter().filter(unfinished));
            for pod in entries(Path::new("/var/lib/kubelet/pods")) {
                let volumes = entries(&Path::new(&pod).join("volumes/kubernetes.io~csi"));
                left.extend(volumes.iter().flat_map(|volume| entries(Path::new(volume))));
            }
            // One may wait for the next request.
            left.extend(hands().iter().skip(1).map(|pid| {
                let [stat, stack] = ["stat", "stack"].map(|file| fs::read_to_string(format!("/proc/{pid}/{file}")));
                format!("process {pid}: {stat:?} {stack:?}")
            }));
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}
