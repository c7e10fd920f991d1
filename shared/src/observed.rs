//! What the host was seen to hold. Made by the agent from the mount table, its run directory and its probes;
//! nothing here is remembered from an earlier plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::id::{NamespaceId, PublicationId, SuperblockId, TargetId};
use crate::name::Name;
use crate::plan::Flush;
use crate::publication::Publication;
use crate::way::WaySeen;

/// Time since an origin of the caller's choosing: the planner reads no clock.
pub type Moment = Duration;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub namespaces: BTreeMap<NamespaceId, Tunnel>,
    /// Ways of ours on the node's own network, wanted or not.
    pub ways: BTreeMap<TargetId, WaySeen>,
    /// Servers that NFS clients of the node's own network speak to, whoever has mounted from them.
    pub used_servers: BTreeSet<IpAddr>,
    /// What the file of mount defaults holds.
    pub mount_defaults: Option<String>,
    /// What the probes of the server behind each namespace found.
    pub servers: BTreeMap<NamespaceId, Server>,
    /// Superblocks that a base mount of ours holds.
    pub superblocks: BTreeSet<SuperblockId>,
    /// Directories that are there for superblocks that are not: whoever made or retired them was cut short.
    pub husks: BTreeSet<SuperblockId>,
    /// Superblocks that may have been ended for good already: there is nothing left to do with them but to retire them, or
    /// to put another in the place of those that pods see.
    pub given_up: BTreeSet<SuperblockId>,
    /// Those of them whose end is done: nothing can be written through them any more.
    pub ended: BTreeSet<SuperblockId>,
    /// Those that a piece of work may still show which was given up, and which the kernel holds.
    pub lingering: BTreeSet<SuperblockId>,
    /// Superblocks that steps under way mount or put somewhere: they may be about to show up.
    pub beginning: BTreeSet<SuperblockId>,
    /// Superblocks that steps under way retire: they may be out of the mount table while the kernel still speaks to
    /// their server, or still in it and no longer to be relied on.
    pub ending: BTreeSet<SuperblockId>,
    /// What steps under way clear away: no superblock, but its name is taken.
    pub clearing: BTreeSet<SuperblockId>,
    /// What is mounted at a publication's target on the host, lowest first.
    pub published: BTreeMap<PublicationId, Vec<Layer>>,
    /// Publications that kubelet meets on the host: at their target, or where a subPath of them is bound.
    pub shown: BTreeSet<PublicationId>,
    /// What is mounted of ours in kubelet's directories of pods and is no publication on record: sub paths, and what a
    /// lost record has left. As the publications that they would be.
    pub strays: BTreeMap<PublicationId, Publication>,
    /// Copies of superblocks of ours in containers.
    pub copies: BTreeMap<SuperblockId, Copies>,
    /// Who is in the containers of a read-write publication; none where nobody is.
    pub occupants: BTreeMap<PublicationId, Occupants>,
    pub pods: Pods,
    pub leases: Leases,
    /// Pods that were among them and are no more, as when somebody has forced a deletion.
    pub gone: BTreeSet<String>,
    /// Shares in an epoch whose server answers that it does not know their root any more: the export was replaced or
    /// taken away. Since when that was seen.
    pub stale: BTreeMap<(Name, u32), Moment>,
    /// Shares that a target refused to let us mount a moment ago, though it answers.
    pub unmountable: BTreeSet<(Name, TargetId)>,
    /// The kernel can end a superblock for good (Linux 6.4).
    pub can_shut_down: bool,
    /// How the last flush of each superblock went, since the node began to shut down.
    pub flushed: BTreeMap<SuperblockId, Flush>,
}

/// The processes of containers, judged by the one that is furthest from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occupants {
    /// All were killed from outside, and can't end: they wait for the server. Nobody will hear of what they lose.
    Killed,
    /// All are killed, or on their way out by themselves. Such a one may have ended well, and somebody may count on what it
    /// wrote.
    Ending,
    Living,
}

/// The node's pods, by UID, as far as anybody speaks of them: those that stay, and those that were asked to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pods {
    pub known: BTreeMap<String, Option<Deletion>>,
    /// A pod that is not among them is no more.
    pub complete: bool,
    /// Who speaks of them is heard at the moment: one that was made lately is among them as well.
    pub heard: bool,
}

impl Pods {
    /// It was asked to end, and is not gone yet as far as anybody says.
    pub fn is_leaving(&self, uid: &str) -> bool {
        matches!(self.known.get(uid), Some(Some(_)))
    }
}

/// Volumes that are one node's at a time, as the API server has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    /// Those of this node.
    pub held: BTreeSet<String>,
    /// Those of others, and whose.
    pub others: BTreeMap<String, String>,
}

/// A pod's way out: from when it was asked to end until its grace period is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    pub asked: Moment,
    pub ends: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// The namespace stands; no data path is attached: packets wait or are lost, connections retry.
    Detached,
    /// A data path runs.
    Attached,
    /// It leads nowhere for good: no data path is ever attached again.
    Fenced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// A clone of a mount of ours, known by its device.
    Ours(SuperblockId),
    /// Somebody else's mount: never touched.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copies {
    pub all: u32,
    /// Those that nothing is mounted over: what the application sees.
    pub on_top: u32,
    /// Those that stay where they are when the publication is detached: not what comes and goes with the host's.
    pub bound: u32,
    /// Who has them, where that was looked at: of what is written.
    pub occupants: Option<Occupants>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// How long it may be silent before it counts as away, provided that at least two questions went unanswered.
    pub away_after: Duration,
    pub first_asked: Moment,
    pub last_answer: Option<Moment>,
    /// When it answered for the first time since it was last away, or ever.
    pub alive_since: Moment,
    /// Questions in a row that got no answer.
    pub misses: u32,
    /// When the first of them was given up: its outage began no later.
    pub out_since: Moment,
    /// The shortest time from a question to its answer that was seen.
    pub round_trip: Option<Duration>,
    /// How long its last answer took. Shown to people; nothing is decided by it.
    pub answered_in: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Not asked often enough to say.
    Unknown,
    Alive,
    Away,
}

/// A server that was away itself takes over only after this long: when the node's uplink returns, the tunnels that were
/// cut come back one by one, each with its next handshake.
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);

impl Server {
    pub fn new(away_after: Duration, now: Moment) -> Self {
        Self {
            away_after,
            first_asked: now,
            last_answer: None,
            alive_since: Moment::ZERO,
            misses: 0,
            out_since: Moment::ZERO,
            round_trip: None,
            answered_in: None,
        }
    }

    /// Takes in how a question ended: by its answer, after so long, or without one.
    pub fn asked(&mut self, now: Moment, answer: Option<Duration>) {
        let Some(took) = answer else {
            if self.misses == 0 {
                self.out_since = now;
            }
            self.misses += 1;
            return;
        };
        if self.liveness(now) != Liveness::Alive {
            self.alive_since = now;
        }
        self.round_trip = Some(self.round_trip.map_or(took, |shortest| shortest.min(took)));
        (self.last_answer, self.answered_in, self.misses) = (Some(now), answer, 0);
    }

    /// Whether it may be given another patience. A longer one is no sign of life: a server that is away has to answer first.
    pub fn may_be_given(&self, away_after: Duration, now: Moment) -> bool {
        away_after <= self.away_after || self.liveness(now) != Liveness::Away
    }

    /// How long it has been away for certain: never longer than it was.
    pub fn out_for(&self, now: Moment) -> Duration {
        if self.misses == 0 { Duration::ZERO } else { now.saturating_sub(self.out_since) }
    }

    /// Whether it may take the place of `old`. It must have been there nearly all the while that `old` was silent, or
    /// long enough since; and it must have answered after `old` was given up, or what is known of it is from before.
    pub fn may_succeed(&self, old: &Self, now: Moment) -> bool {
        let was_there =
            self.alive_since <= old.silent_since() + old.away_after / 2 || now >= self.alive_since + SETTLED_AFTER;
        was_there && self.last_answer.is_some_and(|at| at >= old.given_up())
    }

    /// For how long it has not answered.
    pub fn silence(&self, now: Moment) -> Duration {
        now.saturating_sub(self.silent_since())
    }

    fn silent_since(&self) -> Moment {
        self.last_answer.unwrap_or(self.first_asked)
    }

    /// The earliest moment at which its silence can have been taken for its absence.
    pub fn given_up(&self) -> Moment {
        self.silent_since() + self.away_after
    }

    pub fn liveness(&self, now: Moment) -> Liveness {
        if self.misses >= 2 && now >= self.given_up() {
            Liveness::Away
        } else if self.last_answer.is_some() {
            Liveness::Alive
        } else {
            Liveness::Unknown
        }
    }
}

impl Observed {
    /// A mount of ours is what a publication's target shows.
    pub fn is_published(&self, id: PublicationId) -> bool {
        matches!(self.published.get(&id).and_then(|layers| layers.last()), Some(Layer::Ours(_)))
    }

    /// The pod was asked to end, or is spoken of no more.
    pub fn is_ending(&self, uid: &str) -> bool {
        self.pods.is_leaving(uid) || self.gone.contains(uid)
    }

    /// Somebody on the node has a mount from its server.
    pub fn is_used(&self, way: &WaySeen) -> bool {
        self.used_servers.contains(&way.way.server)
    }

    pub fn liveness(&self, namespace: &NamespaceId, now: Moment) -> Liveness {
        self.servers.get(namespace).map_or(Liveness::Unknown, |server| server.liveness(now))
    }

    pub fn tunnel(&self, namespace: &NamespaceId) -> Option<Tunnel> {
        self.namespaces.get(namespace).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_patience_brings_no_dead_server_to_life() {
        let [short, long] = [4, 60].map(Duration::from_secs);
        let at = Moment::from_secs;
        let mut server = Server::new(short, at(100));
        server.asked(at(101), Some(Duration::from_millis(1)));
        assert!(server.may_be_given(long, at(102)));
        [103, 105].into_iter().for_each(|second| server.asked(at(second), None));
        assert!(server.may_be_given(long, at(104)), "it is not away yet");
        assert_eq!(server.liveness(at(106)), Liveness::Away);
        assert!(!server.may_be_given(long, at(106)));
        assert!(server.may_be_given(short / 2, at(106)), "a shorter one leaves it dead");
        server.asked(at(107), Some(Duration::from_millis(1)));
        assert!(server.may_be_given(long, at(107)));
    }
}
