//! Those who ask for a volume, or give one back, and wait for the answer.

use std::sync::Arc;
use std::time::Duration;

use moorline_shared::errand::Errand;
use moorline_shared::happening::Happening;
use moorline_shared::id::PublicationId;
use moorline_shared::name::Name;
use moorline_shared::observed::{Moment, Observed};
use moorline_shared::plan::{self, Lane, Refusal, Step};
use moorline_shared::publication::Publication;
use moorline_shared::share::Access;
use moorline_shared::wishes::Wishes;
use moorline_shared::yaml::{Located, Object, Problem};
use tokio::sync::oneshot;
use tracing::warn;

use super::{Reconciler, chain};

/// How long a publish waits for its mount before the caller is told why and may ask again.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(15);
/// No CSI call waits for a server: an unpublish that is not done by then goes on by itself.
const UNPUBLISH_DEADLINE: Duration = Duration::from_secs(2);

/// Why a publication is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Conflict(String),
    /// Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// Trying again won't help until somebody changes something.
    #[error("{0}")]
    Failed(String),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NoShare(_) | Refusal::Withdrawn(_) => Self::NotFound(message),
            Refusal::OtherNamespace { .. } | Refusal::NotInline(_) => Self::Forbidden(message),
            Refusal::UnknownLabels { .. } => Self::Unavailable(message),
            Refusal::ReadOnly(_) => Self::Conflict(message),
            Refusal::OtherNode { .. } | Refusal::OtherPod { .. } | Refusal::MayNotDelete(_) => Self::Failed(message),
        }
    }
}

/// What an errand did is said in words.
pub(crate) type Reply = oneshot::Sender<Result<Option<String>, Denied>>;

/// A caller that waits until its publication is there, or gone.
pub(super) struct Waiter {
    wants_it: bool,
    until: Moment,
    reply: Reply,
}

impl Waiter {
    /// A caller that has gone away asks again: nobody minds a reply that can't be sent.
    fn tell(self, answer: Result<Option<String>, Denied>) {
        let _ = self.reply.send(answer);
    }
}

impl Reconciler {
    pub(super) fn publish(&mut self, mut publication: Publication, wishes: &Wishes, reply: Reply) {
        let id = publication.id();
        match self.admit(&mut publication, wishes) {
            Err(denied) => drop(reply.send(Err(denied))),
            Ok(is_new) => {
                if is_new {
                    if let Err(error) = self.host.record(&publication) {
                        drop(reply.send(Err(Denied::Unavailable(chain(&error)))));
                        return;
                    }
                    Arc::make_mut(&mut self.desired).publications.insert(id, publication);
                    self.tell_publishing(id);
                    self.forget_setbacks(id);
                }
                let until = (self.clock)() + PUBLISH_DEADLINE;
                self.waiters.entry(id).or_default().push(Waiter { wants_it: true, until, reply });
            }
        }
    }

    /// What is wrong with a Share that is written, and is none: its Gateway is not there, say.
    fn why_refused(&self, share: &Name) -> Option<&Problem> {
        let of_it = |located: &&Located| matches!(&located.object, Object::Share(written) if written.name == *share);
        let written = self.files.objects.iter().find(of_it)?;
        self.problems.iter().find(|problem| problem.file == written.file && problem.line == written.line)
    }

    /// Whether a publication may be: true if it is new, false if it is there already.
    fn admit(&self, publication: &mut Publication, wishes: &Wishes) -> Result<bool, Denied> {
        if self.desired.shutdown.is_some() {
            return Err(Denied::Unavailable("the node is shutting down: no volume is published on it any more".into()));
        }
        let there = self.desired.publications.get(&publication.id());
        match there {
            Some(there) if !there.wanted => {
                let message = format!("{} is still being unpublished; ask again", there.target_path);
                return Err(Denied::Unavailable(message));
            }
            // Whatever became of its objects since: a change is for new pods.
            Some(there) if is_call_for(publication, there) => return Ok(false),
            _ => {}
        }
        let (name, shares) = (&publication.share, &self.desired.objects.shares);
        let share = shares.get(name).ok_or_else(|| match self.why_refused(name) {
            Some(problem) => Denied::NotFound(format!("Share {name} is refused: {problem}")),
            None => {
                let known: Vec<&str> = shares.keys().map(Name::as_str).collect();
                Denied::NotFound(format!("there is no Share {name} on this node; there are: [{}]", known.join(", ")))
            }
        })?;
        if let Some(there) = there {
            return Err(Denied::Conflict(format!(
                "{} is already published with other parameters (Share {}); unpublish it first",
                there.target_path, there.share
            )));
        }
        wishes.suit(share).map_err(Denied::Invalid)?;
        // What is to be written in it is refused instead.
        publication.read_only |= share.access == Access::ReadOnly && publication.errand.is_none();
        self.desired.may_begin(publication)?;
        self.desired.is_taken(publication, &self.leases)?;
        Ok(true)
    }

    /// Takes back what was admitted, is not there yet, and by now would not be admitted any more.
    pub(super) fn reconsider(&mut self, observed: &Observed) {
        let coming = self
            .desired
            .publications
            .iter()
            .filter(|(id, publication)| publication.wanted && self.standing(**id, observed) == Standing::Coming);
        let judge = |publication: &Publication| {
            self.desired.may_begin(publication)?;
            self.desired.is_taken(publication, &self.leases)
        };
        let refused: Vec<(PublicationId, Refusal)> =
            coming.filter_map(|(id, publication)| Some((*id, judge(publication).err()?))).collect();
        if refused.is_empty() {
            return;
        }
        // A pod that runs, or is on its way out, has had its volume: it was hidden from kubelet since.
        let uid = |id: &PublicationId| self.desired.publications.get(id).map(|publication| publication.pod.uid.clone());
        let running = self.host.with_processes(&refused.iter().filter_map(|(id, _)| uid(id)).collect());
        let refused: Vec<_> = refused
            .into_iter()
            .filter(|(id, _)| uid(id).is_none_or(|uid| !running.contains(&uid) && !observed.is_ending(&uid)))
            .collect();
        for (id, refusal) in refused {
            if let Some(publication) = self.desired.publications.get(&id).cloned() {
                self.tell(&Happening::Withdrawn { publication, reason: refusal.to_string() });
            }
            let denied = if self.withdraw(id) == Some(Kept::No) {
                Denied::Unavailable(refusal.to_string())
            } else {
                refusal.into()
            };
            self.deny(id, &denied, false);
        }
    }

    pub(super) fn unpublish(&mut self, target_path: &str, reply: Reply) {
        let id = PublicationId::of(target_path);
        self.take_on_record(id);
        if self.withdraw(id).is_none() {
            drop(reply.send(Ok(None)));
            return;
        }
        let until = (self.clock)() + UNPUBLISH_DEADLINE;
        self.waiters.entry(id).or_default().push(Waiter { wants_it: false, until, reply });
    }

    /// A mount of ours that no record names goes the way of all others, once it is given back.
    fn take_on_record(&mut self, id: PublicationId) {
        if self.desired.publications.contains_key(&id) {
            return;
        }
        let stray = self.observe(false).ok().and_then(|mut observed| observed.strays.remove(&id));
        if let Some(stray) = stray {
            Arc::make_mut(&mut self.desired).publications.insert(id, stray);
        }
    }

    /// Marks a publication as no longer wanted; None if there is none.
    pub(super) fn withdraw(&mut self, id: PublicationId) -> Option<Kept> {
        let publication = Arc::make_mut(&mut self.desired).publications.get_mut(&id)?;
        let mut kept = Kept::Yes;
        if publication.wanted {
            publication.wanted = false;
            let publication = publication.clone();
            if let Err(error) = self.host.record(&publication) {
                warn!(%id, "{}", chain(&error));
                kept = Kept::No;
            }
            if publication.errand.is_none() {
                self.tell(&Happening::Unpublishing(publication));
            }
            self.forget_setbacks(id);
        }
        Some(kept)
    }

    /// It is done, and nothing of it is to stay but what it did.
    pub(super) fn note_errand(&mut self, id: PublicationId, words: Option<String>) {
        self.asked.remove(&id);
        if let Some(publication) = self.desired.publications.get(&id).cloned() {
            let words = words.clone().unwrap_or_default();
            self.tell(&Happening::ErrandDone { publication, words });
        }
        self.tell_done_to_callers(id, true, words);
        // One that could not be put on record is done once more by the next agent, which changes nothing.
        let _ = self.withdraw(id);
    }

    /// Those that are wanted.
    pub(super) fn errands(&self) -> Vec<Errand> {
        let wanted = self.desired.publications.values().filter(|it| it.wanted);
        wanted.filter_map(Publication::as_errand).collect()
    }

    pub(super) fn forget_setbacks(&mut self, id: PublicationId) {
        self.setbacks.retain(|step| !matches!(step, Step::Publish(of, _) | Step::Unpublish(of) if *of == id));
    }

    /// A failure that concerns a caller who waits is told at once. What can't come until somebody changes something is
    /// given up: kubelet takes such an answer for the last word, and would not give the volume back.
    pub(super) fn tell_publishers(&mut self, step: &Step, message: &str, definite: bool) {
        let concerned: Vec<PublicationId> = match step {
            Step::Publish(id, _) => vec![*id],
            Step::Mount(superblock, _) => {
                let mine = |publication: &Publication| {
                    publication.share == superblock.share && publication.user() == superblock.user
                };
                self.desired
                    .publications
                    .iter()
                    .filter(|(_, publication)| mine(publication))
                    .map(|(id, _)| *id)
                    .collect()
            }
            _ => return,
        };
        let Ok(observed) = self.observe(false) else { return };
        for id in concerned {
            // What is there stays there, whoever asks for it again while something else fails.
            if self.standing(id, &observed) == Standing::Coming {
                // What a pod has had is never given up.
                let definite = definite && !self.desired.returning.contains(&id);
                let denied = if definite { Denied::Failed } else { Denied::Unavailable };
                self.deny(id, &denied(message.to_owned()), definite);
            }
        }
    }

    /// Tells those who wait for a publication that it does not come, and may give it up.
    fn deny(&mut self, id: PublicationId, denied: &Denied, give_up: bool) {
        let waiters = self.waiters.remove(&id).unwrap_or_default();
        let (told, rest): (Vec<Waiter>, Vec<Waiter>) = waiters.into_iter().partition(|waiter| waiter.wants_it);
        let mut denied = denied.clone();
        if give_up && !told.is_empty() && self.withdraw(id) == Some(Kept::No) {
            denied = Denied::Unavailable(denied.to_string());
        }
        told.into_iter().for_each(|waiter| waiter.tell(Err(denied.clone())));
        self.waiters.entry(id).or_default().extend(rest);
    }

    /// The step that they waited for has succeeded: what is seen of it in the next round is nothing new to them.
    pub(super) fn tell_done_to_callers(&mut self, id: PublicationId, want_it: bool, words: Option<String>) {
        let waiters = self.waiters.remove(&id).unwrap_or_default();
        let (done, rest): (Vec<Waiter>, Vec<Waiter>) =
            waiters.into_iter().partition(|waiter| waiter.wants_it == want_it);
        done.into_iter().for_each(|waiter| waiter.tell(Ok(words.clone())));
        if !rest.is_empty() {
            self.waiters.insert(id, rest);
        }
    }

    /// Replies to callers whose publication is there, or gone, and to those who have waited long enough.
    pub(super) fn answer(&mut self, observed: &Observed, now: Moment) {
        for (id, waiters) in std::mem::take(&mut self.waiters) {
            for waiter in waiters {
                match (waiter.wants_it, self.standing(id, observed)) {
                    (true, Standing::There) | (false, Standing::Gone) => waiter.tell(Ok(None)),
                    (true, Standing::Leaving | Standing::Gone) => {
                        waiter.tell(Err(Denied::Unavailable("the volume was given back meanwhile; ask again".into())));
                    }
                    _ if now < waiter.until => self.waiters.entry(id).or_default().push(waiter),
                    // It goes on coming: the caller asks again, and finds what was done meanwhile.
                    (true, Standing::Coming) => {
                        waiter.tell(Err(Denied::Unavailable(self.why_late(id, observed, now))));
                    }
                    (false, _) => {
                        let failure = self.setbacks.failure(|step| *step == Step::Unpublish(id));
                        let failure = failure.map(|said| format!(": {said}")).unwrap_or_default();
                        let message = format!("the volume is still being detached; ask again{failure}");
                        waiter.tell(Err(Denied::Unavailable(message)));
                    }
                }
            }
        }
    }

    fn standing(&self, id: PublicationId, observed: &Observed) -> Standing {
        let there = observed.is_published(id);
        match self.desired.publications.get(&id) {
            None => Standing::Gone,
            Some(publication) if !publication.wanted => Standing::Leaving,
            Some(_) if there => Standing::There,
            Some(_) => Standing::Coming,
        }
    }

    fn why_late(&self, id: PublicationId, observed: &Observed, now: Moment) -> String {
        let publication = self.desired.publications.get(&id);
        let share = publication.and_then(|publication| self.desired.objects.shares.get(&publication.share));
        let Some(share) = share else { return "its Share is gone".into() };
        let waiting = plan::waiting(&self.desired, observed, now, share).map(|waiting| waiting.explain(share));
        let unclaimed = publication.filter(|it| it.sole.is_some() && !observed.leases.held.contains(&it.volume_id));
        let unclaimed = unclaimed.map(|publication| {
            format!(
                "volume {} is one node's at a time, and its Lease could not be taken yet: does the API server answer, and may the agent create Leases in its own namespace?",
                publication.volume_id
            )
        });
        let reason =
            waiting.or(unclaimed).unwrap_or_else(|| format!("not mounted after {PUBLISH_DEADLINE:?}; still trying"));
        let concerns = |step: &Step| match step.lane() {
            Lane::Server(target) | Lane::Way(target) => target.gateway == share.gateway,
            Lane::Publication(of) => of == id,
            Lane::Fence(_) | Lane::Ending(_) | Lane::MountDefaults => false,
        };
        match self.setbacks.failure(concerns) {
            Some(said) => format!("{reason} (last failure: {said})"),
            None => reason,
        }
    }
}

/// Whether a request is the one that led to what is on record. Its Share may have made that read-only; what kind of a volume it
/// is an earlier agent has not written down.
fn is_call_for(request: &Publication, there: &Publication) -> bool {
    let read_only = request.read_only || there.read_only;
    Publication { read_only, inline: there.inline, ..request.clone() } == *there
}

/// Whether it is on record that a publication was taken back. If not, a new agent would take it for wanted: nobody may be
/// given the last word then, or kubelet would ask for its end no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    No,
}

/// How a publication stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Coming,
    There,
    Leaving,
    Gone,
}

#[cfg(test)]
mod tests {
    use moorline_shared::publication::Pod;

    use super::*;

    #[test]
    fn the_same_call_is_known_again_and_another_is_not() {
        let publication = |read_only| Publication {
            volume_id: "v".into(),
            target_path: "/var/lib/kubelet/pods/u/mount".into(),
            share: "data".parse().unwrap(),
            sub_dir: None,
            read_only,
            pod: Pod { namespace: "a".into(), name: "p".into(), uid: "u".into() },
            sole: None,
            inline: false,
            errand: None,
            node: false,
            wanted: true,
        };
        let (reads, writes) = (publication(true), publication(false));
        assert!(is_call_for(&reads, &reads) && is_call_for(&writes, &writes));
        assert!(is_call_for(&writes, &reads), "its Share was ReadOnly when it was asked for");
        assert!(!is_call_for(&reads, &writes), "who may only read gets nothing to write to");
        assert!(
            is_call_for(&Publication { inline: true, ..reads.clone() }, &reads),
            "it was put on record by an earlier agent"
        );
        let part = Publication { sub_dir: Some("a".parse().unwrap()), ..writes.clone() };
        assert!(!is_call_for(&part, &writes), "another directory");
        let other = Publication { share: "other".parse().unwrap(), ..writes.clone() };
        assert!(!is_call_for(&other, &writes), "another Share");
    }
}
