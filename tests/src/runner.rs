//! Runs scenarios side by side, each on a machine of its own, each with a deadline.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{PoisonError, RwLock};
use std::thread;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::machine::VERDICT;
use crate::record::Seen;
use crate::scenarios::{self, Scenario};
use crate::wait::{poll, seconds};

#[derive(Debug, Clone)]
pub struct Runner {
    pub kit: PathBuf,
    pub results: PathBuf,
    /// Where cgroup v2 is mounted.
    pub cgroups: PathBuf,
    pub color: bool,
}

impl Runner {
    pub fn new(kit: PathBuf, results: PathBuf, color: bool) -> io::Result<Self> {
        let mounts = crate::mounts::of("self");
        let cgroups = mounts.into_iter().find(|mount| mount.kind == "cgroup2");
        let missing = || io::Error::other("find cgroup v2: not mounted; mount -t cgroup2 cgroup2 /sys/fs/cgroup");
        Ok(Self { kit, results, cgroups: PathBuf::from(cgroups.ok_or_else(missing)?.point), color })
    }

    pub fn run(self, scenarios: impl Iterator<Item = &'static Scenario>, arguments: &Arguments) -> ExitCode {
        for controller in ["cpu", "memory", "pids", "io"] {
            // Delegation is a courtesy: runc does without what is not there.
            let _ = fs::write(self.cgroups.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        let trials = scenarios.map(|scenario| {
            let runner = self.clone();
            Trial::test(scenario.name, move || in_turn(scenario, || runner.scenario(scenario)).map_err(Failed::from))
        });
        libtest_mimic::run(arguments, trials.collect()).exit_code()
    }

    fn scenario(&self, scenario: &Scenario) -> Result<(), String> {
        let results = self.results.join(scenario.name);
        let failed = |action: &str, error: io::Error| format!("{action}: {error}");
        fs::create_dir_all(&results).map_err(|error| failed("make the results folder", error))?;
        let mut machine =
            boot_logged(self, scenario.name, &results).map_err(|error| failed("start the scenario", error))?;

        let verdict = poll(scenario.deadline, || {
            let ended = matches!(machine.try_wait(), Ok(Some(_)));
            let verdict = fs::read_to_string(results.join(VERDICT)).ok().filter(|text| !text.is_empty());
            verdict.or_else(|| ended.then(|| "its machine could not be built".into()))
        });
        if verdict.is_none() {
            // What was asked for is a report: one that cannot be written must not hide the failure itself.
            let _ = fs::write(results.join("hung.log"), processes(scenario.name));
        }
        // A machine that cleared up ends at once. One with a process that waits in the kernel for a dead server does not
        // end, whatever is sent to it: it is left behind, and ends with the guest.
        let over = poll(seconds(4), || machine.try_wait().ok().flatten());
        if over.is_none() {
            let _ = machine.kill();
        }
        if scenarios::is_row(scenario.name) {
            // What was asked for is a verdict: a record that can't be written is one that is not there.
            let _ = Seen::keep(&results, verdict.as_deref().unwrap_or("hung"));
        }
        match verdict.as_deref() {
            Some("passed") => Ok(()),
            Some(other) => Err(report(&results, other)),
            None => {
                let seen = [("hung.log", 40), ("agent.log", 20), ("output.log", 60)];
                let end = |(file, lines)| format!("--- {file} ends in\n{}", tail(&results.join(file), lines));
                let verdict = format!("hung: no result within {:?}", scenario.deadline);
                Err(std::iter::once(verdict).chain(seen.map(end)).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// The demo, on a machine like any scenario's, with its output on ours.
    pub fn demo(&self) -> io::Result<ExitCode> {
        let results = self.results.join("demo");
        fs::create_dir_all(&results)?;
        let mut machine = self.boot("demo", &results, Stdio::inherit(), Stdio::inherit())?;
        let verdict =
            poll(seconds(120), || fs::read_to_string(results.join(VERDICT)).ok().filter(|text| !text.is_empty()));
        let _ = poll(seconds(2), || machine.try_wait().ok().flatten());
        let _ = machine.kill();
        Ok(if verdict.as_deref() == Some("passed") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn boot(&self, name: &str, results: &Path, stdout: Stdio, stderr: Stdio) -> io::Result<Child> {
        let group = self.cgroups.join(format!("lab-{name}"));
        fs::create_dir_all(&group)?;
        Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--net", "--uts", "--ipc"])
            .arg(self.kit.join("lab"))
            .args(["scenario", name, "--kit"])
            .args([&self.kit, Path::new("--results"), results, Path::new("--cgroup"), &group])
            .env("MOORLINE_LAB_COLOR", if self.color { "true" } else { "false" })
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
    }
}

/// The write side is one scenario's alone.
static GUEST: RwLock<()> = RwLock::new(());

fn in_turn<T>(scenario: &Scenario, run: impl FnOnce() -> T) -> T {
    // There is nothing behind the lock that a panic could have left half done.
    if scenario.alone {
        let _all = GUEST.write().unwrap_or_else(PoisonError::into_inner);
        run()
    } else {
        let _some = GUEST.read().unwrap_or_else(PoisonError::into_inner);
        run()
    }
}

fn boot_logged(runner: &Runner, name: &str, results: &Path) -> io::Result<Child> {
    let output = File::create(results.join("output.log"))?;
    runner.boot(name, results, output.try_clone()?.into(), output.into())
}

/// Every thread, and where in the kernel those are that cannot be interrupted, the scenario itself, and what it runs. Of a process
/// whose memory is held by who hangs not even the command line can be read: each file has a moment.
fn processes(scenario: &str) -> String {
    let all: Vec<Thread> =
        directories("/proc").flat_map(|process| directories(process.join("task"))).filter_map(thread).collect();
    let itself =
        all.iter().find(|thread| thread.command.ends_with(&format!("body {scenario}"))).map(|thread| thread.process);
    let mut text = String::from("process parent thread state command\n");
    for Thread { process, parent, number, state, command, .. } in &all {
        text += &format!("{process} {parent} {number} {state} {command}\n");
    }
    let asked = all
        .iter()
        .filter(|it| it.state == 'D' || itself.is_some_and(|itself| it.process == itself || it.parent == itself));
    for Thread { number, state, command, path, .. } in asked {
        text += &format!("\n{number} {state} {command}\n{}\n", read_in_time(path.join("stack")));
    }
    text
}

struct Thread {
    process: i32,
    parent: i32,
    number: i32,
    state: char,
    command: String,
    path: PathBuf,
}

fn thread(path: PathBuf) -> Option<Thread> {
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let (state, parent) = (words.next()?.chars().next()?, words.next()?.parse().ok()?);
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let process = path.parent()?.parent()?.file_name()?.to_str()?.parse().ok()?;
    let line = read_in_time(path.join("cmdline")).replace('\0', " ");
    let command = if line.trim().is_empty() { format!("[{name}]") } else { line.trim().to_owned() };
    Some(Thread { process, parent, number, state, command, path })
}

fn directories(path: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let numbered = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    numbered.map(|entry| entry.path())
}

fn read_in_time(path: PathBuf) -> String {
    let reading = thread::spawn(move || fs::read_to_string(path).unwrap_or_default());
    match poll(seconds(1), || reading.is_finished().then_some(())) {
        Some(()) => reading.join().unwrap_or_default(),
        None => "(can't be read: somebody holds it)".to_owned(),
    }
}

fn report(results: &Path, verdict: &str) -> String {
    [verdict.to_owned(), tail(&results.join("output.log"), 60)].join("\n")
}

fn tail(file: &Path, count: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
