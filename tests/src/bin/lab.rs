//! `lab run [FILTER]`: every scenario, on this machine's kernel if it has NFS, else in a guest. `--kernel newer`: those
//! that show what only newer kernels do, in a guest that has one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, Subcommand};
use libtest_mimic::{Arguments, ColorSetting};
use moorline_tests::guest::Uml;
use moorline_tests::kit::{self, Sources};
use moorline_tests::runner::Runner;
use moorline_tests::scenarios::{Kernel, Scenario};
use moorline_tests::{bench, demo, guest, machine, record, scenarios};

#[derive(Debug, Parser)]
#[command(about = "Runs moorline against real kernels: servers that die, networks that fail, pods that watch")]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Run scenarios: directly where the kernel has NFS, else in a guest
    Run(Run),
    /// Show moorline at work, told as it happens
    Demo(Run),
    /// Measure what moorline costs, beside its peers: each area, or one
    Bench(Bench),
    /// Make docs/BENCHMARKS.md from the records in docs/bench
    Benchmarks {
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
    },
    /// Name the scenarios
    List,
    /// Make docs/FAULTS.md of what is on record
    Faults {
        #[arg(long, default_value = "tests/record")]
        record: PathBuf,
        #[arg(long, default_value = "docs/FAULTS.md")]
        page: PathBuf,
    },
    /// Run scenarios on this kernel (what `run` does, here or in the guest)
    Inside(Inside),
    /// Be pid 1 of one scenario's machine
    #[command(hide = true)]
    Scenario {
        name: String,
        #[arg(long)]
        kit: PathBuf,
        #[arg(long)]
        results: PathBuf,
        #[arg(long)]
        cgroup: PathBuf,
    },
    /// Be one scenario, on its machine
    #[command(hide = true)]
    Body {
        name: String,
        /// For the demo: in colour
        #[arg(long, env = "MOORLINE_LAB_COLOR")]
        color: bool,
    },
    /// Be a container of a bench, with a copy of a volume
    #[command(hide = true)]
    Copy { target: PathBuf, until: String },
}

#[derive(Debug, clap::Args)]
struct Bench {
    /// What is asked for is an area, by its whole name
    #[command(flatten)]
    run: Run,
    /// Where the records of the figures are kept
    #[arg(long, default_value = "target/bench")]
    records: PathBuf,
    /// Keep the records in docs/bench, and make docs/BENCHMARKS.md anew
    #[arg(long)]
    publish: bool,
    /// What makes clusters
    #[arg(long, default_value = "tests/kube")]
    kube: PathBuf,
}

/// What a machine is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Scenarios,
    Demo,
    Bench,
}

#[derive(Debug, Clone, clap::Args)]
struct Run {
    /// Only scenarios whose name contains this
    filter: Option<String>,
    /// No scenario whose name contains this
    #[arg(long)]
    skip: Option<String>,
    /// The agent's static executable
    #[arg(long, env = "MOORLINE_BIN")]
    moorline: Option<PathBuf>,
    /// The static application of the lab's pods; by default beside this executable
    #[arg(long, env = "MOORLINE_APP")]
    app: Option<PathBuf>,
    #[arg(long, default_value = "manifests")]
    manifests: PathBuf,
    /// Where results are kept
    #[arg(long, default_value = "target/lab")]
    folder: PathBuf,
    /// Seconds until the watchdog ends everything
    #[arg(long, default_value_t = 2400)]
    limit: u64,
    /// Scenarios at once
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// The whole fault matrix and every kill point, and nothing else
    #[arg(long)]
    soak: bool,
    /// Keep what rows of the matrix or kill points saw in this file, and run none that passed already, as things are
    #[arg(long)]
    record: Option<PathBuf>,
    /// For the record: the executable was built with this change for the worse, and rows are done when they failed
    #[arg(long, requires_all = ["record", "commit"])]
    mutation: Option<String>,
    /// For the record: what the executables were built from, if it is not what is here
    #[arg(long)]
    commit: Option<String>,
    /// The kernel to run on, and the scenarios that belong there
    #[arg(long, value_enum, default_value_t = Kernel::Usual)]
    kernel: Kernel,
    /// What fetches the newer kernel
    #[arg(long, default_value = "tests/newer-kernel")]
    newer_kernel: PathBuf,
    /// Use a guest even where the kernel has NFS
    #[arg(long)]
    guest: bool,
    /// Keep the results of a run that passed as well
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, clap::Args)]
struct Inside {
    filter: Option<String>,
    #[arg(long)]
    skip: Option<String>,
    #[arg(long)]
    kit: PathBuf,
    #[arg(long)]
    results: PathBuf,
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    #[arg(long, value_enum, default_value_t = Kernel::Usual)]
    kernel: Kernel,
    #[arg(long)]
    color: bool,
    #[arg(long)]
    soak: bool,
    /// What is asked for is one that has this guest to itself, by its whole name
    #[arg(long)]
    apart: bool,
    #[arg(long)]
    demo: bool,
    #[arg(long)]
    bench: bool,
}

impl Run {
    /// As the runner understands it.
    fn asks_for(&self, scenario: &Scenario) -> bool {
        let named = |part: &String| scenario.name.contains(part.as_str());
        self.filter.as_ref().is_none_or(named) && !self.skip.as_ref().is_some_and(named)
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Sub::Run(options) => run(&options, What::Scenarios, |_| Ok(())),
        Sub::Demo(options) => run(&options, What::Demo, |_| Ok(())),
        Sub::Bench(options) => measure(&options),
        Sub::Benchmarks { docs } => bench::page::write(&docs)
            .map(|path| println!("lab: written: {}", path.display()))
            .map(|()| ExitCode::SUCCESS),
        Sub::List => {
            scenarios::all().for_each(|scenario| println!("{} {:?}", scenario.name, scenario.kernels));
            Ok(ExitCode::SUCCESS)
        }
        Sub::Faults { record, page } => faults(&record, &page),
        Sub::Inside(options) => inside(options),
        Sub::Scenario { name, kit, results, cgroup } => Ok(machine::run(&name, &kit, &results, &cgroup)),
        Sub::Body { name, color } => body(&name, color),
        Sub::Copy { target, until } => {
            bench::copy(&target, &until).map(|()| ExitCode::SUCCESS).map_err(io::Error::from)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("lab: {error}");
        ExitCode::FAILURE
    })
}

fn measure(options: &Bench) -> io::Result<ExitCode> {
    let moorline = sources(&options.run)?.moorline.unwrap_or_default();
    let logs = options.run.folder.with_file_name("bench-cluster");
    let cluster = bench::Cluster { folder: &options.kube, moorline: &moorline, logs: &logs };
    for area in bench::chosen(options.run.filter.as_deref())? {
        let run_of_area = Run { filter: Some(area.name.into()), ..options.run.clone() };
        let folder = if options.publish { Path::new("docs/bench") } else { &options.records };
        println!("lab: {} is measured, for some ten minutes", area.name);
        let ended = run(&run_of_area, What::Bench, |results| bench::keep(area.name, results, &cluster, folder))?;
        if ended != ExitCode::SUCCESS {
            return Ok(ended);
        }
    }
    if options.publish {
        bench::page::write(Path::new("docs"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `take` is given the results of a run that passed.
fn run(options: &Run, what: What, take: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("namespaces and mounts need root; run it with sudo"));
    }
    let folder = options.folder.join(format!("run-{}", std::process::id()));
    let (kit, results) = (folder.join("kit"), folder.join("results"));
    fs::create_dir_all(&results)?;
    kit::assemble(&kit, &sources(options)?)?;
    let on_record = match &options.record {
        Some(file) => {
            let commit = options.commit.clone().map_or_else(record::commit, Ok)?;
            let done = record::done(file, &commit, options.mutation.as_deref())?;
            println!("lab: {} rows are on record and not run again", done.len());
            fs::write(kit.join(DONE), done.into_iter().collect::<Vec<_>>().join("\n"))?;
            Some((file, commit))
        }
        None => None,
    };
    let (folder, kit, results) = (folder.canonicalize()?, kit.canonicalize()?, results.canonicalize()?);

    let limit = Duration::from_secs(options.limit);
    let mut arguments = vec![format!("--jobs={}", options.jobs)];
    arguments.extend(io::IsTerminal::is_terminal(&io::stdout()).then(|| "--color".into()));
    let own = if what == What::Scenarios && !options.soak { guests_of_their_own(options) } else { Vec::new() };
    let own_arguments = arguments.clone();
    arguments.extend(options.filter.clone());
    arguments.extend(options.skip.as_ref().map(|skip| format!("--skip={skip}")));
    arguments.extend(options.soak.then(|| "--soak".into()));
    let (flag, what) = match what {
        What::Scenarios => (None, "scenarios run"),
        What::Demo => (Some("--demo"), "the demo runs"),
        What::Bench => (Some("--bench"), "the bench runs"),
    };
    arguments.extend(flag.map(str::to_owned));
    let together = own.is_empty() || scenarios::chosen(options.kernel, false).any(|each| options.asks_for(each));
    let mut status = if !together {
        0
    } else if options.kernel == Kernel::Newer {
        let uml = uml(options)?;
        println!("lab: {what} in a User Mode Linux guest with a newer kernel");
        arguments.push(format!("--kernel={}", options.kernel));
        guest::run(&uml, &kit, &results, &arguments, limit)?
    } else if !options.guest && kernel_has_nfs() {
        println!("lab: this kernel has NFS: {what} on it, in namespaces of their own");
        directly(&kit, &results, &arguments, limit)?
    } else {
        println!("lab: this kernel has no NFS: {what} in a User Mode Linux guest");
        guest::run(&uml(options)?, &kit, &results, &arguments, limit)?
    };
    for scenario in own {
        println!("lab: {} runs in a guest of its own", scenario.name);
        let results = results.join(format!("guest-of-{}", scenario.name));
        fs::create_dir(&results)?;
        let apart = [scenario.name.to_owned(), "--apart".into(), format!("--kernel={}", options.kernel)];
        let arguments: Vec<String> = own_arguments.iter().cloned().chain(apart).collect();
        status = status.max(guest::run(&uml(options)?, &kit, &results, &arguments, limit)?);
    }
    if let Some((file, commit)) = on_record {
        let taken = record::take_in(file, &results, &commit, options.mutation.as_deref())?;
        println!("lab: {taken} rows went into {}", file.display());
    }
    if status == 0 {
        take(&results)?;
    }
    if status == 0 && !options.keep {
        discard(&folder)?;
    } else {
        discard(&kit)?;
        println!("lab: logs are in {}", results.display());
    }
    Ok(ExitCode::from(status))
}

fn guests_of_their_own(options: &Run) -> Vec<&'static Scenario> {
    scenarios::apart(options.kernel).filter(|scenario| options.asks_for(scenario)).collect()
}

fn uml(options: &Run) -> io::Result<Uml> {
    match options.kernel {
        Kernel::Usual => Ok(Uml::installed()),
        Kernel::Newer => Uml::newer(&options.newer_kernel),
    }
}

fn sources(options: &Run) -> io::Result<Sources> {
    let lab = std::env::current_exe()?;
    let beside = |name: &str| lab.with_file_name(name);
    Ok(Sources {
        app: options.app.clone().unwrap_or_else(|| beside("app")),
        moorline: options.moorline.clone().or_else(|| Some(beside("moorline")).filter(|path| path.exists())),
        manifests: options.manifests.clone(),
        lab,
    })
}

/// Both halves: the client and the server.
fn kernel_has_nfs() -> bool {
    for module in ["nfsv4", "nfsd", "tun", "veth", "bridge", "nf_tables", "sch_netem", "overlay"] {
        // Built in, loaded, or not there: the list of file systems tells.
        let _ = Command::new("modprobe").args(["--quiet", module]).status();
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    ["nfs4", "nfsd"].iter().all(|name| known.split_whitespace().any(|word| word == *name))
}

fn directly(kit: &Path, results: &Path, arguments: &[String], limit: Duration) -> io::Result<u8> {
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "timeout", "--signal=KILL", &limit.as_secs().to_string()])
        .args(["setpriv", "--pdeathsig", "KILL"])
        .arg(kit.join("lab"))
        .args(["inside", "--kit"])
        .args([kit, Path::new("--results"), results])
        .args(arguments)
        .status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[expect(clippy::disallowed_methods, reason = "a folder of this run's copies and logs; mounts of it are elsewhere")]
fn discard(folder: &Path) -> io::Result<()> {
    fs::remove_dir_all(folder)
}

/// In the kit: the rows that are on record, a line each.
const DONE: &str = "done";

fn faults(folder: &Path, page: &Path) -> io::Result<ExitCode> {
    let names: Vec<&str> = scenarios::FAULTS.iter().map(|row| row.name).collect();
    let kills = [Kernel::Usual, Kernel::Newer].map(scenarios::kill_names);
    fs::write(page, record::page(&names, kills.each_ref().map(Vec::as_slice), &record::Records::of(folder)?))?;
    Ok(ExitCode::SUCCESS)
}

fn inside(options: Inside) -> io::Result<ExitCode> {
    let done = fs::read_to_string(options.kit.join(DONE)).unwrap_or_default();
    let runner = Runner::new(options.kit, options.results, options.color)?;
    if options.demo {
        return runner.demo();
    }
    let arguments = Arguments {
        exact: options.bench || options.apart,
        filter: options.filter,
        skip: options.skip.into_iter().collect(),
        test_threads: Some(options.jobs),
        color: Some(if options.color { ColorSetting::Always } else { ColorSetting::Never }),
        ..Arguments::default()
    };
    if options.bench {
        return Ok(runner.run(bench::AREAS.iter(), &arguments));
    }
    if options.apart {
        return Ok(runner.run(scenarios::apart(options.kernel), &arguments));
    }
    let chosen = scenarios::chosen(options.kernel, options.soak);
    Ok(runner.run(chosen.filter(|scenario| !done.lines().any(|name| name == scenario.name)), &arguments))
}

fn body(name: &str, color: bool) -> io::Result<ExitCode> {
    if name == "demo" {
        demo::run(color);
        return Ok(ExitCode::SUCCESS);
    }
    let scenario = scenarios::find(name).ok_or_else(|| io::Error::other(format!("{name}: no such scenario")))?;
    (scenario.run)();
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Two options of one name are found out only where they are used.
    #[test]
    fn the_options_agree_with_each_other() {
        Cli::command().debug_assert();
    }
}
