//! What others wrote, as objects of ours: PersistentVolumes of kubelet's own nfs volumes and of csi-driver-nfs, with their
//! claims, and what DigitalOcean's API tells of NFS shares. Text in, text out; nothing is asked of anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use moorline_csi::DRIVER;
use moorline_shared::cluster::{API_VERSION, SHARE, SUB_DIR};
use moorline_shared::name::Name;
use serde_json::{Map, Value, json};

/// What can't be known from the input.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// Whose pods may use what nothing else is said of.
    pub namespaces: Vec<String>,
    /// Addresses of servers that are given by name.
    pub addresses: BTreeMap<String, IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("read the input: it must be YAML or JSON")]
    Syntax(#[source] serde_saphyr::Error),
    #[error("write the objects as YAML")]
    Write(#[from] serde_saphyr::ser::Error),
    #[error(
        "nothing in the input can be converted: it must have PersistentVolumes with `nfs:` or with `csi:` of nfs.csi.k8s.io, or be the JSON of GET /v2/nfs"
    )]
    Nothing,
    #[error("{at}: {message}")]
    Object { at: String, message: String },
}

type Converted<T> = Result<T, ConvertError>;

fn refuse<T>(at: &str, message: impl Into<String>) -> Converted<T> {
    Err(ConvertError::Object { at: at.to_owned(), message: message.into() })
}

/// One export that somebody mounts, whoever wrote it down.
struct Found {
    at: String,
    name: String,
    server: String,
    export: String,
    sub_dir: String,
    read_only: bool,
    options: Vec<String>,
    namespaces: BTreeSet<String>,
    size: String,
    /// What the new PersistentVolume takes over.
    volume: Option<Volume>,
}

struct Volume {
    access_modes: Value,
    claim: Option<(String, String)>,
}

/// Gateways, Shares, PersistentVolumes and claims, for `kubectl apply -f -`.
pub fn convert(input: &str, hints: &Hints) -> Converted<String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(input).map_err(ConvertError::Syntax)?;
    let mut items = Vec::new();
    documents.into_iter().for_each(|document| flatten(document, &mut items));
    let claims = claims(&items);
    let mut found = Vec::new();
    for item in &items {
        found.extend(read(item, &claims)?);
    }
    if found.is_empty() {
        return Err(ConvertError::Nothing);
    }
    write(found, hints, &known_gateways(&items))
}

/// Gateways of ours that are there already, by the address of the server that they prefer: what is mounted from it by the node's
/// own network, through a tunnel or not, is theirs.
fn known_gateways(items: &[Value]) -> BTreeMap<IpAddr, String> {
    let ours = |item: &&Value| {
        let version = text(item, "/apiVersion").unwrap_or_default();
        text(item, "/kind") == Some("Gateway") && version.starts_with("moorline.io/")
    };
    let known = items.iter().filter(ours).filter_map(|gateway| {
        Some((text(gateway, "/spec/targets/0/server")?.parse().ok()?, text(gateway, "/metadata/name")?.to_owned()))
    });
    known.collect()
}

/// A List, of kubectl's, is its items.
fn flatten(document: Value, items: &mut Vec<Value>) {
    match document {
        Value::Null => {}
        Value::Object(mut list) if list.get("items").is_some_and(Value::is_array) => {
            if let Some(Value::Array(inner)) = list.remove("items") {
                inner.into_iter().for_each(|item| flatten(item, items));
            }
        }
        item => items.push(item),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Claims by the volume that they are bound to.
fn claims(items: &[Value]) -> BTreeMap<String, (String, String)> {
    let claims = items.iter().filter(|item| text(item, "/kind") == Some("PersistentVolumeClaim"));
    claims
        .filter_map(|claim| {
            let namespace = text(claim, "/metadata/namespace").unwrap_or("default").to_owned();
            Some((text(claim, "/spec/volumeName")?.to_owned(), (namespace, text(claim, "/metadata/name")?.to_owned())))
        })
        .collect()
}

fn read(item: &Value, claims: &BTreeMap<String, (String, String)>) -> Converted<Vec<Found>> {
    if let Some(shares) = item.get("shares").and_then(Value::as_array) {
        return shares.iter().map(digital_ocean).filter_map(Result::transpose).collect();
    }
    match text(item, "/kind") {
        Some("PersistentVolume") => Ok(persistent_volume(item, claims)?.into_iter().collect()),
        _ => Ok(Vec::new()),
    }
}

/// One that is not there yet, or not any more, is left out.
fn digital_ocean(share: &Value) -> Converted<Option<Found>> {
    let name = text(share, "/name").unwrap_or("without a name");
    let at = format!("share {name}");
    if text(share, "/status") != Some("ACTIVE") {
        return Ok(None);
    }
    let (Some(server), Some(export)) = (text(share, "/host"), text(share, "/mount_path")) else {
        return refuse(&at, "it is ACTIVE, and has no host and mount_path: is it attached to a VPC?");
    };
    Ok(Some(Found {
        name: name.to_owned(),
        server: server.to_owned(),
        export: export.to_owned(),
        sub_dir: String::new(),
        read_only: false,
        options: Vec::new(),
        namespaces: BTreeSet::new(),
        size: format!("{}Gi", share["size_gib"].as_u64().unwrap_or(1)),
        volume: None,
        at,
    }))
}

fn persistent_volume(volume: &Value, claims: &BTreeMap<String, (String, String)>) -> Converted<Option<Found>> {
    let name = text(volume, "/metadata/name").unwrap_or("without a name").to_owned();
    let at = format!("PersistentVolume {name}");
    let (server, export, sub_dir, reads) = if let Some(nfs) = volume.pointer("/spec/nfs") {
        (text(nfs, "/server"), text(nfs, "/path"), None, nfs["readOnly"] == true)
    } else if text(volume, "/spec/csi/driver") == Some("nfs.csi.k8s.io") {
        let csi = &volume["spec"]["csi"];
        let said = |key: &str| text(csi, &format!("/volumeAttributes/{key}"));
        (said("server"), said("share"), said("subdir").or(said("subDir")), csi["readOnly"] == true)
    } else {
        return Ok(None);
    };
    let (Some(server), Some(export)) = (server, export) else {
        return refuse(&at, "it names no server and path");
    };
    let modes = volume.pointer("/spec/accessModes").cloned().unwrap_or_else(|| json!(["ReadWriteMany"]));
    let all_read = modes.as_array().is_some_and(|modes| modes.iter().all(|mode| mode == "ReadOnlyMany"));
    let named = text(volume, "/spec/claimRef/namespace").zip(text(volume, "/spec/claimRef/name"));
    let claim = named.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let claim = claim.or_else(|| claims.get(&name).cloned());
    let options = volume.pointer("/spec/mountOptions").and_then(Value::as_array);
    let options = options.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Some(Found {
        server: server.to_owned(),
        export: export.to_owned(),
        sub_dir: sub_dir.unwrap_or_default().trim_matches('/').to_owned(),
        read_only: reads || all_read,
        options,
        namespaces: claim.iter().map(|(namespace, _)| namespace.clone()).collect(),
        size: text(volume, "/spec/capacity/storage").unwrap_or("1Gi").to_owned(),
        volume: Some(Volume { access_modes: modes, claim }),
        name,
        at,
    }))
}

/// What a Share says of how it is mounted.
#[derive(Debug, Clone, Default, PartialEq)]
struct Mounted {
    read_only: bool,
    policy: Option<&'static str>,
    options: Map<String, Value>,
}

/// Options as mount.nfs knows them. What is moorline's own choice anyway is left out, and what it refuses is named.
fn mounted(at: &str, options: &[String], read_only: bool) -> Converted<Mounted> {
    let mut mounted = Mounted { read_only, ..Mounted::default() };
    for option in options.iter().flat_map(|options| options.split(',')).map(str::trim).filter(|it| !it.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value) {
            ("ro", "") => mounted.read_only = true,
            ("hard", "") => mounted.policy = Some("hard"),
            ("soft" | "softerr" | "softreval", "") => mounted.policy = Some("soft"),
            ("noexec", "") => drop(mounted.options.insert("noexec".to_owned(), json!(true))),
            ("timeo" | "retrans" | "nconnect" | "rsize" | "wsize" | "actimeo", value) => {
                let Ok(number) = value.parse::<u32>() else {
                    return refuse(at, format!("mountOptions: {option}: {value:?} is no number"));
                };
                mounted.options.insert(key.to_owned(), json!(number));
            }
            // As it is without them; 4.1 and later is what is spoken, by TCP.
            (
                "rw" | "nosuid" | "nodev" | "relatime" | "noatime" | "nodiratime" | "noresvport" | "_netdev" | "tcp",
                "",
            )
            | ("proto", "tcp")
            | ("vers" | "nfsvers", "4" | "4.1" | "4.2")
            | ("minorversion", "1" | "2")
            | ("port", "2049")
            | ("sec", "sys") => {}
            ("vers" | "nfsvers", version) => {
                return refuse(
                    at,
                    format!("mountOptions: {option}: NFS {version} is not spoken; the server must speak 4.1 or later"),
                );
            }
            _ => {
                return refuse(
                    at,
                    format!(
                        "mountOptions: {option} has no equal in a Share: take it out, if the volume can do without"
                    ),
                );
            }
        }
    }
    Ok(mounted)
}

fn write(found: Vec<Found>, hints: &Hints, known: &BTreeMap<IpAddr, String>) -> Converted<String> {
    let mut gateways: BTreeMap<String, (String, Value)> = BTreeMap::new();
    let mut objects: Vec<(String, Value)> = Vec::new();
    let mut shares: BTreeMap<(String, String, String), (usize, String)> = BTreeMap::new();
    let mut names: BTreeSet<String> = known.values().cloned().collect();
    for it in found {
        let address = match (it.server.trim_matches(['[', ']']).parse::<IpAddr>(), hints.addresses.get(&it.server)) {
            (Ok(address), _) | (Err(_), Some(&address)) => address,
            (Err(_), None) => {
                let message = format!(
                    "its server {} is a name, and a Gateway has addresses: say --address {}=IP",
                    it.server, it.server
                );
                return refuse(&it.at, message);
            }
        };
        if !it.export.starts_with('/') {
            return refuse(&it.at, format!("its path {:?} does not begin with '/'", it.export));
        }
        let namespaces: BTreeSet<String> = it.namespaces.iter().chain(&hints.namespaces).cloned().collect();
        if namespaces.is_empty() {
            return refuse(
                &it.at,
                "no claim says which namespace it is for: say --namespace NAME, once for each that may use it",
            );
        }
        let gateway = match (known.get(&address), gateways.get(&it.server)) {
            (Some(name), _) | (None, Some((name, _))) => name.clone(),
            (None, None) => {
                let name = unused(&mut names, &format!("nfs-{address}"));
                gateways.insert(it.server.clone(), (name.clone(), self::gateway(&name, address)));
                name
            }
        };
        let mounted = mounted(&it.at, &it.options, it.read_only)?;
        let key = (gateway.clone(), it.export.clone(), format!("{mounted:?}"));
        let share = match shares.get(&key) {
            Some((at, name)) => {
                let list = &mut objects[*at].1["spec"]["namespaces"];
                let known = list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
                *list = json!(known.chain(namespaces).collect::<BTreeSet<_>>());
                name.clone()
            }
            None => {
                let name = unused(&mut names, &it.name);
                shares.insert(key, (objects.len(), name.clone()));
                objects.push((String::new(), self::share(&name, &gateway, &it.export, &mounted, &namespaces)));
                name
            }
        };
        if let Some(volume) = &it.volume {
            let comment = volume.claim.as_ref().map(|(namespace, claim)| {
                format!(
                    "# A claim stays with the volume that it is bound to: end the pods of {namespace}/{claim}, keep its volume\n# (persistentVolumeReclaimPolicy: Retain), delete the claim, and then apply these two.\n"
                )
            });
            let volumes = persistent(&it, volume, &share, mounted.read_only);
            let count = volumes.len();
            let mut comments = vec![comment.unwrap_or_default()];
            comments.resize(count, String::new());
            objects.extend(comments.into_iter().zip(volumes));
        }
    }
    let gateways = gateways.into_values().map(|(_, gateway)| (String::new(), gateway));
    let mut yaml = String::new();
    for (comment, object) in gateways.chain(objects) {
        if !yaml.is_empty() {
            yaml.push_str("---\n");
        }
        yaml.push_str(&comment);
        yaml.push_str(&serde_saphyr::to_string(&object)?);
    }
    Ok(yaml)
}

/// A name like this one that may be ours, and that no other object of its kind has.
fn unused(names: &mut BTreeSet<String>, wish: &str) -> String {
    let plain: String =
        wish.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(50).collect();
    let plain = plain.trim_matches('-');
    let plain = if plain.parse::<Name>().is_ok() { plain } else { "share" };
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let name = std::iter::once(plain.to_owned()).chain(numbered).find(|name| !names.contains(name));
    let name = name.unwrap_or_default();
    names.insert(name.clone());
    name
}

fn gateway(name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "Gateway",
        "metadata": {"name": name},
        "spec": {"path": "direct", "targets": [{"name": "a", "server": address}]},
    })
}

fn share(name: &str, gateway: &str, export: &str, mounted: &Mounted, namespaces: &BTreeSet<String>) -> Value {
    let export = if export == "/" { export } else { export.trim_end_matches('/') };
    let access = if mounted.read_only { "ReadOnly" } else { "ReadWrite" };
    let mut spec = json!({"gateway": gateway, "export": export, "access": access, "namespaces": namespaces});
    if let Some(policy) = mounted.policy {
        spec["policy"] = json!(policy);
        // It was so, and whoever wrote it took that.
        if policy == "soft" && !mounted.read_only {
            spec["acceptLostWrites"] = json!(true);
        }
    }
    if !mounted.options.is_empty() {
        spec["mountOptions"] = json!(mounted.options);
    }
    json!({"apiVersion": API_VERSION, "kind": "Share", "metadata": {"name": name}, "spec": spec})
}

fn persistent(found: &Found, volume: &Volume, share: &str, read_only: bool) -> Vec<Value> {
    let name = format!("{}-moorline", found.name);
    let mut attributes = json!({SHARE: share});
    if !found.sub_dir.is_empty() {
        attributes[SUB_DIR] = json!(found.sub_dir);
    }
    let mut csi = json!({"driver": DRIVER, "volumeHandle": name, "volumeAttributes": attributes});
    if read_only {
        csi["readOnly"] = json!(true);
    }
    let mut persistent = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": found.size},
            "accessModes": volume.access_modes,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "csi": csi,
        },
    });
    let Some((namespace, claim)) = &volume.claim else { return vec![persistent] };
    persistent["spec"]["claimRef"] = json!({"namespace": namespace, "name": claim});
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": namespace},
        "spec": {
            "accessModes": volume.access_modes,
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": {"storage": found.size}},
        },
    });
    vec![persistent, claim]
}

#[cfg(test)]
mod tests {
    use moorline_shared::objects::{InUse, Objects};
    use moorline_shared::yaml;

    use super::*;

    fn volume(name: &str, source: &str, more: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  capacity: {{storage: 4Gi}}\n  accessModes: [ReadWriteMany]\n  {source}\n  {more}\n"
        )
    }

    /// What of ours comes of it: it must be what the agent takes.
    fn ours(yaml: &str) -> Objects {
        let documents = yaml.split("---\n").filter(|document| document.contains("moorline.io/v1alpha1"));
        let located: Vec<_> = documents
            .flat_map(|document| yaml::parse("converted", document).expect("an object that is taken"))
            .collect();
        let (objects, problems) = Objects::default().revise(&located, false, &InUse::default());
        assert!(problems.is_empty(), "{problems:?}");
        objects
    }

    #[test]
    fn a_volume_and_its_claim_of_kubelets_own_kind() {
        let claim =
            "---\nkind: PersistentVolumeClaim\nmetadata: {name: ckpt, namespace: training}\nspec: {volumeName: old}\n";
        let nfs = "nfs: {server: 10.0.0.7, path: /exports/ckpt}";
        let input = volume("old", nfs, "mountOptions: [vers=4.1, hard, nconnect=4]") + claim;
        let yaml = convert(&input, &Hints::default()).unwrap();
        let objects = ours(&yaml);
        let share = objects.shares.values().next().unwrap();
        assert_eq!((share.export.as_str(), share.options.nconnect), ("/exports/ckpt", Some(4)));
        assert!(
            share.namespaces.allow("training", None) == Some(true)
                && share.namespaces.allow("default", None) == Some(false)
        );
        assert!(yaml.contains("volumeHandle: old-moorline") && yaml.contains("share: old"), "{yaml}");
        assert!(yaml.contains("# A claim stays with the volume"), "{yaml}");
        assert_eq!(yaml.matches("name: ckpt").count(), 2, "the claim, and the volume that is for it: {yaml}");
    }

    #[test]
    fn a_gateway_that_leads_to_the_server_already_is_taken() {
        let gateway = "---\napiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {name: gw}\nspec: {scope: host, targets: [{name: a, server: 10.90.0.1}]}\n";
        let old = volume("old", "nfs: {server: 10.90.0.1, path: /data}", "claimRef: {namespace: a, name: c}");
        let other = volume("other", "nfs: {server: 10.90.0.2, path: /data}", "claimRef: {namespace: a, name: d}");
        let yaml = convert(&(gateway.to_owned() + &old + &other), &Hints::default()).unwrap();
        assert!(yaml.contains("gateway: gw\n") && yaml.contains("gateway: nfs-10-90-0-2\n"), "{yaml}");
        assert_eq!(yaml.matches("kind: Gateway").count(), 1, "{yaml}");
    }

    #[test]
    fn volumes_of_another_driver_share_what_they_share() {
        let csi = |sub: &str| {
            format!(
                "csi: {{driver: nfs.csi.k8s.io, volumeHandle: x, volumeAttributes: {{server: nas, share: /data, subdir: {sub}}}}}"
            )
        };
        let of = |namespace: &str| format!("claimRef: {{namespace: {namespace}, name: c}}");
        let input = volume("pvc-1", &csi("one"), &of("a")) + &volume("pvc-2", &csi("two"), &of("b"));
        let error = convert(&input, &Hints::default()).unwrap_err().to_string();
        assert!(
            error.contains("PersistentVolume pvc-1: its server nas is a name") && error.contains("--address nas=IP")
        );
        let hints = Hints { addresses: [("nas".to_owned(), "10.0.0.9".parse().unwrap())].into(), ..Hints::default() };
        let yaml = convert(&input, &hints).unwrap();
        let objects = ours(&yaml);
        assert_eq!((objects.gateways.len(), objects.shares.len()), (1, 1), "{yaml}");
        let share = objects.shares.values().next().unwrap();
        assert!(share.namespaces.allow("a", None) == Some(true) && share.namespaces.allow("b", None) == Some(true));
        assert!(yaml.contains("subDir: one") && yaml.contains("subDir: two"), "{yaml}");
    }

    #[test]
    fn what_a_provider_tells_of_its_shares() {
        let input = r#"{"shares": [
            {"id": "0a1b", "name": "sammy-share-drive", "size_gib": 1024, "region": "atl1", "status": "ACTIVE",
             "vpc_ids": ["v"], "mount_path": "/123456/uuid", "host": "10.128.32.2"},
            {"id": "1a1b", "name": "coming", "size_gib": 50, "region": "atl1", "status": "CREATING"}]}"#;
        let error = convert(input, &Hints::default()).unwrap_err().to_string();
        assert!(error.contains("share sammy-share-drive: no claim says") && error.contains("--namespace"), "{error}");
        let hints = Hints { namespaces: vec!["training".into()], ..Hints::default() };
        let objects = ours(&convert(input, &hints).unwrap());
        let share = objects.shares.values().next().unwrap();
        assert_eq!((share.name.to_string().as_str(), share.export.as_str()), ("sammy-share-drive", "/123456/uuid"));
        assert_eq!(objects.gateways.values().next().unwrap().targets[0].server.to_string(), "10.128.32.2");
    }

    #[test]
    fn what_can_not_be_is_named() {
        let said = |options: &str| {
            let nfs = "nfs: {server: 10.0.0.7, path: /x}";
            let more = format!("claimRef: {{namespace: a, name: b}}\n  mountOptions: [{options}]");
            convert(&volume("v", nfs, &more), &Hints::default()).map_err(|error| error.to_string())
        };
        assert!(said("vers=3").unwrap_err().contains("PersistentVolume v: mountOptions: vers=3: NFS 3 is not spoken"));
        assert!(said("nolock").unwrap_err().contains("nolock has no equal"));
        assert!(said("timeo=soon").unwrap_err().contains("\"soon\" is no number"));
        let soft = said("soft, timeo=100").unwrap();
        assert!(soft.contains("acceptLostWrites: true") && ours(&soft).shares.len() == 1, "{soft}");
        assert!(matches!(convert("kind: Pod\n", &Hints::default()), Err(ConvertError::Nothing)));
        assert!(matches!(convert("a: [", &Hints::default()), Err(ConvertError::Syntax(_))));
    }
}
