//! `moorline status`.

use std::time::Duration;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use moorline_agent::api;
use moorline_shared::health::Health;
use moorline_shared::report::{PublicationState, Report, ServerState, TunnelState};

use crate::cli::Status;
use crate::exit::Exit;
use crate::output::{self, ask, print};
use crate::watch;

pub(crate) fn run(status: &Status) -> Exit {
    if status.watch {
        return watch::run(status);
    }
    output::run(async {
        let report = ask(api::status(&status.socket)).await?;
        print(&if status.json { serde_json::to_string_pretty(&report)? } else { show(&report) })
    })
}

/// The table.
pub(crate) fn show(report: &Report) -> String {
    let mut text = format!("node {}, moorline {}\n\n", report.node, report.version);
    let mut shares = table(&["share", "access", "policy", "gateway", "target", "pods"]);
    for share in &report.shares {
        let target = share.target.clone().unwrap_or_else(|| "-".into());
        shares.add_row([
            &share.name,
            &share.access,
            &share.policy,
            &share.gateway,
            &target,
            &share.publications.to_string(),
        ]);
    }
    text += &format!("SHARES\n{shares}\n\n");
    let mut mounts = table(&["share", "target", "mode", "health", "copies in containers"]);
    for mount in &report.mounts {
        mounts.add_row([
            Cell::new(&mount.share),
            Cell::new(&mount.target),
            Cell::new(mode(mount.read_only)),
            Cell::new(format!("{:?}", mount.health)).fg(health_colour(mount.health)),
            Cell::new(mount.copies),
        ]);
    }
    text += &format!("MOUNTS\n{mounts}\n\n");
    let mut publications = table(&["namespace", "pod", "share", "mode", "state"]);
    for publication in &report.publications {
        publications.add_row([
            Cell::new(if publication.node { "(node)" } else { &publication.namespace }),
            Cell::new(if publication.node { &publication.target_path } else { &publication.pod }),
            Cell::new(&publication.share),
            Cell::new(mode(publication.read_only)),
            Cell::new(format!("{:?}", publication.state)).fg(match publication.state {
                PublicationState::Published => Color::Green,
                PublicationState::Publishing | PublicationState::Unpublishing => Color::Yellow,
            }),
        ]);
    }
    text += &format!("PUBLICATIONS\n{publications}\n\n");
    let mut tunnels =
        table(&["gateway", "target", "endpoint", "tunnel", "server", "last handshake", "sent", "received"]);
    for tunnel in &report.tunnels {
        tunnels.add_row([
            Cell::new(&tunnel.gateway),
            Cell::new(&tunnel.target),
            Cell::new(&tunnel.endpoint),
            Cell::new(format!("{:?}", tunnel.state)).fg(match tunnel.state {
                TunnelState::Attached => Color::Green,
                TunnelState::Detached => Color::Yellow,
                TunnelState::Fenced => Color::Red,
            }),
            Cell::new(format!("{:?}", tunnel.server)).fg(match tunnel.server {
                ServerState::Alive => Color::Green,
                ServerState::Unknown => Color::Yellow,
                ServerState::Away => Color::Red,
            }),
            Cell::new(tunnel.handshake_age.map_or("never".into(), ago)),
            Cell::new(bytes(tunnel.sent_bytes)),
            Cell::new(bytes(tunnel.received_bytes)),
        ]);
    }
    text += &format!("TUNNELS\n{tunnels}\n");
    let waiting = report.shares.iter().filter_map(|share| share.waiting.as_ref());
    for line in waiting.chain(&report.problems) {
        text += &format!("\n! {line}\n");
    }
    text
}

fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| Cell::new(column.to_uppercase()).add_attribute(Attribute::Dim)));
    table
}

fn mode(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "read-write" }
}

fn health_colour(health: Health) -> Color {
    match health {
        Health::Healthy => Color::Green,
        Health::Unmounting | Health::FailingOver => Color::Yellow,
        Health::Hung | Health::Stale | Health::Fenced => Color::Red,
    }
}

fn ago(age: Duration) -> String {
    format!("{} s ago", age.as_secs())
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    if unit == "B" { format!("{count} B") } else { format!("{size:.1} {unit}") }
}
