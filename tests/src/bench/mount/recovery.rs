//! A server falls silent under a hundred containers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

use super::super::record::{Samples, Whose};
use super::{end, objects};
use crate::agent::Agent;
use crate::data;
use crate::kit;
use crate::node::Node;
use crate::pod::{insist, publish, volume};
use crate::site::Site;
use crate::wait::{DAY, eventually, seconds, time_in, time_of_day};

const CONTAINERS: usize = 100;
const SAMPLE: &str = "sample";

pub(super) fn measure(node: &Node, a: &Site, b: &Site, samples: &mut Samples) {
    for site in [a, b] {
        site.put(&format!("datasets/{SAMPLE}"), &data::file(site.name(), 1000));
    }
    let agent = Agent::start(node, &objects(&[a, b]));
    let volumes: Vec<_> =
        (0..CONTAINERS).map(|number| volume(node, &format!("reader-{number}"), "datasets", true)).collect();
    volumes.iter().for_each(|volume| publish(&agent, volume));
    let mut copies: Vec<Copy> =
        volumes.iter().enumerate().map(|(number, volume)| Copy::start(number, &volume.target, b.name())).collect();
    eventually("each container reads the first server", seconds(60), || all_read(&copies, a.name()));

    let silent = time_of_day();
    a.blackhole();
    let served = eventually("each container reads the next server", seconds(60), || all_read(&copies, b.name()));
    let away = eventually("the agent has told that the server is away", seconds(10), || {
        let events = agent.events();
        let away = events.iter().find(|event| event["kind"] == "ServerAway");
        away.and_then(|event| time_in(event["at"].as_str()?)).ok_or(events)
    });
    samples.add("detect_s", Whose::Ours, (away - silent).rem_euclid(DAY));
    let recovered = served.into_iter().map(|at| (at - away).rem_euclid(DAY)).fold(0.0, f64::max);
    samples.add("recover_s", Whose::Ours, recovered);

    copies.iter_mut().for_each(Copy::wait);
    a.heal();
    for volume in &volumes {
        insist(&agent, "unpublish", || agent.csi().unpublish(&volume.target));
    }
    end(agent);
}

/// When each of them first read a file of this server's.
fn all_read(copies: &[Copy], tag: &str) -> Result<Vec<f64>, String> {
    let times = copies.iter().map(|copy| copy.first_read(tag).ok_or_else(|| fs::read_to_string(&copy.log)));
    times.collect::<Result<_, _>>().map_err(|log| format!("{log:?}"))
}

/// A process that has a copy of a volume in a mount namespace of its own, as a container has.
struct Copy {
    process: Child,
    log: PathBuf,
}

impl Copy {
    #[track_caller]
    fn start(number: usize, target: &Path, until: &str) -> Self {
        let log = PathBuf::from(format!("/run/copy-{number}.log"));
        let file = File::create(&log).unwrap_or_else(|error| panic!("make {}: {error}", log.display()));
        let mut command = Command::new(kit::executable("lab"));
        command.arg("copy").arg(target).arg(until).stdin(Stdio::null()).stdout(file);
        let process = command.spawn().unwrap_or_else(|error| panic!("start a container: {error}"));
        Self { process, log }
    }

    fn first_read(&self, tag: &str) -> Option<f64> {
        let text = fs::read_to_string(&self.log).ok()?;
        text.lines().find_map(|line| line.strip_prefix(tag)?.trim().parse().ok())
    }

    #[track_caller]
    fn wait(&mut self) {
        let ended = self.process.wait();
        assert!(ended.as_ref().is_ok_and(|status| status.success()), "a container failed: {ended:?}");
    }
}

/// The life of such a process: it reads the sample again and again, and says whose it is and when, each time that this
/// changes; it ends with the first of `until`.
pub fn copy(target: &Path, until: &str) -> nix::Result<()> {
    enclose(target)?;
    let sample = Path::new("/data").join(SAMPLE);
    let mut before = String::new();
    while before != until {
        let read = fs::read(&sample).ok().and_then(|bytes| data::verify(&bytes).ok());
        let pace = if read.is_some() { Duration::from_millis(500) } else { Duration::from_millis(100) };
        match read {
            Some(tag) if tag != before => {
                println!("{tag} {:.4}", time_of_day());
                before = tag;
            }
            _ => thread::sleep(pace),
        }
    }
    Ok(())
}

/// A root with nothing in it but the volume.
fn enclose(target: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let root = Path::new("/mnt");
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), none)?;
    for folder in ["data", "old"] {
        nix::unistd::mkdir(&root.join(folder), nix::sys::stat::Mode::S_IRWXU)?;
    }
    mount(Some(target), &root.join("data"), none, MsFlags::MS_BIND, none)?;
    pivot_root(root, &root.join("old"))?;
    chdir("/")?;
    umount2("/old", MntFlags::MNT_DETACH)
}
