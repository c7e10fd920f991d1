//! The calls, each of which may come again at any time and finds what was done meanwhile.

use std::sync::Mutex;
use std::time::Duration;

use kube::Client;
use moorline_csi::{capability, v1};
use moorline_shared::cluster::{SHARE, SUB_DIR};
use moorline_shared::errand::{Errand, Task};
use moorline_shared::name::Name;
use moorline_shared::wishes::Wishes;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::{Request, Response, Status};
use tracing::{debug, info};
use v1::controller_service_capability::{Rpc, Type, rpc};

use super::record::{Record, Records};
use super::wish::{Wish, capacity};
use crate::provision::class::OnDelete;
use crate::provision::desks::{Desks, Memory, Moment, Progress};
use crate::provision::{OF_CSI, World, explain};
use crate::provisioner;
use crate::sight::Sight;

const CAPABILITIES: [rpc::Type; 3] =
    [rpc::Type::CreateDeleteVolume, rpc::Type::ExpandVolume, rpc::Type::SingleNodeMultiWriter];
/// How long a call waits for an agent; then it is to be made again.
const PATIENCE: Duration = Duration::from_secs(30);
/// A node that does not answer changes nothing.
const PERIOD: Duration = Duration::from_secs(5);

type Answer<T> = Result<Response<T>, Status>;

fn not_offered<T>(why: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("{why}: ControllerGetCapabilities says what this driver does")))
}

pub(super) struct Controller<C> {
    client: Client,
    sight: Sight,
    ticks: watch::Receiver<()>,
    clock: C,
    records: Records,
    memory: Mutex<Memory>,
}

impl<C: Fn() -> Moment> Controller<C> {
    pub(super) fn new(client: Client, sight: Sight, ticks: watch::Receiver<()>, clock: C) -> Self {
        let records = Records::new(client.clone());
        Self { client, sight, ticks, clock, records, memory: Mutex::default() }
    }

    fn world(&self) -> Result<World, Status> {
        let blind = || {
            Status::unavailable(
                "the API server has not told yet what there is: call again; if it stays so, may this ServiceAccount list what manifests/controller.yaml says?",
            )
        };
        self.sight.world().ok_or_else(blind)
    }

    /// Until an agent has done it, and nobody is asked for it any more. What it said.
    async fn run(&self, errand: &Errand) -> Result<String, Status> {
        let mut ticks = self.ticks.clone();
        let mut said = "no agent has been asked yet".to_owned();
        let done = timeout(PATIENCE, async {
            loop {
                ticks.mark_unchanged();
                match self.pursue(errand).await? {
                    Progress::Done(words) => {
                        info!("{}: {words}", errand.id);
                        return Ok(words);
                    }
                    Progress::Failed { node, why } => {
                        self.forget(&errand.id).await?;
                        return Err(Status::failed_precondition(format!("{why} (the agent of node {node} says so)")));
                    }
                    progress => said = explain(&progress.late()).unwrap_or_default(),
                }
                // Both may be waited for again.
                tokio::select! {
                    changed = ticks.changed() => {
                        changed.map_err(|_| Status::unavailable("the watch of the cluster has ended: a bug"))?;
                    }
                    () = sleep(PERIOD) => {}
                }
            }
        });
        let Ok(outcome) = done.await else { return Err(Status::unavailable(format!("{said}; call again"))) };
        let words = outcome?;
        self.forget(&errand.id).await?;
        Ok(words)
    }

    async fn pursue(&self, errand: &Errand) -> Result<Progress, Status> {
        let world = self.world()?;
        let share = world.shares.get(&errand.share);
        let share = share.ok_or_else(|| {
            Status::failed_precondition(format!("there is no Share {} any more: make it again", errand.share))
        })?;
        let (progress, changes) = {
            let mut memory = self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut desks = Desks::new(&world.desks, &mut memory, (self.clock)());
            (desks.pursue(errand, share, None), desks.changes())
        };
        for (node, desk) in changes {
            self.ask(&node, &desk.version, &desk.requests).await?;
        }
        Ok(progress)
    }

    async fn forget(&self, id: &Name) -> Result<(), Status> {
        for (node, desk) in self.world()?.desks {
            if desk.requests.iter().any(|request| request.id == *id) {
                self.take_back(&node, id).await?;
            }
        }
        Ok(())
    }

    async fn take_back(&self, node: &str, id: &Name) -> Result<(), Status> {
        provisioner::take_back(&self.client, node, id).await.map_err(|error| api(&error))
    }

    /// What was asked for by a call that outlived its volume.
    async fn clear_up(&self, world: &World) -> Result<(), Status> {
        let asked = world.desks.iter().flat_map(|(node, desk)| desk.requests.iter().map(move |it| (node, &it.id)));
        let ours: Vec<(&String, &Name)> = asked.filter(|(_, id)| id.as_str().starts_with(OF_CSI)).collect();
        if ours.is_empty() {
            return Ok(());
        }
        // Read later than the requests were: each is made after the record that it is for.
        let records = self.records.all().await.map_err(|error| api(&error))?;
        for (node, id) in ours {
            if records.iter().all(|record| record.request.as_ref() != Some(id)) {
                self.take_back(node, id).await?;
            }
        }
        Ok(())
    }

    async fn ask(&self, node: &str, version: &str, requests: &[Errand]) -> Result<(), Status> {
        match provisioner::ask(&self.client, node, version, requests).await {
            // It has changed meanwhile: what it is now is about to be heard.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                debug!("ask the agent of node {node}: {}", status.message);
                Ok(())
            }
            other => other.map_err(|error| api(&error)),
        }
    }

    /// What there is by the name already, if it is what is asked for.
    async fn compatible(&self, wanted: &Record, limit: u64) -> Result<Option<Record>, Status> {
        let Some(there) = self.records.find(wanted.id.as_str()).await.map_err(|error| api(&error))? else {
            return Ok(None);
        };
        let Record { bytes, found, alone, .. } = there;
        let same = Record { bytes, found, alone, request: there.request.clone(), ..wanted.clone() } == there;
        let fits = there.bytes >= wanted.bytes && (limit == 0 || there.bytes <= limit);
        if same && fits {
            return Ok(Some(there));
        }
        Err(Status::already_exists(format!(
            "there is a volume {:?} already, of {} bytes, in {} of Share {}: use another name, or the same parameters",
            there.name, there.bytes, there.sub_dir, there.share
        )))
    }

    /// What is known of a volume from now on. Of two that want one directory, asked for at one moment and of two of us, each is on
    /// record before the others are looked at: then both may be refused, and asked for again, but not both made.
    pub(super) async fn recorded(&self, wanted: Record, world: &World, limit: u64) -> Result<Record, Status> {
        let (record, is_new) = match self.compatible(&wanted, limit).await? {
            Some(there) => (there, false),
            None => {
                let is_new = self.records.make(&wanted).await.map_err(|error| api(&error))?;
                // Somebody may have been faster, with something else.
                let there = self.compatible(&wanted, limit).await?;
                (there.ok_or_else(|| Status::aborted("it was deleted meanwhile: call again"))?, is_new)
            }
        };
        if record.alone {
            return Ok(record);
        }
        if let Err(refused) = self.alone(&record, world, true).await {
            if is_new {
                self.records.forget(record.id.as_str()).await.map_err(|error| api(&error))?;
            }
            return Err(refused);
        }
        self.records.note_alone(record.id.as_str()).await.map_err(|error| api(&error))?;
        Ok(record)
    }

    /// Whether nobody else has its directory; `both` ways, or only in it.
    async fn alone(&self, record: &Record, world: &World, both: bool) -> Result<(), Status> {
        let territory = |record: &Record| world.territory(record.share.as_str(), &record.sub_dir.to_string());
        let mine = territory(record);
        let volume = world.other_owner(&mine, |volume| {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            csi.is_some_and(|csi| csi.volume_handle == record.id.as_str())
        });
        let others = self.records.all().await.map_err(|error| api(&error))?;
        let record_of = others.iter().find(|other| {
            let theirs = territory(other);
            other.id != record.id && (mine.contains(&theirs) || both && theirs.contains(&mine))
        });
        match volume.or_else(|| record_of.map(|other| other.id.to_string())) {
            Some(other) => Err(Status::failed_precondition(format!(
                "{} of Share {} is volume {other}'s as well: let subDir hold ${{pv.metadata.name}}, or delete that one first",
                record.sub_dir, record.share
            ))),
            None => Ok(()),
        }
    }
}

fn errand(record: &Record, task: Task) -> Result<Errand, Status> {
    let id = record.request.clone().ok_or_else(|| Status::internal("its ConfigMap has no UID: a bug"))?;
    Ok(Errand { id, share: record.share.clone(), sub_dir: record.sub_dir.clone(), task })
}

fn api(error: &kube::Error) -> Status {
    match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
            Status::internal(format!("{}: manifests/csi.yaml has the rights that this service needs", status.message))
        }
        error => Status::unavailable(format!("ask the API server: {error}; call again")),
    }
}

fn supported(capabilities: &[v1::VolumeCapability]) -> Result<(), Status> {
    if capabilities.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities are missing"));
    }
    for wanted in capabilities {
        let mode = capability::access_mode(wanted)?;
        if !capability::is_supported(mode) {
            return Err(capability::unsupported(mode));
        }
    }
    Ok(())
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl<C: Fn() -> Moment + Send + Sync + 'static> v1::controller_server::Controller for Controller<C> {
    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::CreateVolumeResponse> {
        let request = request.into_inner();
        if request.name.is_empty() {
            return Err(Status::invalid_argument("name is missing"));
        }
        supported(&request.volume_capabilities)?;
        if request.volume_content_source.is_some() {
            return Err(Status::invalid_argument("a volume can't begin as a copy: leave volume_content_source out"));
        }
        let (bytes, limit) = capacity(request.capacity_range.as_ref())?;
        let Wish { class, record, namespace } = Wish::read(&request.name, request.parameters, bytes)?;
        let world = self.world()?;
        let share = world.writable(&record.share).map_err(Status::invalid_argument)?;
        if let Some(namespace) = namespace {
            world.allow(share, &namespace).map_err(Status::failed_precondition)?;
        }
        let options = request.volume_capabilities.iter().flat_map(capability::mount_flags);
        Wishes::read(options).and_then(|wishes| wishes.suit(share)).map_err(Status::invalid_argument)?;
        self.clear_up(&world).await?;
        let record = self.recorded(record, &world, limit).await?;
        let errand = errand(&record, Task::Make { uid: class.uid, gid: class.gid, mode: class.mode })?;
        if self.run(&errand).await? == errand.was_there() {
            self.records.note_found(record.id.as_str()).await.map_err(|error| api(&error))?;
        }
        let context = [(SHARE, record.share.to_string()), (SUB_DIR, record.sub_dir.to_string())];
        Ok(Response::new(v1::CreateVolumeResponse {
            volume: Some(v1::Volume {
                capacity_bytes: signed(record.bytes),
                volume_id: record.id.to_string(),
                volume_context: context.map(|(key, value)| (key.to_owned(), value)).into(),
                ..Default::default()
            }),
        }))
    }

    async fn delete_volume(&self, request: Request<v1::DeleteVolumeRequest>) -> Answer<v1::DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        let gone = || Ok(Response::new(v1::DeleteVolumeResponse {}));
        let Some(record) = self.find(&id).await? else { return gone() };
        let task = match record.on_delete {
            OnDelete::Retain => None,
            OnDelete::Archive => Some(Task::Archive {}),
            OnDelete::Delete => Some(Task::Delete { dry_run: record.dry_run }),
        };
        if let Some(task) = task {
            let world = self.world()?;
            self.alone(&record, &world, false).await?;
            let errand = errand(&record, task)?;
            if record.found {
                return Err(Status::failed_precondition(errand.is_not_ours()));
            }
            self.run(&errand).await?;
            if record.dry_run {
                return Err(Status::failed_precondition(
                    "its class says dryRun: nothing was deleted, and the log says what would have been",
                ));
            }
        } else if let Some(request) = &record.request {
            self.forget(request).await?;
        }
        self.records.forget(record.id.as_str()).await.map_err(|error| api(&error))?;
        gone()
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<v1::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<v1::ValidateVolumeCapabilitiesResponse> {
        let request = request.into_inner();
        if request.volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities are missing"));
        }
        self.known(&request.volume_id).await?;
        let (message, confirmed) = match supported(&request.volume_capabilities) {
            Ok(()) => (String::new(), true),
            Err(status) => (status.message().to_owned(), false),
        };
        let confirmed = confirmed.then(|| v1::validate_volume_capabilities_response::Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            ..Default::default()
        });
        Ok(Response::new(v1::ValidateVolumeCapabilitiesResponse { confirmed, message }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<v1::ControllerExpandVolumeRequest>,
    ) -> Answer<v1::ControllerExpandVolumeResponse> {
        let request = request.into_inner();
        if request.volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        let range = request.capacity_range.ok_or_else(|| Status::invalid_argument("capacity_range is missing"))?;
        let (wanted, limit) = capacity(Some(&range))?;
        let record = self.known(&request.volume_id).await?;
        if limit != 0 && record.bytes > limit {
            return Err(Status::out_of_range(format!("it has {} bytes, and no volume is made smaller", record.bytes)));
        }
        // A share has no limit of its own: the figure is all that grows.
        let bytes = record.bytes.max(wanted);
        if bytes > record.bytes {
            self.records.grow(record.id.as_str(), bytes).await.map_err(|error| api(&error))?;
        }
        Ok(Response::new(v1::ControllerExpandVolumeResponse {
            capacity_bytes: signed(bytes),
            node_expansion_required: false,
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<v1::ControllerGetCapabilitiesRequest>,
    ) -> Answer<v1::ControllerGetCapabilitiesResponse> {
        let capabilities = CAPABILITIES.map(|capability| v1::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: capability.into() })),
        });
        Ok(Response::new(v1::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<v1::ControllerPublishVolumeRequest>,
    ) -> Answer<v1::ControllerPublishVolumeResponse> {
        not_offered("a volume needs no attachment")
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<v1::ControllerUnpublishVolumeRequest>,
    ) -> Answer<v1::ControllerUnpublishVolumeResponse> {
        not_offered("a volume needs no attachment")
    }

    async fn list_volumes(&self, _: Request<v1::ListVolumesRequest>) -> Answer<v1::ListVolumesResponse> {
        not_offered("volumes are not listed")
    }

    async fn get_capacity(&self, _: Request<v1::GetCapacityRequest>) -> Answer<v1::GetCapacityResponse> {
        not_offered("a share's free space is its server's to tell")
    }

    async fn create_snapshot(&self, _: Request<v1::CreateSnapshotRequest>) -> Answer<v1::CreateSnapshotResponse> {
        not_offered("there are no snapshots")
    }

    async fn delete_snapshot(&self, _: Request<v1::DeleteSnapshotRequest>) -> Answer<v1::DeleteSnapshotResponse> {
        not_offered("there are no snapshots")
    }

    async fn list_snapshots(&self, _: Request<v1::ListSnapshotsRequest>) -> Answer<v1::ListSnapshotsResponse> {
        not_offered("there are no snapshots")
    }

    async fn controller_get_volume(
        &self,
        _: Request<v1::ControllerGetVolumeRequest>,
    ) -> Answer<v1::ControllerGetVolumeResponse> {
        not_offered("how a volume is its node's agent says")
    }

    async fn controller_modify_volume(
        &self,
        _: Request<v1::ControllerModifyVolumeRequest>,
    ) -> Answer<v1::ControllerModifyVolumeResponse> {
        not_offered("a volume has nothing that could be modified")
    }
}

impl<C: Fn() -> Moment> Controller<C> {
    /// None for an id that is none of ours: it may be of another version of whoever calls.
    async fn find(&self, id: &str) -> Result<Option<Record>, Status> {
        if id.parse::<Name>().is_err() {
            return Ok(None);
        }
        self.records.find(id).await.map_err(|error| api(&error))
    }

    async fn known(&self, id: &str) -> Result<Record, Status> {
        let record = self.find(id).await?;
        record.ok_or_else(|| Status::not_found(format!("there is no volume {id:?} of this service: was it deleted?")))
    }
}
