//! How things are on this node, as the status of an object that bears its name: `kubectl get moorlinenodes`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use moorline_shared::errand::Outcome;
use moorline_shared::happening::Kind;
use moorline_shared::status::NodeStatus;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::errands;
use crate::door::Door;
use crate::reconcile::chain;
use crate::window::Window;

/// From one write to the next, at the least: what happens meanwhile is one.
const BETWEEN: Duration = Duration::from_secs(5);
/// What changes without anything to be told of it is seen then.
const PERIOD: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);

/// Until nothing happens any more.
pub(crate) async fn keep(
    client: Client,
    node: String,
    window: Arc<Window>,
    door: Door,
    mut outcomes: watch::Receiver<Vec<Outcome>>,
) {
    let api = Api::all_with(client.clone(), &errands::resource());
    let mut writer = Writer { api, nodes: Api::all(client), node, recoveries: None, written: None };
    let mut news = window.chronicle.news();
    let mut seen = 0;
    let mut said = None;
    loop {
        news.borrow_and_update();
        let records = window.chronicle.after(seen);
        seen = records.last().map_or(seen, |record| record.sequence);
        let moved = records.iter().filter(|record| record.kind == Kind::FailedOver);
        let moved: BTreeMap<String, String> =
            moved.filter_map(|it| Some((it.share.as_ref()?.to_string(), it.at.clone()))).collect();
        let mut pause = PERIOD;
        // It was there, and somebody deleted it: it is made again soon.
        let known = writer.recoveries.is_some();
        if let Ok(report) = door.report().await {
            let status = NodeStatus { outcomes: outcomes.borrow_and_update().clone(), ..NodeStatus::of(&report) };
            match timeout(PATIENCE, writer.write(status, moved)).await {
                Ok(Ok(())) => {}
                Err(_) => pause = BETWEEN,
                Ok(Err(kube::Error::Api(status)))
                    if matches!(status.code, 401 | 403) || status.code == 404 && !known =>
                {
                    if said.as_ref() != Some(&status.message) {
                        warn!("{}: the cluster is not told how this node is", status.message);
                        said = Some(status.message);
                    }
                }
                Ok(Err(error)) => {
                    debug!("write how this node is: {}", chain(&error));
                    pause = BETWEEN;
                }
            }
        }
        // Somebody waits for what became of a request. Both may be waited for again.
        tokio::select! {
            changed = outcomes.changed() => if changed.is_err() { return } else { continue },
            () = sleep(BETWEEN) => {}
        }
        // All of them may be waited for again.
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            changed = outcomes.changed() => if changed.is_err() { return },
            // Written again, which changes nothing unless somebody deleted it.
            () = sleep(pause) => writer.written = None,
        }
    }
}

struct Writer {
    api: Api<DynamicObject>,
    nodes: Api<Node>,
    node: String,
    /// When each share was last given another server; none until it is known what an earlier agent wrote.
    recoveries: Option<BTreeMap<String, String>>,
    written: Option<NodeStatus>,
}

impl Writer {
    async fn write(&mut self, mut status: NodeStatus, moved: BTreeMap<String, String>) -> Result<(), kube::Error> {
        if self.recoveries.is_none() {
            self.recoveries = Some(self.known_or_made().await?);
        }
        let recoveries = self.recoveries.get_or_insert_default();
        recoveries.extend(moved);
        for share in &mut status.shares {
            share.last_recovery = recoveries.get(&share.name).cloned();
        }
        if self.written.as_ref() == Some(&status) {
            return Ok(());
        }
        // As a whole: what is not said any more is gone.
        let patch = json!([{"op": "add", "path": "/status", "value": status}]);
        let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
        match self.api.patch_status(&self.node, &PatchParams::default(), &Patch::<()>::Json(patch)).await {
            Ok(_) => self.written = Some(status),
            Err(error) => {
                // It may be gone: it is made again.
                self.recoveries = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// What an earlier agent wrote of recoveries. The object goes with its Node.
    async fn known_or_made(&self) -> Result<BTreeMap<String, String>, kube::Error> {
        if let Some(there) = self.api.get_opt(&self.node).await? {
            let status = there.data.get("status").cloned().unwrap_or_default();
            let status: NodeStatus = serde_json::from_value(status).unwrap_or_default();
            return Ok(status.shares.into_iter().filter_map(|it| Some((it.name, it.last_recovery?))).collect());
        }
        let node = self.nodes.get(&self.node).await?;
        let mut object = DynamicObject::new(&self.node, &errands::resource());
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Node::api_version(&()).into_owned(),
            kind: Node::kind(&()).into_owned(),
            name: self.node.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        }]);
        self.api.create(&PostParams::default(), &object).await?;
        Ok(BTreeMap::new())
    }
}
