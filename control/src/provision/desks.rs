//! Who does what is to be done in a share: the nodes' agents, each asked in the object that bears its node's name, and what
//! they have answered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use moorline_shared::errand::{Errand, Outcome, State, Task};
use moorline_shared::name::Name;
use moorline_shared::share::Share;
use moorline_shared::status::NodeStatus;

/// A time on a clock that only the caller knows.
pub(crate) type Moment = Duration;

/// How long a node may take until another is asked.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What a node's object holds, by its schema.
const MOST: usize = 256;

/// What is asked of one node, and what its agent says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Desk {
    /// Of the object.
    pub(crate) version: String,
    pub(crate) requests: Vec<Errand>,
    pub(crate) status: NodeStatus,
    /// The node is there, and takes part.
    pub(crate) fit: bool,
}

impl Desk {
    fn outcome(&self, errand: &Errand) -> Option<&Outcome> {
        self.status.outcomes.iter().find(|outcome| outcome.request == *errand)
    }

    fn is_done(&self, errand: &Errand) -> bool {
        self.outcome(errand).is_some_and(|outcome| outcome.state == State::Done)
    }

    /// An agent has heard of it, and may do it at any time.
    fn has_taken(&self, id: &Name) -> bool {
        self.status.outcomes.iter().any(|outcome| outcome.request.id == *id)
    }
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Done(String),
    /// What its agent says, if it says anything.
    Failed {
        node: String,
        why: String,
    },
    Waits {
        node: String,
        why: Option<String>,
        late: bool,
    },
    /// There is nobody who could be asked.
    Nobody,
}

impl Progress {
    /// As who does not want to wait any longer sees it.
    pub(crate) fn late(self) -> Self {
        match self {
            Self::Waits { node, why, .. } => Self::Waits { node, why, late: true },
            other => other,
        }
    }
}

/// When who was asked for what. Not kept over a restart: then all have their time once more.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    asked: BTreeMap<(String, Name), Moment>,
    tried: BTreeMap<Name, BTreeSet<String>>,
}

impl Memory {
    fn look_at(&mut self, desks: &BTreeMap<String, Desk>, now: Moment) {
        let all =
            || desks.iter().flat_map(|(node, desk)| desk.requests.iter().map(move |it| (node.clone(), it.id.clone())));
        let there: BTreeSet<(String, Name)> = all().collect();
        self.asked.retain(|key, _| there.contains(key));
        all().for_each(|key| {
            self.asked.entry(key).or_insert(now);
        });
        self.tried.retain(|id, _| there.iter().any(|(_, other)| other == id));
    }
}

/// All nodes, and what is to be asked of each by the end of a round.
pub(crate) struct Desks<'a> {
    before: &'a BTreeMap<String, Desk>,
    desks: BTreeMap<String, Desk>,
    memory: &'a mut Memory,
    now: Moment,
    /// What somebody wants in this round.
    wanted: BTreeSet<Name>,
}

impl<'a> Desks<'a> {
    pub(crate) fn new(before: &'a BTreeMap<String, Desk>, memory: &'a mut Memory, now: Moment) -> Self {
        memory.look_at(before, now);
        Self { before, desks: before.clone(), memory, now, wanted: BTreeSet::new() }
    }

    /// Asks for an errand, unless that was done, and says how it stands. `near` is the node that it is done for.
    pub(crate) fn pursue(&mut self, errand: &Errand, share: &Share, near: Option<&str>) -> Progress {
        self.wanted.insert(errand.id.clone());
        let holders: Vec<String> = self.holders(&errand.id);
        for node in &holders {
            if let Some(Outcome { state: State::Done, message, .. }) = self.desks[node].outcome(errand) {
                return Progress::Done(message.clone());
            }
        }
        let Some(node) = holders.first() else {
            return match self.choose(&errand.id, share, near) {
                Some(node) => self.ask(&node, errand),
                None => Progress::Nobody,
            };
        };
        let desk = &self.desks[node];
        if !desk.requests.contains(errand) {
            return self.ask(node, errand);
        }
        let late = self.is_late(node, &errand.id);
        let progress = match desk.outcome(errand) {
            Some(Outcome { state: State::Failed, message, .. }) => {
                Progress::Failed { node: node.clone(), why: message.clone() }
            }
            _ => self.waits(node, errand),
        };
        // What takes something away stays with whoever may be doing it.
        if !late || errand.task.takes_away() && desk.has_taken(&errand.id) {
            return progress;
        }
        let node = node.clone();
        self.memory.tried.entry(errand.id.clone()).or_default().insert(node.clone());
        match self.choose(&errand.id, share, near) {
            Some(next) if next != node => {
                self.forget_at(&node, &errand.id);
                self.ask(&next, errand);
            }
            _ => {}
        }
        progress
    }

    /// Has everybody who was asked for something by this id drop it. None once nobody may do anything any more; an agent that is
    /// not heard of may, until its node is gone.
    pub(crate) fn take_back(&mut self, id: &Name) -> Option<Progress> {
        self.wanted.insert(id.clone());
        let holds = |desk: &Desk| {
            let taken = desk.status.outcomes.iter().map(|outcome| &outcome.request);
            desk.requests.iter().chain(taken).find(|errand| errand.id == *id).cloned()
        };
        let holders: Vec<(String, Errand)> =
            self.desks.iter().filter_map(|(node, desk)| Some((node.clone(), holds(desk)?))).collect();
        let mut progress = None;
        for (node, errand) in holders {
            let keep = Errand { task: Task::Keep {}, ..errand };
            let desk = &self.desks[&node];
            if !desk.requests.contains(&keep) {
                progress = Some(self.ask(&node, &keep));
            } else if !desk.is_done(&keep) {
                progress = Some(self.waits(&node, &keep));
            }
        }
        progress
    }

    /// All who were asked for something by this id.
    fn holders(&self, id: &Name) -> Vec<String> {
        let holds = |desk: &Desk| desk.requests.iter().any(|request| request.id == *id);
        self.desks.iter().filter(|(_, desk)| holds(desk)).map(|(node, _)| node.clone()).collect()
    }

    /// Whether somebody was asked for something by its id.
    pub(crate) fn is_asked(&self, errand: &Errand) -> bool {
        !self.holders(&errand.id).is_empty()
    }

    fn is_late(&self, node: &str, id: &Name) -> bool {
        let since = self.memory.asked.get(&(node.to_owned(), id.clone())).copied().unwrap_or(self.now);
        self.now.saturating_sub(since) > PATIENCE
    }

    fn waits(&self, node: &str, errand: &Errand) -> Progress {
        let why = self.desks.get(node).and_then(|desk| desk.outcome(errand)).map(|outcome| outcome.message.clone());
        Progress::Waits { node: node.to_owned(), why, late: self.is_late(node, &errand.id) }
    }

    fn ask(&mut self, node: &str, errand: &Errand) -> Progress {
        self.forget_at(node, &errand.id);
        self.memory.asked.insert((node.to_owned(), errand.id.clone()), self.now);
        if let Some(desk) = self.desks.get_mut(node) {
            desk.requests.push(errand.clone());
        }
        Progress::Waits { node: node.to_owned(), why: None, late: false }
    }

    fn forget_at(&mut self, node: &str, id: &Name) {
        if let Some(desk) = self.desks.get_mut(node) {
            desk.requests.retain(|request| request.id != *id);
        }
    }

    /// The node whose agent is likeliest to do it: its servers answer, it is the one that it is for, it has the Share mounted,
    /// it has little else to do. When all were tried it is the first one's turn again.
    fn choose(&mut self, id: &Name, share: &Share, near: Option<&str>) -> Option<String> {
        let fit = |desk: &Desk| desk.fit && desk.requests.len() < MOST;
        let tried = self.memory.tried.entry(id.clone()).or_default();
        if self.desks.iter().all(|(node, desk)| !fit(desk) || tried.contains(node)) {
            tried.clear();
        }
        let tried: &BTreeSet<String> = tried;
        let rank = |node: &str, desk: &Desk| {
            let servers = || desk.status.servers.iter().filter(|server| server.gateway == share.gateway.as_str());
            let answers = servers().any(|server| server.answers);
            let serves = desk.status.shares.iter().any(|it| it.name == share.name.as_str() && it.waits.is_none());
            (
                answers || servers().next().is_none(),
                near == Some(node),
                answers,
                serves,
                usize::MAX - desk.requests.len(),
            )
        };
        let candidates = self.desks.iter().filter(|(node, desk)| fit(desk) && !tried.contains(*node));
        // Of equals the first by name.
        let best = candidates.rev().max_by_key(|(node, desk)| rank(node, desk));
        best.map(|(node, _)| node.clone())
    }

    /// Whatever nobody wants any more is forgotten. What was to be made for a claim that is gone is unmade first, and who may be
    /// taking something away has to say that he is not.
    pub(crate) fn clear_up(&mut self, is_ours: impl Fn(&Name) -> bool, is_made: impl Fn(&Name) -> bool) {
        let wanted = &self.wanted;
        for desk in self.desks.values_mut() {
            let idle: Vec<Errand> =
                desk.requests.iter().filter(|it| is_ours(&it.id) && !wanted.contains(&it.id)).cloned().collect();
            for errand in idle {
                desk.requests.retain(|request| request.id != errand.id);
                let over = desk.outcome(&errand).is_some_and(|outcome| outcome.state != State::Waiting);
                let done = desk.is_done(&errand);
                match errand.task {
                    Task::Make { .. } if !is_made(&errand.id) => {
                        desk.requests.push(Errand { task: Task::Unmake {}, ..errand });
                    }
                    Task::Unmake {} | Task::Keep {} if !over => desk.requests.push(errand),
                    Task::Archive {} | Task::Delete { dry_run: false } if !done => {
                        desk.requests.push(Errand { task: Task::Keep {}, ..errand });
                    }
                    _ => {}
                }
            }
        }
    }

    /// What each node is to be asked now, if it is anything else than before.
    pub(crate) fn changes(self) -> Vec<(String, Desk)> {
        let before = self.before;
        self.desks
            .into_iter()
            .filter(|(node, desk)| before.get(node).is_none_or(|it| it.requests != desk.requests))
            .collect()
    }

    /// What others are about to get.
    pub(crate) fn making<'b>(&'b self, but: &'b Name) -> impl Iterator<Item = &'b Errand> {
        let requests = self.desks.values().flat_map(|desk| &desk.requests);
        requests.filter(move |it| it.id != *but && matches!(it.task, Task::Make { .. }))
    }
}

#[cfg(test)]
mod tests {
    use moorline_shared::status::{NodeServer, NodeShare};

    use super::*;
    use crate::provision::testing::{desk, errand, share};

    fn make(id: &str) -> Errand {
        errand(id, Task::Make { uid: 0, gid: 0, mode: 0o777 })
    }

    /// A round: how it stands, and who is asked afterwards.
    fn round(
        desks: &mut BTreeMap<String, Desk>,
        memory: &mut Memory,
        now: u64,
        errand: &Errand,
        near: Option<&str>,
    ) -> (Progress, Vec<String>) {
        let before = desks.clone();
        let mut round = Desks::new(&before, memory, Duration::from_secs(now));
        let progress = round.pursue(errand, &share("data", "/data"), near);
        let asked = round.holders(&errand.id);
        for (node, desk) in round.changes() {
            desks.insert(node, desk);
        }
        (progress, asked)
    }

    fn says(desks: &mut BTreeMap<String, Desk>, node: &str, request: &Errand, state: State) {
        let outcome = Outcome { request: request.clone(), state, message: "so".into() };
        desks.get_mut(node).unwrap().status.outcomes = vec![outcome];
    }

    #[test]
    fn the_node_is_asked_whose_servers_answer_and_that_it_is_for() {
        let nodes = || BTreeMap::from(["a", "b", "c"].map(|name| (name.to_owned(), desk())));
        let asked =
            |desks: &mut BTreeMap<String, Desk>, near| round(desks, &mut Memory::default(), 0, &make("u"), near).1;
        assert_eq!(asked(&mut nodes(), None), ["a"]);
        assert_eq!(asked(&mut nodes(), Some("b")), ["b"]);
        let server = |answers| vec![NodeServer { gateway: "gw".into(), target: "t".into(), answers }];
        let mut desks = nodes();
        desks.get_mut("a").unwrap().status.servers = server(false);
        assert_eq!(asked(&mut desks, Some("a")), ["b"], "its servers are away");
        let mut desks = nodes();
        desks.get_mut("c").unwrap().status.servers = server(true);
        assert_eq!(asked(&mut desks, None), ["c"]);
        let mut desks = nodes();
        desks.get_mut("b").unwrap().status.shares = vec![NodeShare { name: "data".into(), ..NodeShare::default() }];
        assert_eq!(asked(&mut desks, None), ["b"]);
        let mut desks = nodes();
        desks.values_mut().for_each(|desk| desk.fit = false);
        assert_eq!(round(&mut desks, &mut Memory::default(), 0, &make("u"), None), (Progress::Nobody, vec![]));
    }

    #[test]
    fn a_node_that_does_not_answer_is_left_for_the_next() {
        let (mut desks, mut memory) =
            (BTreeMap::from(["a", "b"].map(|name| (name.to_owned(), desk()))), Memory::default());
        let mut asked = |now| round(&mut desks, &mut memory, now, &make("u"), None).1;
        assert_eq!(asked(0), ["a"]);
        assert_eq!(asked(1), ["a"]);
        assert_eq!(asked(30), ["a"]);
        assert_eq!(asked(32), ["b"]);
        assert_eq!(asked(33), ["b"]);
        assert_eq!(asked(64), ["a"], "all were tried");
    }

    #[test]
    fn what_takes_something_away_stays_with_who_has_taken_it_up() {
        let delete = errand("u", Task::Delete { dry_run: false });
        for (taken, expected) in [(true, ["a"]), (false, ["b"])] {
            let (mut desks, mut memory) =
                (BTreeMap::from(["a", "b"].map(|name| (name.to_owned(), desk()))), Memory::default());
            round(&mut desks, &mut memory, 0, &delete, None);
            if taken {
                says(&mut desks, "a", &delete, State::Waiting);
            }
            round(&mut desks, &mut memory, 1, &delete, None);
            let (progress, asked) = round(&mut desks, &mut memory, 40, &delete, None);
            assert_eq!(asked, expected);
            assert_eq!(progress, Progress::Waits { node: "a".into(), why: taken.then(|| "so".into()), late: true });
        }
    }

    #[test]
    fn an_answer_is_for_the_very_request() {
        let (mut desks, mut memory) = (BTreeMap::from([("a".to_owned(), desk())]), Memory::default());
        round(&mut desks, &mut memory, 0, &make("u"), None);
        says(&mut desks, "a", &make("u"), State::Done);
        assert_eq!(round(&mut desks, &mut memory, 1, &make("u"), None).0, Progress::Done("so".into()));
        let delete = errand("u", Task::Delete { dry_run: false });
        assert_eq!(
            round(&mut desks, &mut memory, 2, &delete, None).0,
            Progress::Waits { node: "a".into(), why: None, late: false }
        );
        assert_eq!(desks["a"].requests, std::slice::from_ref(&delete));
        says(&mut desks, "a", &delete, State::Failed);
        assert_eq!(
            round(&mut desks, &mut memory, 3, &delete, None).0,
            Progress::Failed { node: "a".into(), why: "so".into() }
        );
    }

    #[test]
    fn what_nobody_wants_is_forgotten_and_what_was_made_for_nobody_unmade() {
        let mut before = BTreeMap::from([("a".to_owned(), desk())]);
        let requests = vec![make("gone"), make("made"), make("theirs"), errand("old", Task::Archive {})];
        before.get_mut("a").unwrap().requests = requests;
        let clear = |before: &BTreeMap<String, Desk>| {
            let mut memory = Memory::default();
            let mut desks = Desks::new(before, &mut memory, Duration::ZERO);
            desks.clear_up(|id| id.as_str() != "theirs", |id| id.as_str() == "made");
            desks.changes().pop().map(|(_, desk)| desk.requests)
        };
        let unmake = errand("gone", Task::Unmake {});
        let keep = errand("old", Task::Keep {});
        before.get_mut("a").unwrap().requests = clear(&before).unwrap();
        assert_eq!(before["a"].requests, [make("theirs"), unmake.clone(), keep.clone()]);
        assert_eq!(clear(&before), None);
        says(&mut before, "a", &unmake, State::Done);
        assert_eq!(clear(&before).unwrap(), [make("theirs"), keep.clone()]);
        before.get_mut("a").unwrap().requests = vec![keep.clone(), errand("done", Task::Archive {})];
        says(&mut before, "a", &errand("done", Task::Archive {}), State::Done);
        assert_eq!(clear(&before).unwrap(), std::slice::from_ref(&keep));
        before.get_mut("a").unwrap().requests = vec![keep.clone()];
        says(&mut before, "a", &keep, State::Done);
        assert_eq!(clear(&before).unwrap(), []);
    }

    #[test]
    fn what_is_taken_back_may_be_done_until_all_who_have_it_say_that_it_is_not() {
        let delete = errand("u", Task::Delete { dry_run: false });
        let keep = errand("u", Task::Keep {});
        let mut before = BTreeMap::from(["a", "b", "c"].map(|name| (name.to_owned(), desk())));
        before.get_mut("a").unwrap().requests = vec![delete.clone()];
        // Taken up once, and not in the object any more.
        says(&mut before, "b", &delete, State::Waiting);
        let mut memory = Memory::default();
        let mut take_back = |before: &mut BTreeMap<String, Desk>, now| {
            let there = before.clone();
            let mut round = Desks::new(&there, &mut memory, Duration::from_secs(now));
            let progress = round.take_back(&delete.id);
            before.extend(round.changes());
            progress
        };
        assert!(matches!(take_back(&mut before, 0), Some(Progress::Waits { late: false, .. })));
        assert_eq!(
            before.values().map(|it| it.requests.clone()).collect::<Vec<_>>(),
            [vec![keep.clone()], vec![keep.clone()], vec![]]
        );
        says(&mut before, "b", &keep, State::Done);
        assert!(matches!(take_back(&mut before, 31), Some(Progress::Waits { node, late: true, .. }) if node == "a"));
        says(&mut before, "a", &keep, State::Done);
        assert_eq!(take_back(&mut before, 32), None);
    }
}
