//! Runs seeds of the simulator, or tells the story of one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use moorline_agent::simulation::run;
use moorline_agent::simulation::sweep::{Sweep, sweep};

#[derive(Debug, Parser)]
struct Arguments {
    /// One seed, or a range as 0..1000
    #[arg(long, default_value = "0..1000")]
    seeds: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Seconds after which no seed is begun
    #[arg(long)]
    limit: Option<u64>,
    /// A file that says where the next call goes on
    #[arg(long)]
    resume: Option<PathBuf>,
    /// Failures after which it ends
    #[arg(long, default_value_t = 5)]
    failures: usize,
    /// Tell what happens; with one seed
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let parsed = match arguments.seeds.split_once("..") {
        Some((first, end)) => first.parse().ok().zip(end.parse().ok()),
        None => arguments.seeds.parse().ok().map(|seed: u64| (seed, seed + 1)),
    };
    let Some((first, end)) = parsed else {
        eprintln!("--seeds {}: give one number, or two as 0..1000", arguments.seeds);
        return ExitCode::FAILURE;
    };
    if arguments.trace {
        let told = run(first, true);
        told.story.iter().for_each(|line| println!("{line}"));
        println!("seed {first}: {}", told.broken.as_deref().unwrap_or("all invariants hold"));
        return if told.broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let wanted = Sweep {
        seeds: first..end,
        threads: arguments.threads,
        limit: arguments.limit.map(Duration::from_secs),
        resume: arguments.resume,
        failures: arguments.failures,
    };
    let swept = sweep(&wanted, |failure| println!("{failure}"));
    println!("{} seeds run, {} failed; the next is {} of {end}", swept.runs, swept.failures.len(), swept.next);
    if swept.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
