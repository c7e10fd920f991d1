//! The one executable. Its links, such as `moorline-agent`, are subcommands told apart by argv[0].

mod cli;
mod events;
mod exit;
mod output;
mod screen;
mod status;
mod watch;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use cli::{Agent, Cli, Command, Controller, Convert, LogFormat};
use exit::Exit;
use moorline_agent::app::{self, Settings};
use moorline_agent::{hands, killpoint};
use moorline_control::convert::{self, Hints};
use moorline_control::{controller, crds, uninstall};
use output::Failure;
use tracing::error;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    killpoint::arm();
    let arguments: Vec<OsString> = env::args_os().collect();
    // Before anything else: a hand must have one thread, and needs none of what follows.
    if arguments.get(1).is_some_and(|argument| argument == hands::SUBCOMMAND) {
        return hands::main(arguments.get(2).and_then(|agent| agent.to_str()?.parse().ok()));
    }
    let cli = match Cli::try_parse_from(by_link(arguments)) {
        Ok(cli) => cli,
        Err(answer) => {
            // Nobody may read it; the code says as much.
            let _ = answer.print();
            return if answer.use_stderr() { Exit::Usage } else { Exit::Success }.into();
        }
    };
    let exit = match cli.command {
        Command::Agent(agent) => run_agent(agent),
        Command::Status(status) => status::run(&status),
        Command::Events(events) => events::run(&events),
        Command::Controller(controller) => run_controller(controller),
        Command::Convert(wanted) => output::run(async { output::print(&converted(&wanted)?) }),
        Command::Uninstall(wanted) => {
            output::run(async { Ok(uninstall::run(wanted.dry_run, |line| println!("{line}")).await?) })
        }
        Command::Crds => output::run(async { output::print(&crds::yaml()?) }),
    };
    exit.into()
}

/// `moorline-agent --config X` is `moorline agent --config X`.
fn by_link(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let link = arguments
        .first()
        .and_then(|path| Path::new(path).file_name()?.to_str()?.strip_prefix("moorline-").map(OsString::from));
    if let Some(subcommand) = link {
        arguments.insert(1, subcommand);
    }
    arguments
}

fn run_agent(agent: Agent) -> Exit {
    moorline_sys::memory::keep_little();
    start_logging(agent.log_format);
    let settings = Settings {
        config: agent.config,
        node: agent.node,
        run: agent.run_dir,
        kubelet: agent.kubelet_dir,
        health: agent.health_address,
        recovery_jitter: agent.recovery_jitter.into(),
        orphan_patience: agent.orphan_patience.into(),
        selinux_label: agent.selinux_label,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(app::run(settings)),
        Err(error) => {
            error!("start the runtime: {error}");
            return Exit::Failed;
        }
    };
    match outcome {
        Ok(()) => Exit::Success,
        Err(error) => {
            error!("{}", moorline_agent::chain(&error));
            Exit::of(&error)
        }
    }
}

fn converted(wanted: &Convert) -> Result<String, Failure> {
    let file = &wanted.filename;
    let input = if file.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(file) };
    let input = input.map_err(|error| Failure::Read(file.display().to_string(), error))?;
    let hints = Hints { namespaces: wanted.namespace.clone(), addresses: wanted.address.iter().cloned().collect() };
    Ok(convert::convert(&input, &hints)?)
}

fn run_controller(wanted: Controller) -> Exit {
    start_logging(wanted.log_format);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!("start the runtime: {error}");
            return Exit::Failed;
        }
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = controller::run(wanted.name, wanted.csi) => outcome.map_err(|error| moorline_agent::chain(&error)),
            signal = output::interrupted() => signal.map_err(|error| format!("wait for signals: {error}")),
        }
    });
    match outcome {
        Ok(()) => Exit::Success,
        Err(said) => {
            error!("{said}");
            Exit::Failed
        }
    }
}

fn start_logging(format: LogFormat) {
    // The WireGuard library warns of each handshake that a dead peer does not answer; the tunnel says it better, once.
    // So does the Kubernetes library of each try at an API server that is away.
    let filter = env::var("MOORLINE_LOG").unwrap_or("info,boringtun=off,kube_client=off,kube_runtime=off".into());
    let filter = EnvFilter::builder().parse_lossy(filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Human => builder.with_target(false).init(),
    }
    // As the log's other lines, so that who reads them by machine can read this one too.
    std::panic::set_hook(Box::new(|bug| error!("a bug: {bug}")));
}
