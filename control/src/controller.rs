//! The controller: it tells in the status of Gateways and Shares how they are on all nodes together, has volumes made for
//! claims, and gives free what nodes hold that are no more. Of several that run one acts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::select_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::reflector::Store;
use kube::{Api, Client, ResourceExt};
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use moorline_shared::cluster::{LEASE, OF_A_VOLUME};
use moorline_shared::status::NodeStatus;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::agents;
use crate::csi::{self, CsiError};
use crate::leases;
use crate::provision::desks::Moment;
use crate::provisioner::Provisioner;
use crate::sight::{Changes, Sight, connect, follow, is_ready, resource};
use crate::status::{self, Change, Reports};

const LEADER: &str = "moorline-controller";
/// What happens meanwhile is one change.
const PAUSE: Duration = Duration::from_secs(1);
/// What failed is tried again then.
const PERIOD: Duration = Duration::from_secs(30);
/// What is left to be done by then is for the next round, which sees things as they are.
const ROUND: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error("find the API server: does this run in a cluster, with a ServiceAccount's token?")]
    Client(#[source] Box<kube::Error>),
    #[error("take part in the choice of who acts: may it create and patch Leases in its own namespace?")]
    Leader(#[source] Box<LeaseManagerError>),
    #[error("the watch of the cluster has ended: a bug")]
    Ended,
    #[error(transparent)]
    Csi(#[from] CsiError),
}

/// Runs until it is asked to end, by `name`, which tells it from its likes; `csi` is where the CSI Controller service is to be
/// served, by each of them.
pub async fn run(name: String, csi: Option<PathBuf>) -> Result<(), ControllerError> {
    let client = connect().await.map_err(|error| ControllerError::Client(Box::new(error)))?;
    let elected = |error| ControllerError::Leader(Box::new(error));
    let namespace = client.default_namespace().to_owned();
    let manager = LeaseManagerBuilder::new(client.clone(), LEADER)
        .with_namespace(namespace)
        .with_identity(name.clone())
        .build()
        .await
        .map_err(elected)?;
    let (leads, _election) = manager.watch().await;
    let clock = clock();
    let acting = Cluster::watch(client.clone(), &name).act(leads, &clock);
    match csi {
        // Whichever ends first ends the other: neither is to end.
        Some(socket) => tokio::select! {
            ended = acting => ended,
            ended = csi::serve(client, &socket, clock.clone()) => Ok(ended?),
        },
        None => acting.await,
    }
}

#[expect(clippy::disallowed_methods, reason = "wiring: the one place where the controller's clock is read")]
fn clock() -> impl Fn() -> Moment + Clone + Send + Sync + 'static {
    let origin = Instant::now();
    move || Instant::now().duration_since(origin)
}

/// What the API server says, as it changes.
struct Cluster {
    client: Client,
    leases: Store<Lease>,
    agents: Store<Pod>,
    sight: Sight,
    provisioner: Provisioner,
    changes: Changes,
}

impl Cluster {
    fn watch(client: Client, name: &str) -> Self {
        let mut streams = Vec::new();
        let of_volumes = format!("{LEASE}={OF_A_VOLUME}");
        let leases = follow(Api::default_namespaced(client.clone()), (), &of_volumes, &mut streams);
        let agents = follow(Api::default_namespaced(client.clone()), (), agents::LABELLED, &mut streams);
        let sight = Sight::follow(&client, &mut streams);
        let provisioner = Provisioner::new(client.clone(), name, sight.clone());
        Self { client, leases, agents, sight, provisioner, changes: select_all(streams).boxed() }
    }

    async fn act(
        mut self,
        mut leads: watch::Receiver<bool>,
        clock: &impl Fn() -> Moment,
    ) -> Result<(), ControllerError> {
        let mut led = false;
        loop {
            let leading = *leads.borrow_and_update();
            if leading != led {
                info!("{}", if leading { "this one acts" } else { "another one acts" });
                led = leading;
            }
            if leading {
                let leads = || *leads.borrow();
                let round = async {
                    self.settle(leads).await;
                    self.provisioner.settle(leads, clock()).await;
                };
                if timeout(ROUND, round).await.is_err() {
                    warn!("not done with all there was to do within {ROUND:?}: does the API server answer? Trying on");
                }
            }
            // All of them may be waited for again.
            tokio::select! {
                change = self.changes.next() => change.ok_or(ControllerError::Ended)?,
                changed = leads.changed() => changed.map_err(|_| ControllerError::Ended)?,
                () = sleep(PERIOD) => {}
            }
            sleep(PAUSE).await;
            while futures_util::FutureExt::now_or_never(self.changes.next()).is_some() {}
        }
    }

    async fn settle(&self, leads: impl Fn() -> bool + Copy) {
        if let Some(reports) = self.reports() {
            let shares = self.sight.shares.state();
            let changes = shares.iter().filter_map(|share| status::of_share(share, &reports));
            self.change("Share", "shares", changes.collect(), leads).await;
            let gateways = self.sight.gateways.state();
            let changes = gateways.iter().filter_map(|gateway| status::of_gateway(gateway, &reports));
            self.change("Gateway", "gateways", changes.collect(), leads).await;
        }
        if leads() {
            self.free_leases().await;
        }
    }

    /// None until all of it was listed: what is missing would be taken for unused.
    fn reports(&self) -> Option<Reports> {
        let Sight { shares, gateways, reports, .. } = &self.sight;
        if !(is_ready(shares) && is_ready(gateways) && is_ready(reports) && is_ready(&self.agents)) {
            return None;
        }
        let nodes: BTreeMap<String, NodeStatus> =
            reports.state().iter().filter_map(|report| Some((report.name_any(), status_of(report)?))).collect();
        let agents = agents::nodes(self.agents.state().iter().map(AsRef::as_ref));
        let incomplete = agents.iter().any(|node| !nodes.contains_key(node));
        Some(Reports { nodes: nodes.into_values().collect(), incomplete })
    }

    async fn change(&self, kind: &str, plural: &str, changes: Vec<Change>, leads: impl Fn() -> bool) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource(kind, plural));
        let parameters = PatchParams::default();
        for Change { name, status, finalizers } in changes {
            if !leads() {
                return;
            }
            // Before its status has another version.
            if let Some(finalizers) = finalizers {
                told(kind, &name, api.patch(&name, &parameters, &Patch::Merge(finalizers)).await);
            }
            if let Some(status) = status {
                told(kind, &name, write(&api, &name, &status).await);
            }
        }
    }

    async fn free_leases(&self) {
        // Before the first list nobody is known.
        if !is_ready(&self.sight.nodes) {
            return;
        }
        let leases: Vec<Lease> = self.leases.state().iter().map(|lease| (**lease).clone()).collect();
        let nodes: BTreeMap<String, Node> =
            self.sight.nodes.state().iter().map(|node| (node.name_any(), (**node).clone())).collect();
        let (api, there): (Api<Lease>, Api<Node>) =
            (Api::default_namespaced(self.client.clone()), Api::all(self.client.clone()));
        for (lease, holder) in leases::ownerless(&leases, &nodes) {
            // Asked again: a node that was made lately may not have been heard of yet.
            match there.get_opt(holder).await {
                Ok(node) if node.as_ref().is_none_or(leases::is_out_of_service) => {}
                Ok(_) => continue,
                Err(error) => {
                    debug!("look for the node {holder}: {error}");
                    continue;
                }
            }
            let preconditions = Some(Preconditions { uid: lease.uid(), resource_version: lease.resource_version() });
            let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
            match api.delete(&lease.name_any(), &parameters).await {
                Ok(_) => info!("{} was of node {holder}, which is no more: it is free", lease.name_any()),
                Err(error) => warn!("delete the Lease {} of node {holder}: {error}", lease.name_any()),
            }
        }
    }
}

pub(crate) fn status_of(report: &DynamicObject) -> Option<NodeStatus> {
    serde_json::from_value(report.data.get("status")?.clone()).ok()
}

/// As a whole: what is not said any more is gone.
async fn write(api: &Api<DynamicObject>, name: &str, status: &Value) -> Result<(), kube::Error> {
    let patch = json!([{"op": "add", "path": "/status", "value": status}]);
    let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    api.patch_status(name, &PatchParams::default(), &Patch::<()>::Json(patch)).await.map(drop)
}

fn told<T>(kind: &str, name: &str, outcome: Result<T, kube::Error>) {
    match outcome {
        // It is gone, or somebody changed it meanwhile: that is seen in the next round.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            debug!("{kind} {name}: {}", status.message)
        }
        Err(error) => warn!("write the status of {kind} {name}: {error}"),
        Ok(_) => {}
    }
}
