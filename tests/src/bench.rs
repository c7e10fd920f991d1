//! `lab bench`: what moorline costs, measured beside its peers in one run, on the machine that every scenario gets.
//!
//! ```text
//!  lab bench AREA ── guest ── machine: the area measures, and writes figures.json
//!        ├─ for AREA kubernetes: adds what a cluster's pods felt
//!        └─ adds what it was measured on, prints the table, writes target/bench/AREA.json
//! ```

mod bare;
mod cluster;
mod figures;
mod kubernetes;
mod mount;
pub mod page;
pub mod record;

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::scenarios::{Scenario, scenario};
use crate::wait::seconds;
use record::Record;

pub use cluster::Cluster;
pub use mount::copy;

/// What an area leaves in its results folder.
pub const FIGURES: &str = "figures.json";

/// Each figure is the median of so many runs, in each of which everything is measured once.
pub const RUNS: usize = 5;

/// The areas that there are. The deadline of each leaves room for a guest's start and end within 20 minutes.
pub const AREAS: &[Scenario] = &[
    Scenario { deadline: seconds(1140), ..scenario("mount", mount::run) },
    Scenario { deadline: seconds(300), ..scenario(KUBERNETES, kubernetes::run) },
];

const KUBERNETES: &str = "kubernetes";

/// The areas that were asked for: all of them, or one.
pub fn chosen(area: Option<&str>) -> io::Result<Vec<&'static Scenario>> {
    let chosen: Vec<_> = AREAS.iter().filter(|known| area.is_none_or(|area| known.name == area)).collect();
    if chosen.is_empty() {
        let known: Vec<_> = AREAS.iter().map(|area| area.name).collect();
        let message = format!("there is no area {}; there are: {}", area.unwrap_or_default(), known.join(", "));
        return Err(io::Error::other(message));
    }
    Ok(chosen)
}

/// Takes what an area measured from its results, adds what takes a cluster, prints it, and keeps it in `folder`.
pub fn keep(area: &str, results: &Path, cluster: &Cluster<'_>, folder: &Path) -> io::Result<()> {
    let mut record = Record::read(&results.join(area).join(FIGURES))?;
    if area == KUBERNETES {
        cluster.add_to(&mut record)?;
    }
    record.about.commit = commit()?;
    record.about.cpu = cpu();
    println!("{}", page::table(&record, page::Style::Terminal));
    let path = folder.join(format!("{area}.json"));
    fs::create_dir_all(folder)?;
    record.write(&path)?;
    println!("lab: written to {}", path.display());
    Ok(())
}

fn commit() -> io::Result<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() { Ok(said) } else { Err(io::Error::other(format!("git {arguments:?} failed"))) }
    };
    let changed =
        if git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() { "" } else { " with changes" };
    Ok(git(&["rev-parse", "--short=12", "HEAD"])? + changed)
}

/// The real machine's, as a guest does not know it.
fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    format!("{} × {count}", model.unwrap_or("unknown"))
}
