//! The application: a container with no privilege at all that uses published volumes and writes down what it sees.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::container::{Bind, Container, Propagation, Spec};
use crate::csi::Volume;
use crate::data;
use crate::event::{Event, Op};
use crate::kit;
use crate::mounts::{self, Mount};
use crate::node::Node;
use crate::wait::{eventually, poll};

pub const NAMESPACE: &str = "training";

#[derive(Debug)]
pub struct Pod {
    name: String,
    container: Container,
    volumes: Vec<Volume>,
    sub_paths: Vec<PathBuf>,
}

/// A pod that is being put together.
#[derive(Debug)]
pub struct Draft {
    name: String,
    volumes: Vec<Volume>,
    sub_paths: Vec<PathBuf>,
    binds: Vec<Bind>,
    jobs: Vec<String>,
}

impl Draft {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), volumes: Vec::new(), sub_paths: Vec::new(), binds: Vec::new(), jobs: Vec::new() }
    }

    /// Has the agent publish a share for it, and binds it at /mnt/SHARE with propagation None.
    #[track_caller]
    pub fn with_share(self, node: &Node, agent: &Agent, share: &str, read_only: bool) -> Self {
        let draft = self.publishing(node, agent, share, read_only);
        let bind = Bind::new(draft.target(share), format!("/mnt/{share}"));
        draft.with_bind(if read_only { bind.read_only() } else { bind })
    }

    /// Has the agent publish a share for it, and binds it nowhere yet.
    #[track_caller]
    pub fn publishing(mut self, node: &Node, agent: &Agent, share: &str, read_only: bool) -> Self {
        let volume = volume(node, &self.name, share, read_only);
        publish(agent, &volume);
        self.volumes.push(volume);
        self
    }

    /// A directory or a file of a published share, at `at`: bound to a place of kubelet's own, and from there into the
    /// container, as kubelet does for a subPath.
    #[track_caller]
    pub fn with_sub_path(mut self, share: &str, path: &str, at: &str, read_only: bool) -> Self {
        let source = self.target(share).join(path);
        let place = Path::new("/var/lib/kubelet/pods").join(format!("uid-of-{}", self.name));
        let place = place.join("volume-subpaths").join(share).join("main").join(self.sub_paths.len().to_string());
        let (folder, made) = if source.is_dir() { (place.as_path(), None) } else { (place_of(&place), Some(&place)) };
        let bound = fs::create_dir_all(folder)
            .and_then(|()| made.map_or(Ok(()), |file| fs::write(file, b"")))
            .and_then(|()| Ok(mount(Some(&source), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?));
        bound.unwrap_or_else(|error| panic!("bind {} to {}: {error}", source.display(), place.display()));
        let bind = Bind::new(&place, at);
        self.sub_paths.push(place);
        self.with_bind(if read_only { bind.read_only() } else { bind })
    }

    /// Binds a published share at /mnt/SHARE, read-only, with propagation HostToContainer.
    #[track_caller]
    pub fn following(self, share: &str) -> Self {
        let bind = Bind::new(self.target(share), format!("/mnt/{share}")).read_only();
        self.with_bind(Bind { propagation: Propagation::HostToContainer, ..bind })
    }

    /// The same with a directory of the share alone.
    #[track_caller]
    pub fn with_part(self, node: &Node, agent: &Agent, share: &str, sub_dir: &str, read_only: bool) -> Self {
        let mut volume = volume(node, &self.name, share, read_only);
        volume.attributes.push(("subDir".into(), sub_dir.into()));
        publish(agent, &volume);
        let bind = Bind::new(&volume.target, format!("/mnt/{share}"));
        let mut draft = self.with_bind(if read_only { bind.read_only() } else { bind });
        draft.volumes.push(volume);
        draft
    }

    #[track_caller]
    fn target(&self, share: &str) -> &Path {
        let volume = self.volumes.iter().find(|volume| volume.share == share);
        volume.map_or_else(|| panic!("pod {} has no volume {share}", self.name), |volume| &volume.target)
    }

    pub fn with_bind(mut self, bind: Bind) -> Self {
        self.binds.push(bind);
        self
    }

    /// Reads and verifies a file, over and over.
    pub fn reading(self, path: &str) -> Self {
        self.doing("read", path)
    }

    /// Appends records, each acknowledged by fsync.
    pub fn writing(self, path: &str) -> Self {
        self.doing("write", path)
    }

    /// Appends records through one descriptor that it opens and locks once, each acknowledged by fsync: with its server
    /// away it waits where no signal reaches it.
    pub fn holding(self, path: &str) -> Self {
        self.doing("hold", path)
    }

    /// Writes one record without fsync, and keeps the descriptor: what it wrote is written back when it ends.
    pub fn dirtying(self, path: &str) -> Self {
        self.doing("dirty", path)
    }

    /// Lists a directory from inside: its working directory is there from the start.
    pub fn staying_in(self, path: &str) -> Self {
        self.doing("stay", path)
    }

    /// Tries to write where it must not be able to.
    pub fn trespassing(self, path: &str) -> Self {
        self.doing("trespass", path)
    }

    /// Looks for names beginning with this that aren't there: with its server away it waits with the directory locked.
    pub fn searching(self, path: &str) -> Self {
        self.doing("search", path)
    }

    /// Reads and verifies a file through a descriptor that it opens once.
    pub fn keeping(self, path: &str) -> Self {
        self.doing("keep", path)
    }

    /// Reads and verifies a file through a mapping that it makes once.
    pub fn mapping(self, path: &str) -> Self {
        self.doing("map", path)
    }

    /// Writes records over each other through a mapping that it makes once, each acknowledged by msync.
    pub fn altering(self, path: &str) -> Self {
        self.doing("alter", path)
    }

    /// Writes a whole file of data with this tag, once, without fsync, and keeps the descriptor.
    pub fn leaving(self, path: &str, tag: &str) -> Self {
        self.doing("leave", &format!("{path}={tag}"))
    }

    /// Writes a whole file of data with this tag, once, acknowledged by fsync.
    pub fn putting(self, path: &str, tag: &str) -> Self {
        self.doing("put", &format!("{path}={tag}"))
    }

    fn doing(mut self, job: &str, path: &str) -> Self {
        self.jobs.push(format!("{job}:{path}"));
        self
    }

    #[track_caller]
    pub fn start(self) -> Pod {
        let mut binds = vec![Bind::new(kit::executable("app"), "/app").read_only()];
        binds.extend(self.binds);
        let args = std::iter::once("/app".to_owned()).chain(self.jobs).collect();
        let spec = Spec { args, binds, user: 1000, ..Spec::default() };
        let container = Container::start(&format!("pod-{}", self.name), &spec);
        Pod { name: self.name, container, volumes: self.volumes, sub_paths: self.sub_paths }
    }
}

/// The volume `share` of pod `pod`, as kubelet would ask for it.
#[track_caller]
pub fn volume(node: &Node, pod: &str, share: &str, read_only: bool) -> Volume {
    let uid = format!("uid-of-{pod}");
    Volume {
        share: share.into(),
        target: node.volume(&uid, share),
        read_only,
        pod_name: pod.into(),
        pod_namespace: NAMESPACE.into(),
        pod_uid: uid,
        attributes: Vec::new(),
    }
}

fn place_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

/// Publishes it, asking as long as kubelet would.
#[track_caller]
pub fn publish(agent: &Agent, volume: &Volume) {
    insist(agent, &format!("publish {}", volume.share), || agent.csi().publish(volume));
}

/// As kubelet does: "unavailable" is asked again, anything else is an answer.
#[track_caller]
pub fn insist(agent: &Agent, what: &str, call: impl Fn() -> Result<(), Status>) {
    eventually(what, Duration::from_secs(30), || match call() {
        Ok(()) => Ok(()),
        Err(status) if status.code() == Code::Unavailable => Err(status),
        Err(status) => panic!("{what}: {status}\n{}", agent.logs()),
    });
}

impl Pod {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn container(&self) -> &Container {
        &self.container
    }

    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    pub fn targets(&self) -> impl Iterator<Item = &PathBuf> {
        self.volumes.iter().map(|volume| &volume.target)
    }

    /// Where kubelet has bound its subPaths.
    pub fn sub_paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.sub_paths.iter()
    }

    /// Tells the agent that it is asked to end.
    #[track_caller]
    pub fn is_to_end(&self, agent: &Agent, grace: Duration) {
        if let Some(volume) = self.volumes.first() {
            agent.hears_of_deletion(&volume.pod_uid, grace);
        }
    }

    pub fn events(&self) -> Vec<Event> {
        // The last line may be half written.
        self.container.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn events_of(&self, op: Op) -> Vec<Event> {
        self.events().into_iter().filter(|event| event.op == op).collect()
    }

    /// The highest record that was acknowledged.
    pub fn acknowledged(&self) -> u64 {
        let written = self.events_of(Op::Write).into_iter().filter(Event::succeeded);
        written.filter_map(|event| event.tag.parse().ok()).max().unwrap_or(0)
    }

    /// Waits until an event that comes from now on satisfies `wanted`, and returns it.
    #[track_caller]
    pub fn next(&self, what: &str, deadline: Duration, wanted: impl Fn(&Event) -> bool) -> Event {
        self.after(self.events().len(), what, deadline, wanted)
    }

    /// Waits for the first event, not counting the first `known` ones, that satisfies `wanted`.
    #[track_caller]
    pub fn after(&self, known: usize, what: &str, deadline: Duration, wanted: impl Fn(&Event) -> bool) -> Event {
        eventually(&format!("pod {}: {what}", self.name), deadline, || {
            let events = self.events();
            let found = events.iter().skip(known).find(|event| wanted(event)).cloned();
            found.ok_or_else(|| events.last().cloned())
        })
    }

    /// Waits until it reads data tagged `tag`, from now on.
    #[track_caller]
    pub fn reads(&self, tag: &str, deadline: Duration) -> Event {
        self.next(&format!("reads {tag}"), deadline, |event| {
            event.op == Op::Read && event.succeeded() && event.tag == tag
        })
    }

    /// Waits until it reads data tagged `tag` from this file, from now on.
    #[track_caller]
    pub fn reads_at(&self, path: &str, tag: &str, deadline: Duration) -> Event {
        self.next(&format!("reads {tag} at {path}"), deadline, |event| {
            event.op == Op::Read && event.succeeded() && event.path == path && event.tag == tag
        })
    }

    /// What its container has mounted at a path, lowest first.
    pub fn mounts_at(&self, path: &str) -> Vec<Mount> {
        let all = mounts::of(&self.container.pid().to_string()).into_iter();
        all.filter(|mount| mount.point == path).collect()
    }

    /// Waits until one more record is acknowledged, from now on.
    #[track_caller]
    pub fn writes(&self, deadline: Duration) -> Event {
        self.next("writes", deadline, |event| event.op == Op::Write && event.succeeded())
    }

    /// Waits for a stretch of `time` in which nothing of this kind ends, well or not: it blocks. What was on its way
    /// when the server went away (in a busy machine's sockets, say) may still end before.
    #[track_caller]
    pub fn blocks(&self, op: Op, time: Duration) {
        let mut known = self.events_of(op).len();
        eventually(&format!("pod {}: {op:?} blocks", self.name), Duration::from_secs(40), || {
            match poll(time, || Some(self.events_of(op).len()).filter(|count| *count != known)) {
                None if self.container.waits() => Ok(()),
                None => Err("nothing ends, and nothing waits in the kernel".to_owned()),
                Some(count) => {
                    known = count;
                    Err(format!("{:?}", self.events_of(op).last()))
                }
            }
        });
    }

    /// Waits until it is blocked in an fsync (see [`Draft::holding`]), for a stretch of `time`.
    #[track_caller]
    pub fn blocks_in_fsync(&self, time: Duration) {
        self.blocks(Op::Sync, time);
        let said = self.events().into_iter().rfind(|event| matches!(event.op, Op::Sync | Op::Write));
        let said = said.map(|event| event.op);
        assert_eq!(said, Some(Op::Sync), "pod {}: it blocks, but not in fsync", self.name);
    }

    /// Panics if a record that was acknowledged is not in this log.
    #[track_caller]
    pub fn lost_nothing(&self, log: &[u8]) {
        let written = data::records(log);
        let lost = (1..=self.acknowledged()).find(|number| !written.contains(number));
        assert_eq!(lost, None, "pod {}: a record was acknowledged and is not there", self.name);
    }

    /// Panics if anything of this kind ever failed.
    #[track_caller]
    pub fn never_failed(&self, op: Op) {
        let failed: Vec<_> = self.events_of(op).into_iter().filter(|event| !event.succeeded()).collect();
        assert!(failed.is_empty(), "pod {}: {op:?} failed: {failed:?}", self.name);
    }

    /// What happens when a pod is deleted: everybody is told, then kubelet sends SIGTERM, and SIGKILL after the grace
    /// period, and gives the volumes back when the container is gone.
    #[track_caller]
    pub fn delete(self, agent: &Agent, grace: Duration) {
        self.is_to_end(agent, grace);
        for volume in &self.end(grace) {
            insist(agent, &format!("unpublish {}", volume.share), || agent.csi().unpublish(&volume.target));
        }
    }

    /// The same, but that nobody is told, up to where kubelet gives the volumes back.
    #[track_caller]
    pub fn end(self, grace: Duration) -> Vec<Volume> {
        self.container.stop(grace);
        // Not for an instant, in all its life.
        let trespassed = self.events_of(Op::Trespass).into_iter().find(Event::succeeded);
        assert_eq!(trespassed, None, "what is read-only was written to");
        self.container.delete();
        self.sub_paths.iter().for_each(|place| detach_all(place));
        self.volumes
    }
}

/// Kubelet takes down what it has bound before it gives the volume back.
#[track_caller]
fn detach_all(place: &Path) {
    while mounts::is_mounted(place) {
        umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .unwrap_or_else(|error| panic!("detach {}: {error}", place.display()));
    }
}
