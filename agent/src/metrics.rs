//! Every metric: its name, unit and meaning, and where its value comes from. docs/METRICS.md is made from this file.
//!
//! Labels take their values from objects and from enums. None is ever a pod's name or anything else without a bound.

use std::fmt::{self, Write};
use std::time::Duration;

use moorline_shared::happening::{Happening, action};
use moorline_shared::plan::Step;
use moorline_shared::report::{Report, ServerState, TunnelState};
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// What a metric is.
struct Definition {
    name: &'static str,
    shape: Shape,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! define {
    ($($constant:ident: $name:literal $shape:ident of $unit:literal by $labels:expr, $meaning:literal;)*) => {
        $(const $constant: Definition = Definition {
            name: $name, shape: Shape::$shape, unit: $unit, labels: &$labels, meaning: $meaning,
        };)*
        const ALL: &[Definition] = &[$($constant),*];
    };
}

define! {
    BUILD: "moorline_build_info" Gauge of "" by ["version"],
        "Always 1; the label says which version runs";
    ROUND_AGE: "moorline_loop_round_age_seconds" Gauge of "seconds" by [],
        "Since the loop's last round; over 15 it is stuck, and /healthz says so";
    ROUNDS: "moorline_loop_rounds_total" Counter of "rounds" by [],
        "Rounds of the loop: two a second while a volume is there, one every five seconds otherwise, and one for what comes in";
    ROUND_TIME: "moorline_loop_busy_seconds_total" Counter of "seconds" by [],
        "Time that the loop spent in its rounds, which wait for nothing";
    PROBLEMS: "moorline_problems" Gauge of "problems" by [],
        "What is wrong with the objects and which steps fail, as `moorline status` lists it";

    SERVER_UP: "moorline_server_up" Gauge of "" by ["gateway", "target"],
        "1 if the target's NFS server answers, 0 if it is away or has not answered yet";
    SERVER_PROBE: "moorline_server_probe_seconds" Gauge of "seconds" by ["gateway", "target"],
        "How long the server took for its last answer, to an RPC that does nothing";
    SERVER_SILENCE: "moorline_server_silence_seconds" Gauge of "seconds" by ["gateway", "target"],
        "Since the server's last answer, or since it was first asked";
    TUNNEL_HANDSHAKE_AGE: "moorline_tunnel_handshake_age_seconds" Gauge of "seconds" by ["gateway", "target"],
        "Since the tunnel's last handshake; absent before the first. Over 180 no session is left";
    TUNNEL_SENT: "moorline_tunnel_sent_bytes_total" Counter of "bytes" by ["gateway", "target"],
        "Sent through the tunnel, without WireGuard's own overhead";
    TUNNEL_RECEIVED: "moorline_tunnel_received_bytes_total" Counter of "bytes" by ["gateway", "target"],
        "Received through the tunnel, without WireGuard's own overhead";
    TUNNELS_FENCED: "moorline_tunnels_fenced" Gauge of "namespaces" by ["gateway", "target"],
        "Network namespaces that lead nowhere for good and that some mount is still in";

    SHARE_WAITING: "moorline_share_waiting" Gauge of "" by ["share"],
        "1 while pods use the Share and it is not served, or its I/O blocks";
    SUPERBLOCKS: "moorline_superblocks" Gauge of "superblocks" by ["share", "health"],
        "Mounts of the kernel's NFS client, by how they are";
    COPIES: "moorline_copies" Gauge of "mounts" by ["share"],
        "Places in containers that show the Share";
    PUBLICATIONS: "moorline_publications" Gauge of "volumes" by ["share", "mode", "state"],
        "Volumes of pods, read-only or read-write, by how far they are";
    PUBLISH_DURATION: "moorline_publish_duration_seconds" Histogram of "seconds" by [],
        "From a volume's first request until it is there, waiting for its server included";

    FAILOVERS: "moorline_failovers_total" Counter of "superblocks" by ["share"],
        "Superblocks whose copies were moved: to another target, or to a new export of the same";
    COPIES_REPLACED: "moorline_copies_replaced_total" Counter of "mounts" by ["share"],
        "Places, on the host and in containers, that were moved so";
    ABORTS: "moorline_aborts_total" Counter of "superblocks" by ["share", "mode"],
        "Superblocks whose waiting calls were ended with an error; of a read-write one, what was not synced is lost";
    FENCES: "moorline_fences_total" Counter of "namespaces" by ["gateway", "target"],
        "Ways to a server that were cut for good";
    RETIRES: "moorline_retires_total" Counter of "superblocks" by ["share"],
        "Superblocks that were let go of, with or without an abort";
    STEP_FAILURES: "moorline_step_failures_total" Counter of "steps" by ["step"],
        "Steps that failed and were or will be tried again; the log says why";
    HANDS_LEFT: "moorline_hands_left_behind" Gauge of "processes" by [],
        "Processes that the kernel holds in a call on a server that is away; they end with it or with its mount";
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfShare {
    share: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTarget {
    gateway: String,
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHealth {
    share: String,
    health: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMode {
    share: String,
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    share: String,
    mode: &'static str,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStep {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVersion {
    version: &'static str,
}

type Number = Gauge<f64, std::sync::atomic::AtomicU64>;

/// What has been counted since the agent began. Everything else is read from its report when somebody asks.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    rounds: Counter,
    round_time: Counter<f64, std::sync::atomic::AtomicU64>,
    failovers: Family<OfShare, Counter>,
    copies_replaced: Family<OfShare, Counter>,
    aborts: Family<OfMode, Counter>,
    fences: Family<OfTarget, Counter>,
    retires: Family<OfShare, Counter>,
    step_failures: Family<OfStep, Counter>,
    publish_duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        // A clone takes milliseconds, a mount over a long way a second; CSI calls are answered after 15 s.
        const BOUNDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
        Self {
            rounds: Counter::default(),
            round_time: Counter::default(),
            failovers: Family::default(),
            copies_replaced: Family::default(),
            aborts: Family::default(),
            fences: Family::default(),
            retires: Family::default(),
            step_failures: Family::default(),
            publish_duration: Histogram::new(BOUNDS),
        }
    }
}

impl Metrics {
    pub(crate) fn count(&self, happening: &Happening) {
        match happening {
            Happening::FailedOver { new, .. } => drop(self.failovers.get_or_create(&of_share(&new.share)).inc()),
            Happening::Aborting { superblock, .. } => {
                let mode = mode(!superblock.user.writes());
                self.aborts.get_or_create(&OfMode { share: superblock.share.to_string(), mode }).inc();
            }
            Happening::Fenced { namespace } => {
                let (gateway, target) = (&namespace.target.gateway, &namespace.target.target);
                self.fences.get_or_create(&of_target(gateway, target)).inc();
            }
            Happening::Retired { superblock, .. } => {
                self.retires.get_or_create(&of_share(&superblock.share)).inc();
            }
            _ => {}
        }
    }

    pub(crate) fn made_a_round(&self, took: Duration) {
        self.rounds.inc();
        self.round_time.inc_by(took.as_secs_f64());
    }

    pub(crate) fn step_failed(&self, step: &Step) {
        self.step_failures.get_or_create(&OfStep { step: action(step) }).inc();
    }

    pub(crate) fn published_after(&self, time: Duration) {
        self.publish_duration.observe(time.as_secs_f64());
    }

    pub(crate) fn copies_replaced(&self, share: impl fmt::Display, count: u64) {
        self.copies_replaced.get_or_create(&of_share(share)).inc_by(count);
    }

    /// Everything, in the text format of OpenMetrics. Without a report what is known without one.
    pub(crate) fn text(&self, report: Option<&Report>, round_age: Duration, hands_left: u64) -> String {
        let mut page = Page::default();
        let build = Family::<OfVersion, Number>::default();
        build.get_or_create(&OfVersion { version: env!("CARGO_PKG_VERSION") }).set(1.0);
        page.add(&BUILD, build);
        page.number(&ROUND_AGE, round_age.as_secs_f64());
        page.number(&HANDS_LEFT, hands_left as f64);
        if let Some(report) = report {
            page.number(&PROBLEMS, report.problems.len() as f64);
            page.add_servers(report);
            page.add_shares(report);
            self.begin_at_zero(report);
        }
        page.add(&ROUNDS, self.rounds.clone());
        page.add(&ROUND_TIME, self.round_time.clone());
        page.add(&PUBLISH_DURATION, self.publish_duration.clone());
        page.add(&FAILOVERS, self.failovers.clone());
        page.add(&COPIES_REPLACED, self.copies_replaced.clone());
        page.add(&ABORTS, self.aborts.clone());
        page.add(&FENCES, self.fences.clone());
        page.add(&RETIRES, self.retires.clone());
        page.add(&STEP_FAILURES, self.step_failures.clone());
        let mut text = String::new();
        // Only a writer can fail here, and a String does not.
        let _ = text::encode(&mut text, &page.0);
        text
    }

    /// So that the first of a kind is a step from 0 to 1, which alarms can see.
    fn begin_at_zero(&self, report: &Report) {
        for share in &report.shares {
            let share = of_share(&share.name);
            drop(self.failovers.get_or_create(&share));
            drop(self.copies_replaced.get_or_create(&share));
            drop(self.retires.get_or_create(&share));
            for mode in [mode(true), mode(false)] {
                drop(self.aborts.get_or_create(&OfMode { share: share.share.clone(), mode }));
            }
        }
        for tunnel in &report.tunnels {
            drop(self.fences.get_or_create(&of_target(&tunnel.gateway, &tunnel.target)));
        }
    }
}

/// One answer to one scrape.
#[derive(Default)]
struct Page(Registry);

impl Page {
    fn add(&mut self, definition: &Definition, metric: impl EncodeMetric + fmt::Debug + Send + Sync + 'static) {
        // The encoder adds what OpenMetrics wants at the end of a counter's name.
        let name = definition.name.strip_suffix("_total").unwrap_or(definition.name);
        self.0.register(name, definition.meaning, metric);
    }

    fn number(&mut self, definition: &Definition, value: f64) {
        let gauge = Number::default();
        gauge.set(value);
        self.add(definition, gauge);
    }

    fn add_servers(&mut self, report: &Report) {
        let (up, probe, silence) = (Family::default(), Family::default(), Family::default());
        let (handshake, fenced) = (Family::default(), Family::<OfTarget, Gauge>::default());
        let (sent, received) = (Family::<OfTarget, Counter>::default(), Family::<OfTarget, Counter>::default());
        let set = |family: &Family<OfTarget, Number>, of: &OfTarget, value: f64| {
            family.get_or_create(of).set(value);
        };
        for tunnel in &report.tunnels {
            let of = of_target(&tunnel.gateway, &tunnel.target);
            drop(fenced.get_or_create(&of));
            if tunnel.state == TunnelState::Fenced {
                fenced.get_or_create(&of).inc();
                continue;
            }
            set(&up, &of, f64::from(u8::from(tunnel.server == ServerState::Alive)));
            tunnel.answered_in.iter().for_each(|time| set(&probe, &of, time.as_secs_f64()));
            tunnel.silent_for.iter().for_each(|time| set(&silence, &of, time.as_secs_f64()));
            tunnel.handshake_age.iter().for_each(|age| set(&handshake, &of, age.as_secs_f64()));
            sent.get_or_create(&of).inc_by(tunnel.sent_bytes);
            received.get_or_create(&of).inc_by(tunnel.received_bytes);
        }
        self.add(&SERVER_UP, up);
        self.add(&SERVER_PROBE, probe);
        self.add(&SERVER_SILENCE, silence);
        self.add(&TUNNEL_HANDSHAKE_AGE, handshake);
        self.add(&TUNNEL_SENT, sent);
        self.add(&TUNNEL_RECEIVED, received);
        self.add(&TUNNELS_FENCED, fenced);
    }

    fn add_shares(&mut self, report: &Report) {
        let (waiting, copies) = (Family::<OfShare, Gauge>::default(), Family::<OfShare, Gauge>::default());
        let superblocks = Family::<OfHealth, Gauge>::default();
        let publications = Family::<OfState, Gauge>::default();
        for share in &report.shares {
            waiting.get_or_create(&of_share(&share.name)).set(share.waiting.is_some().into());
            drop(copies.get_or_create(&of_share(&share.name)));
        }
        for mount in &report.mounts {
            copies.get_or_create(&of_share(&mount.share)).inc_by(mount.copies.into());
            let of = OfHealth { share: mount.share.clone(), health: format!("{:?}", mount.health) };
            superblocks.get_or_create(&of).inc();
        }
        for publication in &report.publications {
            let mode = mode(publication.read_only);
            let state = format!("{:?}", publication.state);
            publications.get_or_create(&OfState { share: publication.share.clone(), mode, state }).inc();
        }
        self.add(&SHARE_WAITING, waiting);
        self.add(&COPIES, copies);
        self.add(&SUPERBLOCKS, superblocks);
        self.add(&PUBLICATIONS, publications);
    }
}

fn of_share(share: impl fmt::Display) -> OfShare {
    OfShare { share: share.to_string() }
}

fn of_target(gateway: impl fmt::Display, target: impl fmt::Display) -> OfTarget {
    OfTarget { gateway: gateway.to_string(), target: target.to_string() }
}

fn mode(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "read-write" }
}

/// docs/METRICS.md, as it must be.
#[cfg_attr(not(test), expect(dead_code, reason = "the test that keeps the document true calls it"))]
fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         `GET /metrics` at the agent's `--health-address` answers in the text format of OpenMetrics, which Prometheus reads.\n\
         No label is ever a pod's name: their values are names of Gateways, targets and Shares, and words from this page's\n\
         enums. Gauges that need the loop's report are absent while the loop is stuck; `moorline_loop_round_age_seconds` is not.\n\n\
         This page is made from `agent/src/metrics.rs`: `MOORLINE_WRITE_DOCS=1 cargo test -p moorline-agent --lib metrics`.\n\n\
         | name | kind | unit | labels | meaning |\n|---|---|---|---|---|\n",
    );
    for Definition { name, shape, unit, labels, meaning } in ALL {
        let shape = format!("{shape:?}").to_lowercase();
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        // Only a writer can fail here, and a String does not.
        let _ = writeln!(text, "| `{name}` | {shape} | {unit} | {} | {meaning}. |", labels.join(", "));
    }
    text
}

#[cfg(test)]
mod tests;
