//! The node's login manager: systemd-logind itself, on a bus of its own. Behind it stands a fake of the service manager
//! (systemd's pid 1), which is asked for the unit that ends a node and ends nothing.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::runtime::Runtime;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, connection, fdo, interface};

use crate::command::run;
use crate::kit;
use crate::wait::{eventually, now, seconds};

const SOCKET: &str = "/run/dbus/system_bus_socket";
const UNIT: &str = "poweroff.target";

#[derive(Debug)]
pub struct Logind {
    asked: Arc<Mutex<Vec<Instant>>>,
    _bus: Child,
    _logind: Child,
    _service_manager: (Runtime, Connection),
}

impl Logind {
    /// One that waits `delay` seconds for those who hold a lock.
    #[track_caller]
    pub fn start(delay: u64) -> Self {
        let conf = Path::new("/run/systemd/logind.conf.d");
        let prepared = fs::create_dir_all(conf)
            .and_then(|()| fs::create_dir_all("/run/dbus"))
            .and_then(|()| fs::write(conf.join("lab.conf"), format!("[Login]\nInhibitDelayMaxSec={delay}\n")));
        prepared.unwrap_or_else(|error| panic!("configure logind: {error}"));
        let bus = daemon("dbus-daemon", &["--system", "--nofork", "--nopidfile"]);
        eventually("the bus is there", seconds(20), || UnixStream::connect(SOCKET).map(drop));
        let asked = Arc::default();
        let service_manager = service_manager(&asked);
        let logind = daemon("/lib/systemd/systemd-logind", &[]);
        let logind = Self { asked, _bus: bus, _logind: logind, _service_manager: service_manager };
        eventually("logind answers", seconds(20), || logind.locks().map(drop));
        logind
    }

    /// Who holds the node up.
    pub fn locks(&self) -> Result<String, String> {
        let call = ["--system", "--timeout=5", "call", LOGIND, "/org/freedesktop/login1", MANAGER, "ListInhibitors"];
        let output = Command::new("busctl").args(call).output().map_err(|error| error.to_string())?;
        let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(said.into_owned()) } else { Err(complaint.into_owned()) }
    }

    /// Waits until the agent holds a lock.
    #[track_caller]
    pub fn is_held_by_moorline(&self) {
        eventually("the agent holds a lock", seconds(30), || {
            let locks = self.locks()?;
            if locks.contains("\"moorline\"") { Ok(()) } else { Err(locks) }
        });
    }

    /// Asks for the node's end, as `systemctl poweroff` does.
    #[track_caller]
    pub fn power_off(&self) {
        run("busctl", ["--system", "call", LOGIND, "/org/freedesktop/login1", MANAGER, "PowerOff", "b", "false"]);
    }

    /// When the unit that ends the node was asked for the `count`th time: nobody held it up any more, or not for longer.
    #[track_caller]
    pub fn goes_down(&self, count: usize) -> Instant {
        eventually("the node goes down", seconds(60), || {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.get(count - 1).copied().ok_or("nobody asked for its end")
        })
    }
}

const LOGIND: &str = "org.freedesktop.login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

#[track_caller]
fn daemon(program: &str, arguments: &[&str]) -> Child {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let path = kit::results().join(format!("{name}.log"));
    let log = File::create(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
    Command::new(program)
        .args(arguments)
        .env("SYSTEMD_LOG_TARGET", "console")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("start {program}: {error}; are dbus and systemd installed?"))
}

/// The fake: it knows the unit, writes down when it is asked for, and fails to start it. For logind the shutdown is off
/// then, as when a node's end is called off.
struct ServiceManager(Arc<Mutex<Vec<Instant>>>);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl ServiceManager {
    fn start_unit(&self, name: &str, _mode: &str) -> fdo::Result<OwnedObjectPath> {
        if name == UNIT {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(now());
        }
        Err(fdo::Error::Failed("the lab's nodes stay".into()))
    }

    fn subscribe(&self) {}
}

struct Unit;

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        "loaded"
    }
}

#[track_caller]
fn service_manager(asked: &Arc<Mutex<Vec<Instant>>>) -> (Runtime, Connection) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("start a runtime: {error}"));
    let served = runtime.block_on(async {
        connection::Builder::address(format!("unix:path={SOCKET}").as_str())?
            .serve_at("/org/freedesktop/systemd1", ServiceManager(asked.clone()))?
            .serve_at("/org/freedesktop/systemd1/unit/poweroff_2etarget", Unit)?
            .name("org.freedesktop.systemd1")?
            .build()
            .await
    });
    (runtime, served.unwrap_or_else(|error| panic!("be the service manager: {error}")))
}
