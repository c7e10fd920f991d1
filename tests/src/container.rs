//! A runc container, set up as a kubelet's container runtime would.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::command::{checked, output};
use crate::kit;
use crate::seccomp::runtime_default;
use crate::selinux;
use crate::wait::{eventually, poll, seconds};

const STATE: &str = "/run/runc";
const BUNDLES: &str = "/run/bundles";
const START: Duration = seconds(60);

/// What a pod's YAML says of a mount's propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// The default: what is mounted on the host later is not seen.
    None,
    HostToContainer,
}

#[derive(Debug, Clone)]
pub struct Bind {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    pub propagation: Propagation,
}

impl Bind {
    pub fn new(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self { source: source.into(), target: target.into(), read_only: false, propagation: Propagation::None }
    }

    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

#[derive(Debug, Clone, Default)]
pub struct Spec {
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub user: u32,
    /// As runc names them, with CAP_.
    pub capabilities: Vec<String>,
    pub host_pid: bool,
    pub host_network: bool,
    pub binds: Vec<Bind>,
    /// What SELinux knows it as, where that is not what all containers are.
    pub selinux_type: Option<String>,
    /// System calls that its kernel seems not to know.
    pub unknown_calls: Vec<String>,
}

#[derive(Debug)]
pub struct Container {
    name: String,
    pid: i32,
    output: PathBuf,
}

impl Container {
    /// Runs it, detached. Its output goes to NAME.log in the scenario's results, appended if it ran before.
    #[track_caller]
    pub fn start(name: &str, spec: &Spec) -> Self {
        let bundle = Path::new(BUNDLES).join(name);
        let config = bundle.join("config.json");
        let log = kit::results().join(format!("{name}.log"));
        let prepared = private_directory(&bundle.join("rootfs/mnt"), spec.user)
            .and_then(|()| fs::write(&config, config_json(name, spec).to_string()))
            .and_then(|()| File::options().create(true).append(true).open(&log));
        let file = prepared.unwrap_or_else(|error| panic!("prepare container {name}: {error}"));
        let twin = file.try_clone().unwrap_or_else(|error| panic!("share the log of {name}: {error}"));
        let pid_file = bundle.join("pid");
        let mut runtime = runc()
            .args(["run", "--detach", "--bundle"])
            .args([&bundle, Path::new("--pid-file"), &pid_file])
            .arg(name)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(twin)
            .spawn()
            .unwrap_or_else(|error| panic!("start runc: {error}; is it installed?"));
        // It looks at what it binds, which may be a mount that waits.
        let ended = poll(START, || runtime.try_wait().unwrap_or_else(|error| panic!("wait for runc: {error}")));
        let status = ended.unwrap_or_else(|| panic!("runc run {name}: not done after {START:?}; {:#?}", waiting()));
        if !status.success() {
            panic!("runc run {name}: {status}\n{}", fs::read_to_string(&log).unwrap_or_default());
        }
        let pid = fs::read_to_string(&pid_file).unwrap_or_default();
        let pid = pid.trim().parse().unwrap_or_else(|_| panic!("runc wrote {pid:?} instead of a process id"));
        Self { name: name.into(), pid, output: log }
    }

    /// Runs it until it ends by itself, and returns its exit code and what it printed.
    #[track_caller]
    pub fn run_to_its_end(name: &str, spec: &Spec) -> (Option<i32>, String) {
        let bundle = Path::new(BUNDLES).join(name);
        let prepared = private_directory(&bundle.join("rootfs/mnt"), spec.user)
            .and_then(|()| fs::write(bundle.join("config.json"), config_json(name, spec).to_string()));
        prepared.unwrap_or_else(|error| panic!("prepare container {name}: {error}"));
        let output = output(runc().arg("run").arg("--bundle").arg(&bundle).arg(name).stdin(Stdio::null()), None);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Its first process, as the node sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether a thread of its first process is left: one that waits in the kernel outlives the first one, and its
    /// parent (the runtime's shim, on a node) hears of no end until then.
    pub fn alive(&self) -> bool {
        self.thread_states().iter().any(|state| !matches!(state, 'Z' | 'X'))
    }

    /// Whether a thread of its first process waits in the kernel for something that no signal but SIGKILL ends.
    pub fn waits(&self) -> bool {
        self.thread_states().contains(&'D')
    }

    fn thread_states(&self) -> Vec<char> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        threads.filter_map(|thread| state(&fs::read_to_string(thread.path().join("stat")).ok()?)).collect()
    }

    /// All it has printed.
    pub fn output(&self) -> String {
        fs::read(&self.output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Runs a command in it.
    #[track_caller]
    pub fn exec(&self, args: &[&str]) -> Output {
        output(runc().args(["exec", &self.name]).args(args), None)
    }

    /// Sends a signal to its first process.
    #[track_caller]
    pub fn kill(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap_or_else(|error| panic!("send {signal} to {}: {error}", self.name));
    }

    /// Ends as kubelet does it: SIGTERM, a grace period, SIGKILL. True if the grace period was enough.
    #[track_caller]
    pub fn stop(&self, grace: Duration) -> bool {
        if !self.alive() {
            return true;
        }
        self.kill(Signal::SIGTERM);
        let gone = poll(grace, || (!self.alive()).then_some(())).is_some();
        if !gone {
            self.kill(Signal::SIGKILL);
        }
        gone
    }

    /// Removes what the runtime keeps of it; it must have ended.
    #[track_caller]
    pub fn delete(self) {
        eventually(&format!("container {} has ended", self.name), seconds(20), || {
            if self.alive() { Err(self.stacks()) } else { Ok(()) }
        });
        checked(runc().args(["delete", &self.name]), None);
    }

    /// Where its threads are in the kernel.
    fn stacks(&self) -> Vec<String> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("stack")).ok()).collect()
    }
}

/// Where every thread of this machine is in the kernel that no signal but SIGKILL reaches.
fn waiting() -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let threads = all.flat_map(|process| fs::read_dir(process.path().join("task")).into_iter().flatten().flatten());
    let waits = |thread: &Path| fs::read_to_string(thread.join("stat")).is_ok_and(|stat| state(&stat) == Some('D'));
    let told = |thread: PathBuf| {
        let [name, stack] = ["comm", "stack"].map(|file| fs::read_to_string(thread.join(file)).unwrap_or_default());
        format!("{}: {stack}", name.trim())
    };
    threads.map(|thread| thread.path()).filter(|thread| waits(thread)).map(told).collect()
}

fn state(stat: &str) -> Option<char> {
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn runc() -> Command {
    let mut command = Command::new("runc");
    command.args(["--root", STATE]);
    command
}

/// A directory that only the container's user may enter: images have such, and a volume below one must not stay on a
/// dead server.
fn private_directory(path: &Path, user: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    Ok(nix::unistd::chown(path, Some(user.into()), None)?)
}

fn config_json(name: &str, spec: &Spec) -> Value {
    let capabilities = &spec.capabilities;
    // A process that is not root keeps none of them as effective, whatever the bounding set.
    let mut namespaces = vec!["mount", "ipc", "uts", "cgroup"];
    namespaces.extend((!spec.host_pid).then_some("pid"));
    namespaces.extend((!spec.host_network).then_some("network"));
    let namespaces: Vec<_> = namespaces.into_iter().map(|kind| json!({ "type": kind })).collect();
    let env: Vec<_> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    // A runtime gives none where they mean nothing.
    let kind = spec.selinux_type.as_deref().unwrap_or(selinux::CONFINED);
    let [process, mounted] = if selinux::is_on() { selinux::labels(name, kind) } else { <[String; 2]>::default() };
    let follows = spec.binds.iter().any(|bind| bind.propagation == Propagation::HostToContainer);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": spec.user, "gid": spec.user },
            "args": spec.args,
            "env": env,
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true,
            "selinuxLabel": process,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": name,
        "mounts": mounts(spec),
        "linux": {
            "mountLabel": mounted,
            "namespaces": namespaces,
            "cgroupsPath": format!("/pods/{name}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "rootfsPropagation": if follows { Value::from("rslave") } else { Value::Null },
            "seccomp": seccomp(spec),
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn seccomp(spec: &Spec) -> Value {
    let mut profile = runtime_default(&spec.capabilities);
    if let Some(rules) = profile["syscalls"].as_array_mut().filter(|_| !spec.unknown_calls.is_empty()) {
        for names in rules.iter_mut().filter_map(|rule| rule["names"].as_array_mut()) {
            names.retain(|name| !spec.unknown_calls.iter().any(|call| name == call));
        }
        rules.push(json!({ "names": spec.unknown_calls, "action": "SCMP_ACT_ERRNO", "errnoRet": nix::libc::ENOSYS }));
    }
    profile
}

fn mounts(spec: &Spec) -> Vec<Value> {
    let tmpfs = |at: &str, options: &[&str]| json!({ "destination": at, "type": "tmpfs", "source": "tmpfs", "options": options });
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        tmpfs("/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }),
    ];
    mounts.extend(spec.binds.iter().map(|bind| {
        let propagation = match bind.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
        };
        let options = ["rbind", propagation, if bind.read_only { "ro" } else { "rw" }];
        json!({ "destination": bind.target, "type": "bind", "source": bind.source, "options": options })
    }));
    mounts
}
