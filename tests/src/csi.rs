//! Kubelet's part: a CSI client on the driver's socket.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moorline_csi::v1 as proto;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use proto::identity_client::IdentityClient;
use proto::node_client::NodeClient;
use proto::volume_capability::access_mode::Mode;
use proto::volume_capability::{AccessMode, AccessType, MountVolume};
use proto::volume_usage::Unit;

use crate::wait::now;

pub const SOCKET: &str = "/var/lib/kubelet/plugins/moorline.io/csi@moorline.io.sock";

/// Five times as long as the agent lets a call wait for anything. Kubelet would give it two minutes.
const PATIENCE: Duration = Duration::from_secs(75);

/// One volume of one pod, as kubelet knows it.
#[derive(Debug, Clone)]
pub struct Volume {
    pub share: String,
    pub target: PathBuf,
    pub read_only: bool,
    pub pod_name: String,
    pub pod_namespace: String,
    pub pod_uid: String,
    /// Further volumeAttributes: what is there that should not be must be refused.
    pub attributes: Vec<(String, String)>,
}

/// How full a volume's share is in all, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    pub bytes: Option<i64>,
    pub files: Option<i64>,
    pub abnormal: bool,
    pub message: String,
}

/// How a call ended, and after how long.
#[derive(Debug)]
pub struct Answer {
    pub said: Result<(), Status>,
    pub after: Duration,
}

#[derive(Debug)]
pub struct Csi {
    runtime: Runtime,
    channel: Channel,
}

impl Csi {
    /// Connects; an error says that nobody listens (yet).
    pub fn connect() -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("start a runtime for the CSI client: {error}"))?;
        let channel = runtime.block_on(channel())?;
        Ok(Self { runtime, channel })
    }

    /// True when the driver says that it is ready.
    pub fn probe(&self) -> Result<bool, Status> {
        let mut client = IdentityClient::new(self.channel.clone());
        let answer = self.call(Duration::from_secs(5), client.probe(proto::ProbeRequest {}))?;
        Ok(answer.into_inner().ready.unwrap_or(true))
    }

    pub fn publish(&self, volume: &Volume) -> Result<(), Status> {
        let mut client = NodeClient::new(self.channel.clone());
        self.call(PATIENCE, client.node_publish_volume(publish_request(volume))).map(drop)
    }

    /// Publishes all of them at one moment. The answers are in the volumes' order.
    pub fn publish_at_once(&self, volumes: &[Volume]) -> Result<Vec<Answer>, String> {
        let requests = volumes.iter().map(publish_request);
        self.at_once(requests, |mut client, request| async move { client.node_publish_volume(request).await.map(drop) })
    }

    pub fn unpublish(&self, target: &Path) -> Result<(), Status> {
        let mut client = NodeClient::new(self.channel.clone());
        self.call(PATIENCE, client.node_unpublish_volume(unpublish_request(target))).map(drop)
    }

    /// Gives all of them back at one moment.
    pub fn unpublish_at_once(&self, volumes: &[Volume]) -> Result<Vec<Answer>, String> {
        let requests = volumes.iter().map(|volume| unpublish_request(&volume.target));
        self.at_once(
            requests,
            |mut client, request| async move { client.node_unpublish_volume(request).await.map(drop) },
        )
    }

    /// Each call has a connection of its own, as kubelet's have. They are there before the clock runs.
    fn at_once<Request, Call>(
        &self,
        requests: impl Iterator<Item = Request>,
        call: impl Fn(NodeClient<Channel>, Request) -> Call,
    ) -> Result<Vec<Answer>, String>
    where
        Call: Future<Output = Result<(), Status>> + Send + 'static,
    {
        self.runtime.block_on(async {
            let mut ready = Vec::new();
            for request in requests {
                ready.push((NodeClient::new(channel().await?), request));
            }
            let began = now();
            let calls: Vec<_> = ready
                .into_iter()
                .map(|(client, request)| {
                    let call = in_time(PATIENCE, call(client, request));
                    tokio::spawn(async move { Answer { said: call.await, after: began.elapsed() } })
                })
                .collect();
            let mut answers = Vec::new();
            for call in calls {
                answers.push(call.await.map_err(|error| format!("a call has no answer: {error}"))?);
            }
            Ok(answers)
        })
    }

    /// How a volume is.
    pub fn stats(&self, target: &Path) -> Result<Stats, Status> {
        let request = proto::NodeGetVolumeStatsRequest {
            volume_id: volume_id(target),
            volume_path: target.display().to_string(),
            ..Default::default()
        };
        let mut client = NodeClient::new(self.channel.clone());
        let told = self.call(PATIENCE, client.node_get_volume_stats(request))?.into_inner();
        let total = |unit: Unit| told.usage.iter().find(|usage| usage.unit == i32::from(unit)).map(|usage| usage.total);
        let (bytes, files) = (total(Unit::Bytes), total(Unit::Inodes));
        let condition = told.volume_condition.ok_or_else(|| Status::internal("no condition is told"))?;
        Ok(Stats { bytes, files, abnormal: condition.abnormal, message: condition.message })
    }

    fn call<T>(&self, patience: Duration, future: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.runtime.block_on(in_time(patience, future))
    }
}

async fn channel() -> Result<Channel, String> {
    let endpoint = Endpoint::try_from(format!("unix://{SOCKET}")).map_err(|error| format!("{SOCKET}: {error}"))?;
    let connected = endpoint.connect_timeout(Duration::from_secs(5)).connect().await;
    connected.map_err(|error| format!("connect to {SOCKET}: {error:?}; does the agent run?"))
}

async fn in_time<T>(patience: Duration, future: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::new(Code::DeadlineExceeded, format!("no answer within {patience:?}"));
    tokio::time::timeout(patience, future).await.map_err(late)?
}

fn publish_request(volume: &Volume) -> proto::NodePublishVolumeRequest {
    let mut context = HashMap::from([
        ("csi.storage.k8s.io/pod.name".to_owned(), volume.pod_name.clone()),
        ("csi.storage.k8s.io/pod.namespace".to_owned(), volume.pod_namespace.clone()),
        ("csi.storage.k8s.io/pod.uid".to_owned(), volume.pod_uid.clone()),
        ("csi.storage.k8s.io/serviceAccount.name".to_owned(), "default".to_owned()),
        ("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned()),
        ("share".to_owned(), volume.share.clone()),
    ]);
    context.extend(volume.attributes.iter().cloned());
    proto::NodePublishVolumeRequest {
        volume_id: volume_id(&volume.target),
        target_path: volume.target.display().to_string(),
        volume_capability: Some(proto::VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            // What kubelet sends for every inline volume, a read-only one as well.
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        }),
        readonly: volume.read_only,
        volume_context: context,
        ..Default::default()
    }
}

fn unpublish_request(target: &Path) -> proto::NodeUnpublishVolumeRequest {
    proto::NodeUnpublishVolumeRequest { volume_id: volume_id(target), target_path: target.display().to_string() }
}

/// Kubelet makes an inline volume's id from pod and volume; all that matters is that it is the same each time.
fn volume_id(target: &Path) -> String {
    let text: String = target.display().to_string().chars().filter(char::is_ascii_alphanumeric).collect();
    format!("csi-{text}")
}
