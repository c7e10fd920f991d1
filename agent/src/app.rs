//! Wiring: configuration, clock, sockets, signals. Nothing is decided here.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::{Stream, StreamExt};
use moorline_shared::happening::Happening;
use moorline_shared::plan::Jitter;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{error, info, warn};

use crate::api::{self, Api};
use crate::config::{Directory, Reading};
use crate::csi::{self, proto, registration_proto};
use crate::door::Door;
use crate::hands::Label;
use crate::host::{Host, Linux, StepError, kernel};
use crate::identity;
use crate::kube;
use crate::logind;
use crate::paths::Paths;
use crate::reconcile::{Event, Habits, Reconciler, chain};
use crate::telemetry;
use crate::window::Window;

/// How long the loop may keep an agent that was asked to end, while the node shuts down.
const LAST_WORK: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct Settings {
    pub config: PathBuf,
    pub node: String,
    pub run: PathBuf,
    pub kubelet: PathBuf,
    /// Where health and metrics are answered.
    pub health: SocketAddr,
    /// How far the moves of many nodes to one server are spread.
    pub recovery_jitter: Duration,
    /// How long kubelet may take to give back the volumes of a pod that is gone.
    pub orphan_patience: Duration,
    /// What containers see shares with, where SELinux has a say.
    pub selinux_label: Label,
}

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("read the objects in {0}: is it the directory of your Gateways and Shares?")]
    Config(String, #[source] io::Error),
    #[error(
        "take the lock {0}: is the host's directory mounted into the agent's pod, and where SELinux enforces, is the pod's type spc_t?"
    )]
    Lock(String, #[source] io::Error),
    #[error("prepare the host")]
    Prepare(#[source] StepError),
    #[error("listen at {0}: is the host's directory mounted into the agent's pod?")]
    Listen(String, #[source] io::Error),
    #[error("the reconcile loop has ended: a bug; the log above says where")]
    Loop,
    #[error("serve kubelet")]
    Serve(#[source] tonic::transport::Error),
    #[error("kubelet's sockets are served no more: a bug; the log above says where")]
    Sockets,
    #[error("start a thread that answers health probes")]
    Health(#[source] io::Error),
    #[error("wait for signals")]
    Signals(#[source] io::Error),
}

/// Runs until SIGTERM or SIGINT. Mounts stay: pods read on, and the next agent adopts them.
pub async fn run(settings: Settings) -> Result<(), AppError> {
    let paths = Paths { run: settings.run.clone(), kubelet: settings.kubelet.clone() };
    let mut directory = Directory::new(settings.config.clone());
    let config_error = |error| AppError::Config(settings.config.display().to_string(), error);
    // Watched before it is read: what changes in between is read again.
    let changes = directory.changes().map_err(config_error)?;
    // Held until the process has ended, and with it the last packet of its tunnels.
    std::mem::forget(lock(&paths).await?);

    let (events, inbox) = mpsc::channel(256);
    let clock = boot_clock();
    let window = Arc::new(Window::new(clock.clone(), wall_clock()));
    let door = Door::new(paths.pods().display().to_string(), events.clone());
    // After the lock: as long as an earlier agent lives it is the one that is asked, at the same address.
    telemetry::start(settings.health, window.clone(), door.clone()).map_err(AppError::Health)?;

    let identity = identity::of_node(&settings.node, &paths);
    let habits = Habits {
        jitter: Jitter::new(format!("{}/{}", identity.node, identity.machine), settings.recovery_jitter),
        orphan_patience: settings.orphan_patience,
    };
    let machine = Arc::new(Linux::new(paths.clone()));
    let host = Host::prepare(machine, paths.clone(), identity, settings.selinux_label.clone(), window.metrics.clone())
        .await
        .map_err(AppError::Prepare)?;
    if let Some(publications) = host.forget_earlier_boot().map_err(AppError::Prepare)? {
        window.chronicle.tell(&Happening::EarlierBoot { publications });
    }
    let (node, host) = (settings.node.clone(), Arc::new(host));
    let reconciler = Reconciler::new(node, habits, host, clock.clone(), events.clone(), window.clone())
        .map_err(AppError::Prepare)?;
    let (claims, nameplate) = (reconciler.claims(), reconciler.nameplate());
    let files = directory.read().map_err(config_error)?;
    let client = cluster();
    let in_cluster = if kube::in_cluster() { kube::objects::unheard() } else { Reading::default() };
    // The channel is empty and the loop owns its other end.
    let _ = events.send(Event::Objects(files.and(&in_cluster))).await;
    let mut reconciling = tokio::spawn(reconciler.run(inbox));

    let (readings, in_cluster_later) = mpsc::channel(1);
    let said = Said { files, in_cluster };
    tokio::spawn(tell_objects(said, directory, changes, in_cluster_later, events.clone()));
    if let Some(client) = client {
        tokio::spawn(kube::objects::watch(client.clone(), readings));
        tokio::spawn(kube::namespaces::watch(client.clone(), events.clone()));
        let leases = kube::leases::keep(client.clone(), settings.node.clone(), claims, wall_clock(), events.clone());
        tokio::spawn(leases);
        let telling =
            kube::events::tell(client.clone(), settings.node.clone(), window.clone(), door.clone(), clock.clone());
        tokio::spawn(telling);
        let (outcomes, said) = watch::channel(Vec::new());
        tokio::spawn(kube::errands::run(client.clone(), settings.node.clone(), door.clone(), outcomes));
        tokio::spawn(kube::report::keep(client.clone(), settings.node.clone(), window.clone(), door.clone(), said));
        if !kernel::has_nfs() {
            window.chronicle.tell(&Happening::NoNfs);
        }
        let fit = window.clone();
        let is_fit = move || fit.vitals.is_fit() && kernel::has_nfs();
        let node = settings.node.clone();
        tokio::spawn(kube::node::keep(client.clone(), node, nameplate, is_fit, wall_clock(), events.clone()));
        tokio::spawn(kube::pods::watch(client, settings.node.clone(), clock, wall_clock(), events.clone()));
    }
    tokio::spawn(logind::watch(events.clone()));
    let mut serving = serve(&settings, &paths, &Api { door, window: window.clone() })?;
    window.vitals.serves_kubelet();
    info!(node = settings.node, "moorline agent is ready");
    tokio::select! {
        signalled = stopped() => {
            signalled.map_err(AppError::Signals)?;
            let (done, may_end) = oneshot::channel();
            // A loop that does not answer must not keep us: then mounts stay, whatever the node is about to do.
            if events.send(Event::Stop(done)).await.is_ok() {
                let _ = timeout(LAST_WORK, may_end).await;
            }
            info!("stopping; what is mounted stays");
            Ok(())
        }
        // It never ends by itself. An agent that decides nothing is worse than none: the next one adopts what is there.
        _ = &mut reconciling => Err(AppError::Loop),
        // Nor does this.
        ended = serving.join_next() => match ended {
            Some(Ok(Err(error))) => Err(AppError::Serve(error)),
            _ => Err(AppError::Sockets),
        },
    }
}

/// The API server, if there is one to be asked. An agent without it takes care of what its files say.
fn cluster() -> Option<::kube::Client> {
    if !kube::in_cluster() {
        info!("not in a cluster: of pods' deletions only those are known that the agent's socket is told of");
        return None;
    }
    let client = kube::connect();
    let warned = client.inspect_err(|error| {
        warn!("{}: objects in the cluster and pods' deletions are not known", chain(error));
    });
    warned.ok()
}

/// What was last read of each source of objects.
struct Said {
    files: Reading,
    in_cluster: Reading,
}

/// Tells the loop of every change of the objects, until it has ended.
async fn tell_objects(
    mut said: Said,
    mut directory: Directory,
    mut changes: impl Stream<Item = ()> + Unpin,
    mut in_cluster: mpsc::Receiver<Reading>,
    events: mpsc::Sender<Event>,
) {
    loop {
        // Both may be waited for again: neither loses what it has not yet handed over.
        tokio::select! {
            Some(()) = changes.next() => match directory.read() {
                Ok(files) => said.files = files,
                Err(error) => {
                    error!("read the objects again: {error}; what was running goes on");
                    continue;
                }
            },
            Some(objects) = in_cluster.recv() => said.in_cluster = objects,
            else => return,
        }
        if events.send(Event::Objects(said.files.and(&said.in_cluster))).await.is_err() {
            return;
        }
    }
}

/// One agent plans at a time. During an upgrade the new one waits here until the old one has gone.
async fn lock(paths: &Paths) -> Result<Flock<File>, AppError> {
    let path = paths.lock();
    let failed = |error: io::Error| AppError::Lock(path.display().to_string(), error);
    fs::create_dir_all(&paths.run).map_err(failed)?;
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let locked = tokio::task::spawn_blocking(move || match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((file, _)) => {
            info!("another agent runs on this node: waiting for its end");
            Flock::lock(file, FlockArg::LockExclusive)
        }
        locked => locked,
    });
    match locked.await {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err((_, error))) => Err(failed(error.into())),
        Err(error) => Err(failed(io::Error::other(error))),
    }
}

type Serving = JoinSet<Result<(), tonic::transport::Error>>;

fn serve(settings: &Settings, paths: &Paths, api: &Api) -> Result<Serving, AppError> {
    let mut serving = JoinSet::new();
    tokio::spawn(api::serve(listen(&paths.api_socket())?, api.clone()));

    let node = csi::Node { node: settings.node.clone(), door: api.door.clone() };
    let listener = listen(&paths.csi_socket())?;
    let services = Server::builder()
        .add_service(proto::identity_server::IdentityServer::new(csi::Identity))
        .add_service(proto::node_server::NodeServer::new(node));
    serving.spawn(services.serve_with_incoming(UnixListenerStream::new(listener)));

    // Without a kubelet there is nobody to register with.
    if paths.registration_socket().parent().is_some_and(Path::is_dir) {
        let registration =
            csi::Registration { endpoint: paths.csi_socket().display().to_string(), window: api.window.clone() };
        let listener = listen(&paths.registration_socket())?;
        let service = Server::builder()
            .add_service(registration_proto::registration_server::RegistrationServer::new(registration));
        serving.spawn(service.serve_with_incoming(UnixListenerStream::new(listener)));
    } else {
        warn!("{} is not there: no kubelet will know the driver", paths.registration_socket().display());
    }
    Ok(serving)
}

/// A socket for root alone, in the place of one that an earlier agent left.
fn listen(path: &Path) -> Result<UnixListener, AppError> {
    let make = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    make().map_err(|error| AppError::Listen(path.display().to_string(), error))
}

#[expect(clippy::disallowed_methods, reason = "wiring: the one place where the agent's clock is read")]
fn boot_clock() -> crate::reconcile::Clock {
    let origin = Instant::now();
    Arc::new(move || Instant::now().duration_since(origin))
}

#[expect(clippy::disallowed_methods, reason = "wiring: the one place where the time of day is read")]
fn wall_clock() -> kube::WallClock {
    Arc::new(SystemTime::now)
}

async fn stopped() -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
