//! Where requests come in, kubelet's and those of the agent's own socket alike: checked, then put to the loop.

use moorline_shared::errand::{Errand, Task};
use moorline_shared::name::Name;
use moorline_shared::publication::{Pod, Publication, check_target_path};
use moorline_shared::report::Report;
use moorline_shared::wishes::Wishes;
use tokio::sync::{mpsc, oneshot};

use crate::reconcile::{Denied, Event, Reply, VolumeState};

#[derive(Clone)]
pub(crate) struct Door {
    /// The directory below which kubelet wants volumes.
    pods: String,
    events: mpsc::Sender<Event>,
}

impl Door {
    pub(crate) fn new(pods: String, events: mpsc::Sender<Event>) -> Self {
        Self { pods, events }
    }

    /// Returns when the volume is there, or can't be there yet, or may not be. The same call may be made again at any
    /// time, and finds what was done meanwhile.
    pub(crate) async fn publish(&self, publication: Publication, wishes: Wishes) -> Result<(), Denied> {
        self.check(&publication.target_path)?;
        let Pod { namespace, name, uid } = &publication.pod;
        if [namespace, name, uid].iter().any(|part| part.is_empty()) {
            return Err(Denied::Invalid("the pod's namespace, name and uid must all be given".into()));
        }
        self.ask(|reply| Event::Publish(publication, wishes, reply)).await.map(drop)
    }

    /// Returns when the volume is gone, or is not gone yet; one that never was is gone.
    pub(crate) async fn unpublish(&self, target_path: String) -> Result<(), Denied> {
        self.check(&target_path)?;
        self.ask(|reply| Event::Unpublish { target_path, reply }).await.map(drop)
    }

    /// Returns when it is done, and says what was; or that it can't be done yet, or may not be. The same may be asked for again
    /// at any time.
    pub(crate) async fn run_errand(&self, errand: Errand) -> Result<String, Denied> {
        if errand.task == (Task::Keep {}) {
            self.forget_errand(&errand.id).await?;
            return Ok(format!("{} stays as it is", errand.sub_dir));
        }
        let publication = Publication::of_errand(errand);
        self.ask(|reply| Event::Publish(publication, Wishes::default(), reply)).await.map(Option::unwrap_or_default)
    }

    /// Those that are on record and not done, of an earlier agent's among them.
    pub(crate) async fn errands(&self) -> Vec<Errand> {
        let (reply, errands) = oneshot::channel();
        match self.send(Event::Errands(reply)).await {
            Ok(()) => errands.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// It is asked for no more. What is under way may be done all the same; returns when nothing is, or not yet.
    pub(crate) async fn forget_errand(&self, id: &Name) -> Result<(), Denied> {
        let target_path = Publication::errand_path(id);
        self.ask(|reply| Event::Unpublish { target_path, reply }).await.map(drop)
    }

    /// How a volume is: from what was seen last, and never from a server itself.
    pub(crate) async fn volume(&self, target_path: String) -> Result<VolumeState, Denied> {
        let (reply, state) = oneshot::channel();
        self.send(Event::Volume { target_path, reply }).await?;
        state.await.map_err(|_| stopping())?
    }

    pub(crate) async fn report(&self) -> Result<Report, Denied> {
        let (reply, report) = oneshot::channel();
        self.events.send(Event::Report(reply)).await.map_err(|_| stopping())?;
        let blind = || Denied::Unavailable("the agent could not look at its host; its log says why".into());
        report.await.map_err(|_| blind())
    }

    pub(crate) async fn send(&self, event: Event) -> Result<(), Denied> {
        self.events.send(event).await.map_err(|_| stopping())
    }

    fn check(&self, target_path: &str) -> Result<(), Denied> {
        check_target_path(target_path, &self.pods).map_err(|error| Denied::Invalid(error.to_string()))
    }

    async fn ask(&self, event: impl FnOnce(Reply) -> Event) -> Result<Option<String>, Denied> {
        let (reply, answer) = oneshot::channel();
        self.send(event(reply)).await?;
        answer.await.map_err(|_| stopping())?
    }
}

fn stopping() -> Denied {
    Denied::Unavailable("the agent is stopping; ask again".into())
}
