use super::*;

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
    assert_eq!(objects.iter().map(|o| o.line).collect::<Vec<_>>(), [2, 20]);
    let Object::Gateway(gateway) = &objects[0].object else { panic!("{objects:?}") };
    assert!(gateway.shared_data);
    assert_eq!(gateway.tunnel.mtu, 1420);
    let Object::Share(share) = &objects[1].object else { panic!("{objects:?}") };
    assert!(share.namespaces.allow("training") && !share.namespaces.allow("other"));
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
        (GATEWAY.replace("path: tunnel", "path: direct"), "f.yaml:6: spec.path: is \"direct\""),
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
