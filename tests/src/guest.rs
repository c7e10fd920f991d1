//! A User Mode Linux guest for machines whose kernel has no NFS: this machine's files below, a kernel of its own.
//!
//! A guest is many processes. They live in a pid namespace whose end is theirs, and that ends with the lab however the
//! lab ends; the watchdog ends it when its time is up.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wait::{poll, seconds};

const MEMORY: &str = "3072M";

/// Where a guest's kernel lies, as Debian's package user-mode-linux has it.
#[derive(Debug, Clone)]
pub struct Uml {
    root: PathBuf,
}

impl Uml {
    /// The one that is installed on this machine.
    pub fn installed() -> Self {
        Self { root: "/".into() }
    }

    /// The newer one, fetched by `script` unless it is there already.
    pub fn newer(script: &Path) -> io::Result<Self> {
        let run = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = run.map_err(|error| io::Error::new(error.kind(), format!("run {}: {error}", script.display())))?;
        if !output.status.success() {
            return Err(io::Error::other(format!("{} failed; what it said is above", script.display())));
        }
        Ok(Self { root: String::from_utf8_lossy(&output.stdout).trim().into() })
    }

    fn kernel(&self) -> PathBuf {
        self.root.join("usr/bin/linux.uml")
    }

    fn modules(&self) -> io::Result<PathBuf> {
        let all = self.root.join("usr/lib/uml/modules");
        let mut folders = fs::read_dir(&all).map_err(|error| {
            io::Error::new(error.kind(), format!("read {}: {error}; is user-mode-linux installed?", all.display()))
        })?;
        let folder = folders.next().ok_or_else(|| io::Error::other(format!("{} is empty", all.display())))??;
        Ok(folder.path())
    }
}

/// Boots a guest, runs `lab inside ARGUMENTS` in it with its output on ours, and returns the exit status. Everything
/// else that is said goes to `results`.
pub fn run(uml: &Uml, kit: &Path, results: &Path, arguments: &[String], deadline: Duration) -> io::Result<u8> {
    let init = write_init(&uml.modules()?, kit, results, arguments)?;
    let console = File::create(results.join("console.log"))?;
    let processor = Processor::idle()?;
    let mut guest = boot(&uml.kernel(), &init, console, processor.as_ref())?;
    let relay = guest.stdout.take().map(|output| thread::spawn(move || relay(output)));

    let mut ended = || match guest.try_wait() {
        Ok(Some(_)) => Some(Ok(())),
        Ok(None) => None,
        Err(error) => Some(Err(error)),
    };
    let status = results.join("status");
    let over = poll(deadline, || ended().or_else(|| written(&status).then_some(Ok(()))));
    // A guest that has said its last word and does not power off is of no interest.
    let _ = poll(seconds(3), &mut ended);
    // The group first: what it leaves behind would hold the pipe open.
    let _ = killpg(Pid::from_raw(guest.id().cast_signed()), Signal::SIGKILL);
    let _ = guest.wait();
    if let Some(relay) = relay {
        let _ = relay.join();
    }
    match over {
        Some(outcome) => outcome?,
        None => println!("lab: the guest did not end within {deadline:?}, so the watchdog ended it"),
    }
    let status = fs::read_to_string(&status).unwrap_or_default();
    Ok(status.trim().parse().unwrap_or_else(|_| {
        println!("lab: the guest ended without a result; see {}", results.join("console.log").display());
        70
    }))
}

/// One that no other guest of this machine has. A guest has one processor, which its kernel and its processes hand to each
/// other at every system call: across two of the machine's, each of those waits until the other has been woken.
struct Processor {
    number: usize,
    /// Locked as long as the guest runs.
    _taken: File,
}

impl Processor {
    /// None if all have a guest already.
    fn idle() -> io::Result<Option<Self>> {
        let ours = sched_getaffinity(Pid::from_raw(0))?;
        for number in (0..CpuSet::count()).filter(|number| ours.is_set(*number).unwrap_or(false)) {
            let file = File::create(std::env::temp_dir().join(format!("moorline-lab-processor-{number}")))?;
            if file.try_lock().is_ok() {
                return Ok(Some(Self { number, _taken: file }));
            }
        }
        Ok(None)
    }
}

fn written(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.len() > 0)
}

fn boot(kernel: &Path, init: &Path, console: File, processor: Option<&Processor>) -> io::Result<Child> {
    // Each link of the chain dies with the one before it; `sh` stays, for a guest does not like to be pid 1. A newer kernel
    // can catch system calls by seccomp, at half of what ptrace costs; an older one leaves the word to init, which ignores it.
    let kernel = format!(
        "{} mem={MEMORY} rootfstype=hostfs rootflags=/ ro init={} selinux=0 seccomp=auto quiet \
         con=null con0=null,fd:2 con1=null,fd:1; exit $?",
        kernel.display(),
        init.display()
    );
    let pinned =
        processor.map(|processor| ["taskset".to_owned(), "--cpu-list".to_owned(), processor.number.to_string()]);
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .args(pinned.iter().flatten())
        .args(["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", &kernel])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(console)
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("start the guest: {error}; is user-mode-linux installed?"))
        })
}

fn write_init(modules: &Path, kit: &Path, results: &Path, arguments: &[String]) -> io::Result<PathBuf> {
    let head = [("GUEST_MODULES", modules), ("GUEST_KIT", kit), ("GUEST_RESULTS", results)];
    let mut script = String::from("#!/bin/sh\n");
    for (name, path) in head {
        script += &format!("{name}='{}'\n", path.display());
    }
    script += &format!("GUEST_ARGUMENTS='{}'\n", arguments.join(" "));
    script += include_str!("guest-init.sh");
    let path = results.join("init");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The guest's terminal says \r\n.
fn relay(mut from: impl Read) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let text: Vec<u8> = buffer[..count].iter().copied().filter(|byte| *byte != b'\r').collect();
        let mut out = io::stdout().lock();
        // A closed output is no reason to end the guest early.
        let _ = out.write_all(&text).and_then(|()| out.flush());
    }
}
