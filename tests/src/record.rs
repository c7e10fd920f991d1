//! What the soak saw: a line of JSON for each row of the fault matrix, each kill point and each stretch of the simulator's
//! seeds, kept in the repository, and the page made of them.

mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Op};

pub use page::page;

/// Where a row leaves what was seen, in its results.
pub const SEEN: &str = "seen.json";

/// What a row depends on. Other changes leave it as it was, as those of the simulator do, which is in no agent.
const SOURCES: [&str; 10] = [
    "agent",
    ":!agent/src/simulation",
    "moorline",
    "shared",
    "sys",
    "tunnel",
    "manifests",
    "tests/src",
    "Cargo.lock",
    "Cargo.toml",
];

/// What a row's application saw, from its own log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub kernel: String,
    /// "passed", or how it ended.
    pub verdict: String,
    /// Read and found whole.
    pub bytes_verified: u64,
    /// Written, and acknowledged by fsync or msync.
    pub acknowledged: u64,
    /// How often calls ended with which error.
    pub errors: BTreeMap<String, u64>,
    /// Of the calls that ended.
    pub longest_call_s: f64,
    /// Between two successes of what is opened anew each time.
    pub longest_gap_s: f64,
    pub neighbour_errors: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub row: String,
    /// Which change for the worse was made to the engine, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutation: Option<String>,
    /// The last commit that could make a difference.
    pub commit: String,
    #[serde(flatten)]
    pub seen: Seen,
}

/// A stretch of the simulator's seeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds {
    pub first: u64,
    pub end: u64,
    pub failed: u64,
    pub commit: String,
}

/// All that is on record.
#[derive(Debug)]
pub struct Records {
    pub matrix: Vec<Row>,
    pub mutations: Vec<Row>,
    /// On the usual kernel, and on the newer one.
    pub kills: [Vec<Row>; 2],
    pub seeds: Vec<Seeds>,
}

impl Records {
    pub fn of(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            matrix: read(&folder.join("faults.jsonl"))?,
            mutations: read(&folder.join("mutations.jsonl"))?,
            kills: [read(&folder.join("kills.jsonl"))?, read(&folder.join("kills-newer.jsonl"))?],
            seeds: read_lines(&folder.join("seeds.jsonl"))?,
        })
    }
}

impl Seen {
    /// From the events of the application and of its neighbour, a JSON line each.
    pub fn of(verdict: &str, application: &str, neighbour: &str) -> Self {
        let mut seen = Self { verdict: verdict.into(), kernel: release(), ..Self::default() };
        let mut last_success: BTreeMap<(Op, String), f64> = BTreeMap::new();
        for event in events(application) {
            seen.longest_call_s = seen.longest_call_s.max(event.took);
            if !event.succeeded() {
                *seen.errors.entry(error(&event)).or_default() += 1;
                continue;
            }
            match event.op {
                Op::Read | Op::Keep => seen.bytes_verified += event.bytes,
                Op::Map if !event.path.ends_with("mapped") => seen.bytes_verified += event.bytes,
                Op::Write | Op::Map => seen.acknowledged += 1,
                Op::Sync | Op::List | Op::Dirty | Op::Trespass | Op::Search => {}
            }
            let anew = event.op == Op::Read || (event.op == Op::Write && !event.path.ends_with("held"));
            if let Some(before) = last_success.insert((event.op, event.path), event.at).filter(|_| anew) {
                seen.longest_gap_s = seen.longest_gap_s.max(event.at - before);
            }
        }
        seen.longest_call_s = tenths(seen.longest_call_s);
        seen.longest_gap_s = tenths(seen.longest_gap_s);
        seen.neighbour_errors = events(neighbour).filter(|event| !event.succeeded()).count() as u64;
        seen
    }

    /// Of a scenario that has ended, from what it left in its results.
    pub fn keep(results: &Path, verdict: &str) -> io::Result<()> {
        let log = |pod: &str| fs::read_to_string(results.join(format!("pod-{pod}.log"))).unwrap_or_default();
        let seen = Self::of(verdict, &log("pod"), &log("neighbour"));
        fs::write(results.join(SEEN), serde_json::to_vec(&seen)?)
    }
}

fn events(log: &str) -> impl Iterator<Item = Event> {
    // The last line may be half written.
    log.lines().filter_map(|line| serde_json::from_str(line).ok())
}

fn error(event: &Event) -> String {
    match Errno::from_raw(event.errno) {
        _ if event.errno == 0 => "not whole".into(),
        Errno::UnknownErrno => event.errno.to_string(),
        known => format!("{known:?}"),
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The rows in a file; none where there is no file.
pub fn read(file: &Path) -> io::Result<Vec<Row>> {
    read_lines(file)
}

fn read_lines<T: DeserializeOwned>(file: &Path) -> io::Result<Vec<T>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let row = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| io::Error::other(format!("{}:{}: {error}", file.display(), number + 1)))
    };
    text.lines().enumerate().filter(|(_, line)| !line.is_empty()).map(row).collect()
}

/// Takes what a run left in its results into the file: a row that was there already is replaced.
pub fn take_in(file: &Path, results: &Path, commit: &str, mutation: Option<&str>) -> io::Result<usize> {
    let mut rows = read(file)?;
    let mut taken = 0;
    for entry in fs::read_dir(results)? {
        let entry = entry?;
        let Ok(text) = fs::read_to_string(entry.path().join(SEEN)) else { continue };
        let (row, mutation) = (entry.file_name().to_string_lossy().into_owned(), mutation.map(str::to_owned));
        rows.retain(|other| (&other.row, &other.mutation) != (&row, &mutation));
        rows.push(Row { row, mutation, commit: commit.into(), seen: serde_json::from_str(&text)? });
        taken += 1;
    }
    rows.sort_by(|a, b| (&a.mutation, &a.row).cmp(&(&b.mutation, &b.row)));
    let mut text = String::new();
    for row in &rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    let fresh = file.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, file)?;
    Ok(taken)
}

/// The rows that need not be run again.
pub fn done(file: &Path, commit: &str, mutation: Option<&str>) -> io::Result<BTreeSet<String>> {
    let rows = read(file)?.into_iter();
    // Under a mutation a row has done its work when it failed; without one, when it passed.
    let is_done = |row: &Row| {
        row.commit == commit
            && row.mutation.as_deref() == mutation
            && (row.seen.verdict == "passed") == mutation.is_none()
    };
    Ok(rows.filter(is_done).map(|row| row.row).collect())
}

/// The last commit that touched what rows depend on; with a mark that no later run has, if there is more than that.
pub fn commit() -> io::Result<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).arg("--").args(SOURCES).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("ask git for the commit: {}", said.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["log", "-1", "--format=%h", "--abbrev=12"])?;
    let clean = git(&["status", "--porcelain"])?.is_empty();
    Ok(if clean { commit } else { format!("{commit}+{}", std::process::id()) })
}

#[cfg(test)]
mod tests;
