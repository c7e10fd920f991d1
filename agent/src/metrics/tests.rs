use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use moorline_shared::health::Health;
use moorline_shared::report::{MountReport, PublicationReport, PublicationState, ShareReport, TunnelReport};

use super::*;

/// One of everything.
fn full_report() -> Report {
    let tunnel = |generation: u32, state| TunnelReport {
        namespace: format!("gw.a.{generation}"),
        gateway: "gw".into(),
        target: "a".into(),
        endpoint: "192.0.2.1:51820".into(),
        state,
        handshake_age: Some(Duration::from_millis(1500)),
        sent_bytes: 1000,
        received_bytes: 2000,
        server: ServerState::Alive,
        answered_in: Some(Duration::from_millis(3)),
        silent_for: Some(Duration::from_millis(250)),
    };
    Report {
        node: "node".into(),
        version: "0".into(),
        shares: vec![ShareReport {
            name: "data".into(),
            gateway: "gw".into(),
            access: "ReadOnly".into(),
            policy: "hard".into(),
            target: Some("a".into()),
            publications: 1,
            withdrawn: false,
            waiting: None,
        }],
        mounts: vec![MountReport {
            superblock: "data.1@gw.a.2@ro".into(),
            share: "data".into(),
            target: "gw.a".into(),
            read_only: true,
            health: Health::Healthy,
            copies: 3,
        }],
        publications: vec![PublicationReport {
            sub_dir: None,
            node: false,
            id: "00".into(),
            share: "data".into(),
            namespace: "training".into(),
            pod: "somebodys-pod".into(),
            pod_uid: "uid".into(),
            read_only: true,
            target_path: "/target".into(),
            state: PublicationState::Published,
        }],
        tunnels: vec![tunnel(1, TunnelState::Fenced), tunnel(2, TunnelState::Attached)],
        problems: vec!["something".into()],
    }
}

fn full_page() -> String {
    let metrics = Metrics::default();
    metrics.made_a_round(Duration::from_millis(250));
    metrics.step_failed(&Step::Fence("gw.a.1".parse().unwrap()));
    metrics.published_after(Duration::from_millis(30));
    let (old, new) = ("data.1@gw.a.1@ro".parse().unwrap(), "data.2@gw.a.2@ro".parse().unwrap());
    metrics.count(&Happening::FailedOver { old, new });
    metrics.text(Some(&full_report()), Duration::from_millis(400), 0)
}

#[test]
fn what_is_answered_is_what_is_defined() {
    let page = full_page();
    let mut answered = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, shape) = rest.split_once(' ').unwrap();
            assert_eq!(answered.insert(name.to_owned(), shape.to_owned()), None, "{name} is answered twice");
        }
    }
    let defined: BTreeMap<String, String> = ALL
        .iter()
        .map(|definition| {
            let name = definition.name.strip_suffix("_total").unwrap_or(definition.name);
            (name.to_owned(), format!("{:?}", definition.shape).to_lowercase())
        })
        .collect();
    assert_eq!(answered, defined, "{page}");
    for definition in ALL {
        assert_eq!(definition.shape == Shape::Counter, definition.name.ends_with("_total"), "{}", definition.name);
        let base = definition.name.strip_suffix("_total").unwrap_or(definition.name);
        let timed = matches!(definition.unit, "seconds" | "bytes");
        assert!(!timed || base.ends_with(definition.unit), "{} does not say its unit", definition.name);
    }
}

#[test]
fn labels_are_those_that_are_defined_and_no_pod_is_among_them() {
    let page = full_page();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let definition = ALL.iter().find(|definition| {
            let parts = ["", "_bucket", "_sum", "_count"].map(|part| format!("{}{part}", definition.name));
            parts.iter().any(|part| part == name)
        });
        let definition = definition.unwrap_or_else(|| panic!("{name} is not defined"));
        let labels: Vec<&str> = match line.contains('{') {
            true => rest.split_once('}').unwrap().0.split(',').map(|label| label.split_once('=').unwrap().0).collect(),
            false => Vec::new(),
        };
        let labels: Vec<&str> = labels.into_iter().filter(|label| *label != "le").collect();
        assert_eq!(labels, definition.labels, "{line}");
    }
    assert!(!page.contains("somebodys-pod") && !page.contains("uid"), "{page}");
}

#[test]
fn values_are_those_of_the_report_and_the_counts() {
    let page = full_page();
    for line in [
        "moorline_server_up{gateway=\"gw\",target=\"a\"} 1.0",
        "moorline_tunnel_received_bytes_total{gateway=\"gw\",target=\"a\"} 2000",
        "moorline_tunnels_fenced{gateway=\"gw\",target=\"a\"} 1",
        "moorline_copies{share=\"data\"} 3",
        "moorline_superblocks{share=\"data\",health=\"Healthy\"} 1",
        "moorline_publications{share=\"data\",mode=\"read-only\",state=\"Published\"} 1",
        "moorline_failovers_total{share=\"data\"} 1",
        "moorline_aborts_total{share=\"data\",mode=\"read-write\"} 0",
        "moorline_step_failures_total{step=\"fence\"} 1",
        "moorline_publish_duration_seconds_bucket{le=\"0.025\"} 0",
        "moorline_publish_duration_seconds_bucket{le=\"0.05\"} 1",
        "moorline_loop_round_age_seconds 0.4",
        "moorline_loop_rounds_total 1",
        "moorline_loop_busy_seconds_total 0.25",
    ] {
        assert!(page.lines().any(|answered| answered == line), "{line} is not in\n{page}");
    }
    assert!(page.ends_with("# EOF\n"));
}

#[test]
fn a_stuck_loop_leaves_what_is_known_without_it() {
    let page = Metrics::default().text(None, Duration::from_secs(60), 2);
    assert!(page.contains("moorline_loop_round_age_seconds 60.0") && page.contains("moorline_hands_left_behind 2"));
    assert!(!page.contains("moorline_server_up"), "stale gauges would be lies: {page}");
}

#[test]
fn the_document_is_what_is_defined() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    if std::env::var_os("MOORLINE_WRITE_DOCS").is_some() {
        fs::write(&path, document()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, document(), "docs/METRICS.md is stale; it says itself how it is made");
}
