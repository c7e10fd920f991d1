//! `moorline status`.

use std::time::Duration;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use moorline_agent::api::{self, AskError};
use moorline_shared::health::Health;
use moorline_shared::report::{PublicationState, Report, ServerState, TunnelState};

use crate::cli::Status;
use crate::exit::Exit;

pub(crate) fn run(status: &Status) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = match runtime {
        Ok(runtime) => runtime.block_on(api::status(&status.socket)),
        Err(error) => {
            eprintln!("moorline: start the runtime: {error}");
            return Exit::Failed;
        }
    };
    match report {
        Ok(report) if status.json => match serde_json::to_string_pretty(&report) {
            Ok(text) => {
                println!("{text}");
                Exit::Success
            }
            Err(error) => {
                eprintln!("moorline: write the report as JSON: {error}");
                Exit::Failed
            }
        },
        Ok(report) => {
            show(&report);
            Exit::Success
        }
        Err(error) => {
            eprintln!("moorline: {}", moorline_agent::chain(&error));
            if matches!(error, AskError::Connect { .. }) { Exit::NoAgent } else { Exit::Failed }
        }
    }
}

fn show(report: &Report) {
    println!("node {}, moorline {}\n", report.node, report.version);
    let mut shares = table("SHARES", &["share", "access", "gateway", "target", "pods"]);
    for share in &report.shares {
        let target = share.target.clone().unwrap_or_else(|| "-".into());
        shares.add_row([&share.name, &share.access, &share.gateway, &target, &share.publications.to_string()]);
    }
    println!("{shares}\n");
    let mut mounts = table("MOUNTS", &["share", "target", "mode", "health", "copies in containers"]);
    for mount in &report.mounts {
        mounts.add_row([
            Cell::new(&mount.share),
            Cell::new(&mount.target),
            Cell::new(mode(mount.read_only)),
            Cell::new(format!("{:?}", mount.health)).fg(health_colour(mount.health)),
            Cell::new(mount.copies),
        ]);
    }
    println!("{mounts}\n");
    let mut publications = table("PUBLICATIONS", &["namespace", "pod", "share", "mode", "state"]);
    for publication in &report.publications {
        publications.add_row([
            Cell::new(&publication.namespace),
            Cell::new(&publication.pod),
            Cell::new(&publication.share),
            Cell::new(mode(publication.read_only)),
            Cell::new(format!("{:?}", publication.state)).fg(match publication.state {
                PublicationState::Published => Color::Green,
                PublicationState::Publishing | PublicationState::Unpublishing => Color::Yellow,
            }),
        ]);
    }
    println!("{publications}\n");
    let mut tunnels =
        table("TUNNELS", &["gateway", "target", "endpoint", "tunnel", "server", "last handshake", "sent", "received"]);
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
    println!("{tunnels}");
    let waiting = report.shares.iter().filter_map(|share| share.waiting.as_ref());
    for line in waiting.chain(&report.problems) {
        println!("\n! {line}");
    }
}

fn table(title: &str, columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    println!("{title}");
    table.set_header(columns.iter().map(|column| Cell::new(column.to_uppercase()).add_attribute(Attribute::Dim)));
    table
}

fn mode(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "read-write" }
}

fn health_colour(health: Health) -> Color {
    match health {
        Health::Healthy => Color::Green,
        Health::Mounting | Health::Unmounting | Health::FailingOver => Color::Yellow,
        Health::Hung | Health::Fenced => Color::Red,
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
