use super::*;
use crate::gateway::Path;
use crate::share::{Policy, Share};

const GATEWAY: &str = "\
# the storage gateway
apiVersion: moorline.io/v1alpha1
kind: Gateway
metadata: {name: gw, labels: {team: storage}}
spec:
  path: tunnel
  sharedData: true
  tunnel:
    address: 10.90.0.2
    privateKey: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
  targets:
  - name: a
    endpoint: 192.0.2.1:51820
    publicKey: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
    server: 10.90.0.1
";
const SHARE: &str = "\
apiVersion: moorline.io/v1alpha1
kind: Share
metadata: {name: data}
spec: {gateway: gw, export: /data, access: ReadOnly, namespaces: [training]}
";

fn problem(text: &str) -> String {
    parse("f.yaml", text).unwrap_err().to_string()
}

#[test]
fn a_file_of_several_documents_is_read() {
    let objects = parse("f.yaml", &format!("---\n{GATEWAY}---\n# nothing here\n---\n{SHARE}")).unwrap();
    assert_eq!(objects.iter().map(|o| o.line).collect::<Vec<_>>(), [Some(2), Some(20)]);
    let Object::Gateway(gateway) = &objects[0].object else { panic!("{objects:?}") };
    assert!(gateway.shared_data);
    let Path::Tunnel(tunnel) = &gateway.path else { panic!("{gateway:?}") };
    assert_eq!(tunnel.mtu, 1420);
    let Object::Share(share) = &objects[1].object else { panic!("{objects:?}") };
    assert!(
        share.namespaces.allow("training", None) == Some(true) && share.namespaces.allow("other", None) == Some(false)
    );
}

#[test]
fn no_debug_output_shows_the_private_key() {
    let objects = parse("f.yaml", GATEWAY).unwrap();
    assert!(!format!("{objects:?}").contains("KeySource::Inline(\"AAEC"));
    assert!(format!("{objects:?}").contains("PrivateKey(hidden)"));
}

#[test]
fn each_refusal_names_file_line_and_field() {
    let cases = [
        (GATEWAY.replace("10.90.0.2", "10.90.0"), "f.yaml:9: spec.tunnel.address: \"10.90.0\" is not an IP address"),
        (GATEWAY.replace("1:51820", "1:0"), "f.yaml:13: spec.targets[0].endpoint: the port is 0"),
        (
            GATEWAY.replace("192.0.2.1:51820", "gw.example:51820"),
            "f.yaml:13: spec.targets[0].endpoint: \"gw.example:51820\" is not",
        ),
        (GATEWAY.replace("path: tunnel", "path: straight"), "f.yaml:6: spec.path: is \"straight\""),
        (GATEWAY.replace("v1alpha1", "v9"), "f.yaml:2: apiVersion: is \"moorline.io/v9\""),
        (
            GATEWAY.replace("kind: Gateway", "kind: Gate"),
            "f.yaml:3: kind: is \"Gate\"; known kinds are Gateway and Share",
        ),
        (
            format!("{GATEWAY}---\n{}", SHARE.replace("/data,", "/a/../b,")),
            "f.yaml:20: spec.export: \"/a/../b\" is not",
        ),
        (SHARE.replace("[training]", "[]"), "f.yaml:4: spec.namespaces: is empty"),
        (SHARE.replace("[training]", "[a, '*']"), "f.yaml:4: spec.namespaces[1]:"),
        (SHARE.replace(", namespaces: [training]", ""), "f.yaml:3: spec: says neither namespaces nor"),
        (
            SHARE.replace("namespaces: [training]", "namespaceSelector: {}"),
            "f.yaml:4: spec.namespaceSelector: is empty",
        ),
        (
            SHARE.replace(
                "namespaces: [training]",
                "namespaceSelector: {matchExpressions: [{key: a, operator: In, values: []}]}",
            ),
            "f.yaml:4: spec.namespaceSelector.matchExpressions[0].operator: is \"In\" with 0 values",
        ),
        (
            SHARE.replace("ReadOnly,", "ReadOnly, nodeMount: /etc/data,"),
            "f.yaml:4: spec.nodeMount: \"/etc/data\" belongs to",
        ),
        (
            SHARE.replace("ReadOnly,", "ReadOnly, nodeMount: /mnt/../x,"),
            "f.yaml:4: spec.nodeMount: \"/mnt/../x\" is not",
        ),
        (
            SHARE.replace("ReadOnly,", "ReadOnly, nodeSelector: {matchLabels: {a: b}},"),
            "f.yaml:4: spec.nodeSelector: is for spec.nodeMount, and there is none",
        ),
        (
            SHARE.replace("ReadOnly,", "ReadOnly, nodeMount: /mnt/x, nodeSelector: {},"),
            "f.yaml:4: spec.nodeSelector: is empty; leave it out",
        ),
        (SHARE.replace("ReadOnly", "RO"), "f.yaml:4: spec.access: is \"RO\"; use ReadOnly or ReadWrite"),
    ];
    for (text, expected) in cases {
        assert!(problem(&text).starts_with(expected), "{}\ninstead of\n{expected}", problem(&text));
    }
}

#[test]
fn an_unknown_field_is_named_with_its_line() {
    let text = problem(&GATEWAY.replace("  sharedData:", "  sharedDate:"));
    assert!(text.starts_with("f.yaml:7: ") && text.contains("sharedDate"), "{text}");
    let text = problem(&SHARE.replace("gateway: gw,", "gateway: gw, timeo: 3,"));
    assert!(text.starts_with("f.yaml:4: ") && text.contains("timeo"), "{text}");
}

#[test]
fn malformed_yaml_is_refused_with_its_line() {
    let text = problem(&GATEWAY.replace("spec:", "spec: ["));
    assert!(text.starts_with("f.yaml:"), "{text}");
    assert!(parse("f.yaml", "").unwrap().is_empty());
}

#[test]
fn a_bad_private_key_is_refused_and_not_shown() {
    let text = problem(&GATEWAY.replace("privateKey: AAECAwQF", "privateKey: AAECAwQ"));
    assert!(text.starts_with("f.yaml:10: spec.tunnel.privateKey:") && !text.contains("AAEC"), "{text}");
    let text = problem(&GATEWAY.replace("privateKey: AAEC", "privateKeyFile: AAEC"));
    assert!(text.starts_with("f.yaml:10: spec.tunnel.privateKeyFile:") && !text.contains("AAEC"), "{text}");
    let text = problem(&GATEWAY.replace(
        "privateKey: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=: x",
    ));
    assert!(text.starts_with("f.yaml:10") && !text.contains("AAEC"), "{text}");
}

fn share_of(text: &str) -> Share {
    let objects = parse("f.yaml", text).unwrap();
    let Object::Share(share) = objects.into_iter().next().unwrap().object else { panic!("no share") };
    share
}

#[test]
fn a_policy_says_what_it_needs_and_nothing_else() {
    let with = |access: &str, more: &str| SHARE.replace("ReadOnly,", &format!("{access}, {more},"));
    let policy = |access: &str, more: &str| share_of(&with(access, more)).policy;
    assert_eq!(share_of(SHARE).policy, Policy::Hard);
    assert_eq!(policy("ReadOnly", "policy: soft"), Policy::Soft);
    assert_eq!(policy("ReadWrite", "policy: soft, acceptLostWrites: true"), Policy::Soft);
    let bounded = Policy::Bounded { after: std::time::Duration::from_secs(300) };
    assert_eq!(policy("ReadWrite", "policy: bounded, after: 5m"), bounded);
    for (access, more, expected) in [
        ("ReadWrite", "policy: soft", "f.yaml:4: spec.policy: is soft, which contradicts access: ReadWrite"),
        ("ReadOnly", "policy: bounded", "f.yaml:4: spec.policy: is bounded, by what?"),
        ("ReadOnly", "after: 5m", "f.yaml:4: spec.after: is for policy: bounded, and the policy is hard"),
        ("ReadOnly", "policy: bounded, after: 5", "f.yaml:4: spec.after: \"5\" is no time from 10s to"),
        ("ReadOnly", "policy: bounded, after: 1s", "f.yaml:4: spec.after: \"1s\" is no time from 10s to"),
        ("ReadOnly", "policy: firm", "f.yaml:4: spec.policy: is \"firm\"; use hard, soft or bounded"),
    ] {
        let text = problem(&with(access, more));
        assert!(text.starts_with(expected), "{text}\ninstead of\n{expected}");
    }
}

#[test]
fn mount_options_are_typed_and_the_dangerous_ones_refused_by_name() {
    let with = |options: &str| SHARE.replace("ReadOnly,", &format!("ReadOnly, mountOptions: {{{options}}},"));
    let options =
        share_of(&with("timeo: 50, retrans: 2, nconnect: 4, readahead: 4096, rsize: 65536, noexec: true")).options;
    assert_eq!(
        (options.timeo, options.nconnect, options.rsize, options.no_exec),
        (Some(50), Some(4), Some(65_536), true)
    );
    for (given, expected) in [
        ("timeo: soon", "f.yaml:4: spec.mountOptions.timeo: \"soon\" is no number from 10 to 6000"),
        ("timeo: 1", "f.yaml:4: spec.mountOptions.timeo: \"1\" is no number from 10 to 6000"),
        ("rsize: 5000", "f.yaml:4: spec.mountOptions.rsize: 5000 is no multiple of 4096"),
        ("nolock: true", "f.yaml:4: spec.mountOptions.nolock: is not for a Share to choose: locks"),
        ("sharecache: true", "f.yaml:4: spec.mountOptions.sharecache: is not for a Share to choose:"),
        ("tymeo: 600", "f.yaml:4: spec.mountOptions.tymeo: is not known; there are: timeo,"),
    ] {
        let text = problem(&with(given));
        assert!(text.starts_with(expected), "{text}\ninstead of\n{expected}");
    }
}

#[test]
fn a_direct_gateway_has_servers_and_no_tunnel() {
    let direct = "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {name: gw}\nspec:\n  path: direct\n  awayAfter: 10s\n  targets:\n  - {name: a, server: 10.0.0.1}\n";
    let objects = parse("f.yaml", direct).unwrap();
    let Object::Gateway(gateway) = &objects[0].object else { panic!("{objects:?}") };
    assert_eq!((&gateway.path, gateway.away_after.as_secs(), &gateway.targets[0].peer), (&Path::Direct, 10, &None));
    for (text, expected) in [
        (GATEWAY.replace("path: tunnel", "path: direct"), "f.yaml:9: spec.tunnel: is for path: tunnel"),
        (direct.replace("path: direct", "path: tunnel"), "f.yaml:8: spec.tunnel: is missing"),
        (
            direct.replace("server:", "endpoint: '192.0.2.1:51820', server:"),
            "f.yaml:8: spec.targets[0]: has an endpoint",
        ),
        (GATEWAY.replace("    endpoint: 192.0.2.1:51820\n", ""), "f.yaml:12: spec.targets[0].endpoint: is missing"),
        (direct.replace("10s", "1s"), "f.yaml:6: spec.awayAfter: \"1s\" is no time from 2s to 10m"),
    ] {
        let text = problem(&text);
        assert!(text.starts_with(expected), "{text}\ninstead of\n{expected}");
    }
}

#[test]
fn a_gateway_of_scope_host_leads_each_address_one_way() {
    let host = GATEWAY.replace("path: tunnel", "scope: host");
    let objects = parse("f.yaml", &host).unwrap();
    let Object::Gateway(gateway) = &objects[0].object else { panic!("{objects:?}") };
    assert!(gateway.is_on_host() && gateway.ways().count() == 1 && !gateway.mount_defaults.soft);
    let second = |server: &str| {
        format!(
            "{host}  - {{name: b, endpoint: '192.0.2.9:51820', publicKey: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=, server: {server}}}\n"
        )
    };
    let defaults = |text: &str| host.replace("scope: host", &format!("scope: host\n  mountDefaults: {{{text}}}"));
    for (text, said) in [
        (host.replace("scope: host", "scope: node"), "spec.scope: is \"node\"; use isolated or host"),
        (
            "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {name: lan}\nspec: {path: direct, scope: host, targets: [{name: a, server: 10.0.0.1}]}\n".to_owned(),
            "spec.scope: is for path: tunnel",
        ),
        (second("10.90.0.1"), "spec.targets[1].server: is an earlier target's as well"),
        (second("192.0.2.9"), "spec.targets[1].server: is where a WireGuard peer is"),
        (second("192.0.2.1"), "spec.targets[1].server: is where a WireGuard peer is"),
        (second("127.0.0.1"), "spec.targets[1].server: is no address of another machine's"),
        (
            GATEWAY.replace("path: tunnel", "mountDefaults: {timeo: 100}"),
            "spec.mountDefaults: is for scope: host",
        ),
        (defaults("policy: soft"), "spec.mountDefaults.policy: is soft: a write that times out is lost"),
        (defaults("policy: bounded"), "spec.mountDefaults.policy: is \"bounded\"; use hard or soft"),
        (defaults("timeo: 5"), "spec.mountDefaults.timeo: \"5\" is no number from 10 to 6000"),
    ] {
        let problem = problem(&text);
        assert!(problem.contains(said), "{problem}");
    }
}
