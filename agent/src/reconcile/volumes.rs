//! How volumes are, for who asks: from what was seen last. No server is asked for it, so nobody waits for one.

use std::time::Duration;

use moorline_shared::id::PublicationId;
use moorline_shared::observed::Moment;
use moorline_shared::usage::Usage;
use tokio::sync::oneshot;

use super::{Denied, Reconciler};

/// How long the first look at a share that was just mounted is waited for.
const FIRST_LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeState {
    /// How full its share is, and how long ago that was seen.
    pub(crate) usage: Option<(Usage, Duration)>,
    /// What is wrong, in words for people.
    pub(crate) trouble: Option<String>,
}

/// Who asks for what is about to be seen.
pub(super) struct Curious {
    target_path: String,
    until: Moment,
    reply: oneshot::Sender<Result<VolumeState, Denied>>,
}

impl Reconciler {
    pub(super) fn ask_of_volume(&mut self, target_path: String, reply: oneshot::Sender<Result<VolumeState, Denied>>) {
        let until = (self.clock)() + FIRST_LOOK;
        self.curious.push(Curious { target_path, until, reply });
        self.answer_the_curious();
    }

    pub(super) fn answer_the_curious(&mut self) {
        let now = (self.clock)();
        for asked in std::mem::take(&mut self.curious) {
            match self.volume(&asked.target_path, now) {
                Ok(VolumeState { usage: None, trouble: None }) if now < asked.until => self.curious.push(asked),
                // Nobody minds a reply that can't be sent: who has gone away asks again.
                state => drop(asked.reply.send(state)),
            }
        }
    }

    fn volume(&self, target_path: &str, now: Moment) -> Result<VolumeState, Denied> {
        let id = PublicationId::of(target_path);
        let publication = self.desired.publications.get(&id).filter(|publication| publication.wanted);
        let publication = publication
            .ok_or_else(|| Denied::NotFound(format!("no volume of this driver is published at {target_path}")))?;
        let share = self.desired.objects.shares.get(&publication.share);
        let waiting = share.zip(self.said_waiting.get(&publication.share));
        let coming = || self.asked.contains_key(&id).then(|| "it is not mounted yet".to_owned());
        Ok(VolumeState {
            usage: self.usage.get(&publication.share).map(|(at, usage)| (*usage, now.saturating_sub(*at))),
            trouble: waiting.map(|(share, waiting)| waiting.explain(share)).or_else(coming),
        })
    }
}
