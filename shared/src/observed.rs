//! What the host was seen to hold. Made by the agent from the mount table, its run directory and its probes;
//! nothing here is remembered from an earlier plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{NamespaceId, PublicationId, SuperblockId};

/// Time since an origin of the caller's choosing: the planner reads no clock.
pub type Moment = Duration;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub namespaces: BTreeMap<NamespaceId, Tunnel>,
    /// What the probes of the server behind each namespace found.
    pub servers: BTreeMap<NamespaceId, Server>,
    /// Superblocks that a base mount of ours holds.
    pub superblocks: BTreeSet<SuperblockId>,
    /// Superblocks that steps under way mount or put somewhere: they may be about to show up.
    pub beginning: BTreeSet<SuperblockId>,
    /// Superblocks that steps under way retire: they may be out of the mount table while the kernel still speaks to
    /// their server, or still in it and no longer to be relied on.
    pub ending: BTreeSet<SuperblockId>,
    /// What is mounted at a publication's target on the host, lowest first.
    pub published: BTreeMap<PublicationId, Vec<Layer>>,
    /// Copies of superblocks of ours in containers.
    pub copies: BTreeMap<SuperblockId, Copies>,
    /// Who is in the containers of a read-write publication; none where nobody is.
    pub occupants: BTreeMap<PublicationId, Occupants>,
    pub pods: Pods,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Server {
    pub first_asked: Moment,
    pub last_answer: Option<Moment>,
    /// When it answered for the first time since it was last away, or ever.
    pub alive_since: Moment,
    /// Questions in a row that got no answer.
    pub misses: u32,
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

/// A server is away after this long without an answer, provided that at least two questions went unanswered.
pub const AWAY_AFTER: Duration = Duration::from_secs(4);

/// A server that was away itself takes over only after this long: when the node's uplink returns, the tunnels that were
/// cut come back one by one, each with its next handshake.
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);

impl Server {
    pub fn asked(&mut self, now: Moment, answered: bool) {
        if !answered {
            self.misses += 1;
            return;
        }
        if self.liveness(now) != Liveness::Alive {
            self.alive_since = now;
        }
        (self.last_answer, self.misses) = (Some(now), 0);
    }

    /// Whether it may take the place of `old`. It must have been there nearly all the while that `old` was silent, or
    /// long enough since; and it must have answered after `old` was given up, or what is known of it is from before.
    pub fn may_succeed(&self, old: &Self, now: Moment) -> bool {
        let was_there =
            self.alive_since <= old.silent_since() + AWAY_AFTER / 2 || now >= self.alive_since + SETTLED_AFTER;
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
        self.silent_since() + AWAY_AFTER
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

    pub fn liveness(&self, namespace: &NamespaceId, now: Moment) -> Liveness {
        self.servers.get(namespace).map_or(Liveness::Unknown, |server| server.liveness(now))
    }

    pub fn tunnel(&self, namespace: &NamespaceId) -> Option<Tunnel> {
        self.namespaces.get(namespace).copied()
    }
}
