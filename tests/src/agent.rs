//! The agent under test: a container with just what its DaemonSet gives it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use moorline_agent::killpoint::Point;
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

use crate::command::checked;
use crate::container::{Bind, Container, Spec};
use crate::csi::Csi;
use crate::kit;
use crate::node::Node;
use crate::objects::KEYS;
use crate::wait::{eventually, seconds};

/// Where kill points look for their orders: a directory that the agent sees under the same name.
const KILL_POINTS: &str = "/run/moorline/kill-points";
const SOCKET: &str = "/run/moorline/agent.sock";
const CONFIG: &str = "/etc/moorline";

/// Who dies at a kill point: the process that comes by alone, or the agent, whose hands die with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    Hand,
    Agent,
}

#[derive(Debug)]
pub struct Agent {
    spec: Spec,
    container: Option<Container>,
    /// Its hands must end by themselves when it dies: no server is dead that could hold them.
    pub alone: bool,
}

impl Agent {
    /// Starts one that can be told to die (see [`Self::strike`]), and does not wait until it answers.
    #[track_caller]
    pub fn start_mortal(node: &Node, objects: &str, orders: &[(Point, Whom)]) -> Self {
        write(&Path::new(KILL_POINTS).join("orders"), "");
        let mut agent = Self::prepare(node, objects);
        agent.spec.env.insert("MOORLINE_KILL_POINTS".into(), KILL_POINTS.into());
        orders.iter().for_each(|(point, whom)| agent.strike(*point, *whom));
        agent.container = Some(Container::start("agent", &agent.spec));
        agent
    }

    /// Starts it with `objects` as its configuration and the node's keys for the gateways `gw` and `solo`, and waits until its
    /// CSI socket answers.
    #[track_caller]
    pub fn start(node: &Node, objects: &str) -> Self {
        Self::start_with(node, objects, &[])
    }

    /// The same, with further arguments.
    #[track_caller]
    pub fn start_with(node: &Node, objects: &str, arguments: &[&str]) -> Self {
        let mut agent = Self::prepare(node, objects);
        agent.spec.args.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        agent.container = Some(Container::start("agent", &agent.spec));
        agent.wait_ready();
        agent
    }

    #[track_caller]
    fn prepare(node: &Node, objects: &str) -> Self {
        // The folder on the node that plays the ConfigMap, and the one that plays the Secret.
        write(&host_config().join("objects.yaml"), objects);
        for (gateway, key) in [("gw", node.key()), ("solo", node.solo_key())] {
            write(&Path::new("/srv/secret").join(format!("{gateway}.key")), &format!("{}\n", key.private));
        }
        Self { spec: spec(&daemonset(), node.name()), container: None, alone: false }
    }

    /// The next process that comes by this point dies there, and the agent with it if it is meant.
    #[track_caller]
    pub fn strike(&self, point: Point, whom: Whom) {
        let whom = match whom {
            Whom::Hand => "hand",
            Whom::Agent => "agent",
        };
        let fresh = Path::new(KILL_POINTS).join("new");
        write(&fresh, whom);
        let place = Path::new(KILL_POINTS).join(point.name());
        fs::rename(&fresh, &place).unwrap_or_else(|error| panic!("make {}: {error}", place.display()));
    }

    /// Whether nobody has come by since, or is still alive.
    pub fn spared(&self, point: Point) -> bool {
        let order = Path::new(KILL_POINTS).join(point.name());
        order.exists() || order.with_extension("agent").exists() && self.alive()
    }

    /// Takes the order back; true if nobody has come by.
    #[track_caller]
    pub fn pardon(&self, point: Point) -> bool {
        let order = Path::new(KILL_POINTS).join(point.name());
        match fs::remove_file(&order) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => panic!("remove {}: {error}", order.display()),
        }
    }

    pub fn alive(&self) -> bool {
        self.container.as_ref().is_some_and(Container::alive)
    }

    /// Starts it again if it has died, as kubelet would.
    #[track_caller]
    pub fn revive(&mut self) {
        if self.alive() {
            return;
        }
        if self.alone {
            // Before the runtime ends whatever is left in its cgroup.
            eventually("no hand outlives its agent", seconds(10), || {
                let hands = hands();
                if hands.is_empty() { Ok(()) } else { Err(hands) }
            });
        }
        if let Some(container) = self.container.take() {
            container.delete();
        }
        let orders = fs::read_dir(KILL_POINTS).into_iter().flatten().flatten().map(|order| order.path());
        for obeyed in orders.filter(|order| order.extension().is_some_and(|extension| extension == "agent")) {
            fs::remove_file(&obeyed).unwrap_or_else(|error| panic!("remove {}: {error}", obeyed.display()));
        }
        self.container = Some(Container::start("agent", &self.spec));
    }

    /// An agent like this one, on a kernel that does not know some system call, run until it ends: its exit code, and what
    /// it says.
    #[track_caller]
    pub fn on_a_kernel_without(&self, call: &str) -> (Option<i32>, String) {
        let spec = Spec { unknown_calls: vec![call.into()], ..self.spec.clone() };
        Container::run_to_its_end("agent-on-an-older-kernel", &spec)
    }

    /// An agent like this one that is to SELinux what any container is, run until it ends.
    #[track_caller]
    pub fn as_any_container(&self) -> (Option<i32>, String) {
        let spec = Spec { selinux_type: None, ..self.spec.clone() };
        Container::run_to_its_end("agent-without-its-type", &spec)
    }

    /// Replaces its objects, as a ConfigMap's change would.
    #[track_caller]
    pub fn configure(&self, objects: &str) {
        write(&host_config().join("objects.yaml.new"), objects);
        let (from, to) = (host_config().join("objects.yaml.new"), host_config().join("objects.yaml"));
        fs::rename(&from, &to).unwrap_or_else(|error| panic!("replace {}: {error}", to.display()));
    }

    #[track_caller]
    pub fn wait_ready(&self) {
        eventually("the agent answers on its CSI socket", seconds(30), || {
            if self.container.as_ref().is_some_and(|container| !container.alive()) {
                panic!("the agent has ended:\n{}", self.logs());
            }
            match Csi::connect()?.probe() {
                Ok(true) => Ok(()),
                Ok(false) => Err("not ready".to_owned()),
                Err(status) => Err(format!("{status}")),
            }
        });
    }

    /// kill -9, and its container is gone.
    #[track_caller]
    pub fn kill9(&mut self) {
        if let Some(container) = self.container.take() {
            container.kill(Signal::SIGKILL);
            container.delete();
        }
    }

    /// SIGTERM, as kubelet ends it for an upgrade: it is gone within `grace`.
    #[track_caller]
    pub fn stop(&mut self, grace: Duration) {
        if let Some(container) = self.container.take() {
            assert!(container.stop(grace), "the agent did not end within {grace:?}:\n{}", self.logs());
            container.delete();
        }
    }

    /// Starts it again, in a new container, as kubelet would.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill9();
        self.container = Some(Container::start("agent", &self.spec));
        self.wait_ready();
    }

    /// The target that serves a share now, as its status says.
    #[track_caller]
    pub fn target(&self, share: &str) -> String {
        eventually(&format!("the status names the target of {share}"), seconds(10), || {
            let status = self.status();
            let shares = status["shares"].as_array().cloned().unwrap_or_default();
            let found = shares.into_iter().find(|found| found["name"] == share).ok_or(status)?;
            found["target"].as_str().map(str::to_owned).ok_or(found)
        })
    }

    pub fn capabilities(&self) -> &[String] {
        &self.spec.capabilities
    }

    #[track_caller]
    pub fn csi(&self) -> Csi {
        Csi::connect().unwrap_or_else(|error| panic!("{error}\n{}", self.logs()))
    }

    /// What `moorline status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = checked(Command::new(kit::executable("moorline")).args(["status", "--json"]), None);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("moorline status --json: {error}\n{text}"))
    }

    /// Tells it that a pod was asked to end, which in a cluster the API server does.
    #[track_caller]
    pub fn hears_of_deletion(&self, pod_uid: &str, grace: Duration) {
        self.may_hear_of_deletion(pod_uid, grace).unwrap_or_else(|complaint| panic!("tell of a deletion: {complaint}"));
    }

    /// The same, of one that may be dead.
    #[track_caller]
    pub fn may_hear_of_deletion(&self, pod_uid: &str, grace: Duration) -> Result<(), String> {
        let body = format!("{{\"graceSeconds\": {}}}", grace.as_secs());
        let url = format!("http://moorline/v1/pods/{pod_uid}/deletion");
        let told = Command::new("curl")
            .args(["-sS", "--fail-with-body", "--unix-socket", SOCKET, "-X", "PUT", "-d", &body, &url])
            .output()
            .unwrap_or_else(|error| panic!("run curl: {error}"));
        let complaint = [told.stdout, told.stderr].concat();
        if told.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&complaint).into_owned()) }
    }

    /// Asks its socket, and takes what it answers: the status, and the JSON, or the lines of JSON.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--path-as-is", "--max-time", "60", "--unix-socket", SOCKET, "-X", method]);
        command.args(body.into_iter().flat_map(|body| ["-d".to_owned(), body.to_string()]));
        let (status, text) = asked(command.arg(format!("http://moorline{path}")));
        let whole = serde_json::from_str(&text);
        let lines = || text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>().map(Value::from);
        let value = whole.or_else(|_| lines());
        (status, value.unwrap_or_else(|error| panic!("{method} {path} answers {status}, and no JSON: {error}\n{text}")))
    }

    /// The same, of one that may be dead.
    pub fn may_answer(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "60", "--unix-socket", SOCKET, "-X", method, "-d", &body.to_string()]);
        let said = curl.args(["-w", "\n%{http_code}", &format!("http://moorline{path}")]).output().ok()?;
        let text = String::from_utf8(said.stdout).ok()?;
        let (body, status) = text.rsplit_once('\n')?;
        Some((status.parse().ok()?, serde_json::from_str(body).ok()?))
    }

    /// What it says that happened, since it was started last.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let text = checked(Command::new(kit::executable("moorline")).args(["events", "--json"]), None);
        let parsed: Result<_, _> = text.lines().map(serde_json::from_str).collect();
        parsed.unwrap_or_else(|error| panic!("moorline events --json: {error}\n{text}"))
    }

    /// Waits for an event of this kind, since it began.
    #[track_caller]
    pub fn tells(&self, kind: &str, deadline: Duration) -> Value {
        eventually(&format!("{kind} is told"), deadline, || {
            let events = self.events();
            events.iter().find(|event| event["kind"] == kind).cloned().ok_or(events)
        })
    }

    /// Asks its health address.
    #[track_caller]
    pub fn http(&self, path: &str) -> (u16, String) {
        asked(Command::new("curl").args(["-sS", "--max-time", "20", &format!("http://127.0.0.1:9810{path}")]))
    }

    /// All it has logged, over restarts.
    pub fn logs(&self) -> String {
        fs::read_to_string(kit::results().join("agent.log")).unwrap_or_default()
    }
}

/// The processes that do an agent's work in other namespaces.
pub fn hands() -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_hand = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"hands")
    };
    numbers.filter(is_hand).collect()
}

/// What curl got: the status, and the body.
#[track_caller]
fn asked(curl: &mut Command) -> (u16, String) {
    let text = checked(curl.args(["-w", "\n%{http_code}"]), None);
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("curl says {text:?}"));
    (status.parse().unwrap_or_else(|_| panic!("curl says {text:?}")), body.to_owned())
}

fn host_config() -> PathBuf {
    PathBuf::from("/srv/config")
}

#[track_caller]
fn write(path: &Path, text: &str) {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, text));
    written.unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

/// The part of the DaemonSet that decides what the container may do. Fields that are not here make no difference in
/// the lab.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    #[serde(default)]
    host_network: bool,
    containers: Vec<AgentContainer>,
    volumes: Vec<VolumeSource>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentContainer {
    command: Vec<String>,
    args: Vec<String>,
    security_context: SecurityContext,
    volume_mounts: Vec<VolumeMount>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    #[serde(default)]
    privileged: bool,
    capabilities: Capabilities,
    seccomp_profile: Profile,
    se_linux_options: SeLinuxOptions,
}

#[derive(Debug, Deserialize)]
struct SeLinuxOptions {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Capabilities {
    add: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeMount {
    name: String,
    mount_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSource {
    name: String,
    host_path: Option<HostPath>,
}

#[derive(Debug, Deserialize)]
struct HostPath {
    path: PathBuf,
}

#[track_caller]
fn daemonset() -> PodSpec {
    #[derive(Deserialize)]
    struct DaemonSet {
        spec: Outer,
    }
    #[derive(Deserialize)]
    struct Outer {
        template: Template,
    }
    #[derive(Deserialize)]
    struct Template {
        spec: PodSpec,
    }
    let path = kit::executable("manifests/agent.yaml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let parsed: Result<DaemonSet, _> = serde_saphyr::from_str(&text);
    parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display())).spec.template.spec
}

#[track_caller]
fn spec(pod: &PodSpec, node: &str) -> Spec {
    let [container] = &pod.containers[..] else { panic!("agent.yaml: the lab knows what to do with one container") };
    let security = &container.security_context;
    assert!(!security.privileged, "agent.yaml: a privileged agent proves nothing");
    assert_eq!(security.seccomp_profile.kind, "RuntimeDefault", "agent.yaml: the lab gives RuntimeDefault");
    let mut binds = vec![Bind::new(kit::executable("moorline"), "/moorline").read_only()];
    for mount in &container.volume_mounts {
        let volume = pod.volumes.iter().find(|volume| volume.name == mount.name);
        let source = match (volume.and_then(|volume| volume.host_path.as_ref()), mount.mount_path.as_str()) {
            (Some(host), _) => host.path.clone(),
            (None, CONFIG) => host_config(),
            (None, KEYS) => PathBuf::from("/srv/secret"),
            (None, other) => panic!("agent.yaml: the lab has nothing to put at {other}"),
        };
        fs::create_dir_all(&source).unwrap_or_else(|error| panic!("make {}: {error}", source.display()));
        let bind = Bind::new(source, &mount.mount_path);
        binds.push(if mount.read_only { bind.read_only() } else { bind });
    }
    Spec {
        args: container.command.iter().chain(&container.args).cloned().collect(),
        // No scenario waits for its turn, but that which is about it.
        env: [("NODE_NAME", node), ("PATH", "/"), ("MOORLINE_RECOVERY_JITTER", "0s")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        user: 0,
        capabilities: security.capabilities.add.iter().map(|name| format!("CAP_{name}")).collect(),
        host_pid: pod.host_pid,
        host_network: pod.host_network,
        binds,
        selinux_type: Some(security.se_linux_options.kind.clone()),
        unknown_calls: Vec::new(),
    }
}
