//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use humantime::Duration;
use moorline_agent::hands::Label;

/// Remote storage, moored to Kubernetes nodes: NFS through WireGuard.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node's agent: tunnels, mounts, recovery, and the CSI node service.
    Agent(Agent),
    /// Show what the agent on this node serves, and how it is.
    Status(Status),
    /// Tell what happened on this node lately: publications, servers, failovers, and what was lost.
    Events(Events),
    /// Run the controller: volumes for claims, status of Gateways and Shares, and what nodes hold that are no more.
    Controller(Controller),
    /// Turn PersistentVolumes of nfs, or a provider's list of shares, into objects of ours: from stdin to stdout.
    Convert(Convert),
    /// Take everything out of the cluster: waits until no pod has a volume any more, and takes none away.
    Uninstall(Uninstall),
    /// Print the CustomResourceDefinitions, for `kubectl apply -f -`.
    Crds,
}

#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// The directory with the YAML of Gateways and Shares; it is watched.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: PathBuf,
    /// This node's name, as Kubernetes knows it.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node: String,
    /// The host's directory for our sockets and mounts.
    #[arg(long, value_name = "DIR", default_value = "/run/moorline")]
    pub(crate) run_dir: PathBuf,
    /// Kubelet's directory on the host.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub(crate) kubelet_dir: PathBuf,
    /// Where /healthz, /readyz and /metrics are answered over HTTP.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9810")]
    pub(crate) health_address: SocketAddr,
    /// When a server is lost, each node waits up to so long before it goes to another: not all at once.
    #[arg(long, value_name = "DURATION", env = "MOORLINE_RECOVERY_JITTER", default_value = "5s")]
    pub(crate) recovery_jitter: Duration,
    /// How long kubelet may take to give back the volumes of a pod that is gone; then they are detached.
    #[arg(long, value_name = "DURATION", env = "MOORLINE_ORPHAN_PATIENCE", default_value = "2m")]
    pub(crate) orphan_patience: Duration,
    /// Where the node has an SELinux policy, shares are mounted with this label, which its containers must be allowed to read and
    /// write.
    #[arg(long, value_name = "LABEL", env = "MOORLINE_SELINUX_LABEL", default_value = Label::DEFAULT)]
    pub(crate) selinux_label: Label,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// YAML or JSON; - is stdin.
    #[arg(short = 'f', long, value_name = "FILE", default_value = "-")]
    pub(crate) filename: PathBuf,
    /// A namespace whose pods may use what is converted, beside those of its claims. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Vec<String>,
    /// The address of a server that is given by its name. May be repeated.
    #[arg(long, value_name = "NAME=IP", value_parser = address)]
    pub(crate) address: Vec<(String, IpAddr)>,
}

#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Say what would be waited for and deleted, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

fn address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("write it as NAME=IP, as nas.example=10.0.0.7")?;
    let address = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
    Ok((name.to_owned(), address))
}

#[derive(Debug, Args)]
pub(crate) struct Controller {
    /// What tells this one from its likes: one of them acts.
    #[arg(long, env = "POD_NAME")]
    pub(crate) name: String,
    /// Serve the CSI Controller service as well, at this socket, for callers other than Kubernetes' claims.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) csi: Option<PathBuf>,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/moorline/agent.sock")]
    pub(crate) socket: PathBuf,
    /// Print everything as JSON; with --watch, a line for each change.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it live, until Ctrl-C: drawn in place on a terminal, anew for each change elsewhere.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/moorline/agent.sock")]
    pub(crate) socket: PathBuf,
    /// Tell as well what happens from now on, until Ctrl-C.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print each as a line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
