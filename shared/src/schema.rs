//! The two objects that people write, as an API server is told of them: for `kubectl explain`, for what it refuses by
//! itself, and for whoever writes them by program. What is refused here `yaml` refuses as well, which has the last word.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

/// A storage endpoint: where the servers are, and how nodes reach them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.path == 'direct' || has(self.tunnel)",
        "message": "tunnel is missing: it needs this node's address and private key (or say path: direct)"
    },
    {
        "rule": "self.path != 'direct' || !has(self.tunnel)",
        "message": "tunnel is for path: tunnel; a direct gateway is reached by the node's own network"
    },
    {
        "rule": "self.path != 'direct' || !has(self.scope)",
        "message": "scope is for path: tunnel; a direct gateway is on the node's own network anyway"
    },
    {
        "rule": "!has(self.mountDefaults) || (has(self.scope) && self.scope == 'host')",
        "message": "mountDefaults is for scope: host; what a Share is mounted with stands in the Share"
    },
    {
        "rule": "!has(self.scope) || self.scope != 'host' || self.targets.all(target, self.targets.exists_one(other, other.server == target.server))",
        "message": "with scope: host the node's network can lead a server's address one way only: give each target's server another address inside the tunnel, or use scope: isolated"
    },
    {
        "rule": "self.path != 'direct' || self.targets.all(target, !has(target.endpoint) && !has(target.publicKey))",
        "message": "a target's endpoint and publicKey are for path: tunnel"
    },
    {
        "rule": "self.path == 'direct' || self.targets.all(target, has(target.endpoint) && has(target.publicKey))",
        "message": "each target needs the endpoint and the publicKey of its WireGuard peer (or say path: direct)"
    }
]))]
pub struct GatewaySpec {
    /// How its servers are reached: through WireGuard, or by the node's own network (a LAN, PrivateLink, VPC peering).
    #[schemars(extend("default" = "tunnel"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathKind>,
    /// Where a tunnel ends on a node: in a network namespace of its own (isolated), or in the node's own network (host),
    /// where whatever else the node mounts from its servers goes through it as well, as volumes of kubelet's own `nfs:` do.
    /// Isolated unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeKind>,
    /// The targets hold the same data: a ReadWrite share may move from one to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_data: Option<bool>,
    /// How long a server may be silent before it counts as away: 2s to 10m, 4s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub away_after: Option<String>,
    /// This node's end of the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelSpec>,
    /// What mounts of its servers that are no Share's take for granted, as far as they don't say it themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_defaults: Option<MountDefaultsSpec>,
    /// Where the data is, in the order of failover.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<TargetSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    Tunnel,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScopeKind {
    Isolated,
    Host,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.policy) || self.policy != 'soft' || (has(self.acceptLostWrites) && self.acceptLostWrites)",
        "message": "policy: soft: a write that times out is lost, though write() said that it was done. Use hard, or say acceptLostWrites: true"
    }
]))]
pub struct MountDefaultsSpec {
    /// What becomes of I/O while the server is away: it blocks (hard), or fails when the kernel's time is over (soft). Under
    /// soft a mount that says hard is soft as well: mount.nfs lets the default stand.
    #[schemars(extend("default" = "hard"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<DefaultPolicyKind>,
    /// That soft mounts may lose what was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_lost_writes: Option<bool>,
    /// Tenths of a second until a call is sent again; 600 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 6000))]
    pub timeo: Option<u32>,
    /// How often it is sent again until its major timeout; 2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub retrans: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DefaultPolicyKind {
    Hard,
    Soft,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TunnelSpec {
    /// The node's address inside the tunnel.
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{"rule": "isIP(self)", "message": "must be an IP address, as 10.90.0.2"}]))]
    pub address: String,
    /// A file on the node, or in the agent's pod, that holds the node's private key. The key itself has no place in an
    /// object that many may read.
    #[schemars(regex(pattern = "^/"), length(max = 1024))]
    pub private_key_file: String,
    /// 1420 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65000))]
    pub mtu: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetSpec {
    #[schemars(regex(pattern = NAME), length(max = 63))]
    pub name: String,
    /// The NFS server's IP address: inside the tunnel, where there is one.
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{"rule": "isIP(self)", "message": "must be an IP address, as 10.90.0.1"}]))]
    pub server: String,
    /// Where its WireGuard peer is: an IP address and UDP port, as 192.0.2.1:51820.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = ENDPOINT), length(max = 64))]
    pub endpoint: Option<String>,
    /// That peer's public key, as `wg pubkey` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = KEY), length(max = 44))]
    pub public_key: Option<String>,
}

/// Something to mount.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.policy != 'bounded' || has(self.after)",
        "message": "policy is bounded, by what? Say after: 5m, or another time"
    },
    {
        "rule": "has(self.nodeMount) || !has(self.nodeSelector)",
        "message": "nodeSelector is for nodeMount, and there is none"
    },
    {
        "rule": "has(self.namespaces) || has(self.namespaceSelector)",
        "message": "says neither namespaces nor namespaceSelector, so no pod could use the share"
    },
    {
        "rule": "self.policy == 'bounded' || !has(self.after)",
        "message": "after is for policy: bounded"
    },
    {
        "rule": "self.policy != 'soft' || self.access != 'ReadWrite' || (has(self.acceptLostWrites) && self.acceptLostWrites)",
        "message": "policy: soft contradicts access: ReadWrite: a write that times out is lost, though write() said that it was done. Use hard or bounded, or say acceptLostWrites: true"
    }
]))]
pub struct ShareSpec {
    /// The name of its Gateway.
    #[schemars(regex(pattern = NAME), length(max = 63))]
    pub gateway: String,
    /// The path as the server exports it.
    #[schemars(regex(pattern = EXPORT), length(max = 1024), extend("x-kubernetes-validations" = [{"rule": "!self.split('/').exists(part, part == '.' || part == '..')", "message": "must be a path without '.' and '..'"}]))]
    pub export: String,
    pub access: AccessKind,
    /// What becomes of I/O while the server is away: it blocks until one is back (hard), it fails when the kernel's time is
    /// over (soft), or it blocks until a deadline and fails then (bounded).
    #[schemars(extend("default" = "hard"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyKind>,
    /// How long a bounded share blocks: 10s to 7d.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub after: Option<String>,
    /// That a soft share may lose what was written, and is ReadWrite all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_lost_writes: Option<bool>,
    /// Options of the kernel's NFS client. There are no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_options: Option<MountOptionsSpec>,
    /// The namespaces whose pods may use it; "*" alone is all.
    #[schemars(length(min = 1, max = 1024), inner(regex(pattern = NAMESPACE), length(max = 63)), extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = [{"rule": "self.size() == 1 || !self.exists(name, name == '*')", "message": "\"*\" is all namespaces, and stands alone"}]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
    /// And those that are labelled so; what is said under it must all hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<SelectorSpec>,
    /// A place on every node where it is mounted as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(/[^/]+)+$"), length(max = 1024))]
    pub node_mount: Option<String>,
    /// On nodes that are labelled so, if not on all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<SelectorSpec>,
    /// A claim's directory may be deleted with the claim, where its StorageClass says `onDelete: delete`; not by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_delete: Option<bool>,
    /// Whether pods may have volumes of it by themselves, of any of its directories; they may by default. With false it is for
    /// PersistentVolumes and claims alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<bool>,
}

/// A Kubernetes LabelSelector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && self.matchExpressions.size() > 0)",
    "message": "is empty; for all namespaces say namespaces: [\"*\"], and for all nodes nothing"
}]))]
pub struct SelectorSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub match_expressions: Option<Vec<RequirementSpec>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
    "message": "In and NotIn have values, Exists and DoesNotExist have none"
}]))]
pub struct RequirementSpec {
    pub key: String,
    pub operator: Operator,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub values: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum AccessKind {
    ReadOnly,
    ReadWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    Hard,
    Soft,
    Bounded,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MountOptionsSpec {
    /// Tenths of a second until a call is sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 6000))]
    pub timeo: Option<u32>,
    /// How often it is sent again until its major timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub retrans: Option<u32>,
    /// TCP connections to the server. By default it follows from the measured round trip, as readahead does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub nconnect: Option<u32>,
    /// How far the kernel reads ahead, in KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4, max = 65536))]
    pub readahead: Option<u32>,
    /// Bytes in one READ.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4096, max = 1_048_576), extend("multipleOf" = 4096))]
    pub rsize: Option<u32>,
    /// Bytes in one WRITE.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4096, max = 1_048_576), extend("multipleOf" = 4096))]
    pub wsize: Option<u32>,
    /// Seconds for which attributes are believed without asking.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub actimeo: Option<u32>,
    /// No program is run from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noexec: Option<bool>,
}

pub(crate) const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const NAMESPACE: &str = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$";
const EXPORT: &str = "^(/|(/[^/]+)+)$";
const DURATION: &str = "^([0-9]+(ms|s|m|h|d) ?)+$";
const ENDPOINT: &str = r"^([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$";
/// 32 bytes in base64.
const KEY: &str = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use schemars::Schema;
    use serde_json::Value;

    use super::*;
    use crate::yaml::parse;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn document(kind: &str, spec: &impl Serialize) -> String {
        let spec = serde_json::to_string(spec).unwrap();
        format!(
            "{{\"apiVersion\":\"moorline.io/v1alpha1\",\"kind\":\"{kind}\",\"metadata\":{{\"name\":\"a\"}},\"spec\":{spec}}}"
        )
    }

    fn gateways() -> [GatewaySpec; 2] {
        let target = TargetSpec { name: "a".into(), server: "10.90.0.1".into(), endpoint: None, public_key: None };
        let direct =
            GatewaySpec { path: Some(PathKind::Direct), targets: vec![target.clone()], ..GatewaySpec::default() };
        let tunnel = GatewaySpec {
            path: Some(PathKind::Tunnel),
            shared_data: Some(true),
            away_after: Some("10s".into()),
            scope: Some(ScopeKind::Host),
            mount_defaults: Some(MountDefaultsSpec {
                policy: Some(DefaultPolicyKind::Soft),
                accept_lost_writes: Some(true),
                timeo: Some(100),
                retrans: Some(1),
            }),
            tunnel: Some(TunnelSpec {
                address: "10.90.0.2".into(),
                private_key_file: "/etc/k".into(),
                mtu: Some(1400),
            }),
            targets: vec![TargetSpec {
                endpoint: Some("[2001:db8::1]:51820".into()),
                public_key: Some(KEY.into()),
                ..target
            }],
        };
        [direct, tunnel]
    }

    fn selector() -> SelectorSpec {
        let expression =
            RequirementSpec { key: "env".into(), operator: Operator::In, values: Some(vec!["prod".into()]) };
        // Whatever keys.
        SelectorSpec { match_labels: Some(BTreeMap::new()), match_expressions: Some(vec![expression]) }
    }

    fn share() -> ShareSpec {
        let options = MountOptionsSpec {
            timeo: Some(600),
            retrans: Some(2),
            nconnect: Some(4),
            readahead: Some(4096),
            rsize: Some(65_536),
            wsize: Some(65_536),
            actimeo: Some(60),
            noexec: Some(true),
        };
        ShareSpec {
            gateway: "gw".into(),
            export: "/data".into(),
            access: AccessKind::ReadWrite,
            policy: Some(PolicyKind::Bounded),
            after: Some("5m".into()),
            accept_lost_writes: Some(true),
            mount_options: Some(options),
            namespaces: Some(vec!["training".into()]),
            namespace_selector: Some(selector()),
            node_mount: Some("/mnt/data".into()),
            node_selector: Some(selector()),
            allow_delete: Some(true),
            inline: Some(false),
        }
    }

    /// Of each object in a schema, by its place, the fields that it has.
    fn fields(schema: &Value, root: &Value, place: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
        let schema = schema.get("anyOf").and_then(|any| any.get(0)).unwrap_or(schema);
        let definition = schema.get("$ref").and_then(Value::as_str);
        let schema = definition.map_or(schema, |at| root.pointer(&at[1..]).unwrap());
        if let Some(items) = schema.get("items") {
            fields(items, root, place, found);
        }
        for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            found.entry(place.to_owned()).or_default().insert(name.clone());
            fields(field, root, &format!("{place}.{name}"), found);
        }
    }

    /// And of each that is written.
    fn written(value: &Value, place: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| written(item, place, found)),
            Value::Object(fields) => {
                for (name, field) in fields {
                    found.entry(place.to_owned()).or_default().insert(name.clone());
                    written(field, &format!("{place}.{name}"), found);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn what_an_api_server_takes_is_what_a_file_may_say() {
        let check = |kind: &str, schema: Schema, specs: &[Value]| {
            let (mut known, mut said) = (BTreeMap::new(), BTreeMap::new());
            fields(schema.as_value(), schema.as_value(), "spec", &mut known);
            for spec in specs {
                let parsed = parse("a", &document(kind, spec));
                assert!(parsed.is_ok(), "{kind}: {parsed:?}");
                written(spec, "spec", &mut said);
            }
            assert_eq!(known, said, "{kind}: the example has every field of the schema");
        };
        let value = |spec: &GatewaySpec| serde_json::to_value(spec).unwrap();
        check("Gateway", schemars::schema_for!(GatewaySpec), &gateways().each_ref().map(value));
        check("Share", schemars::schema_for!(ShareSpec), &[serde_json::to_value(share()).unwrap()]);
    }

    /// The parser names the fields that it knows, when it meets one that it does not.
    #[test]
    fn what_a_file_may_say_an_api_server_takes() {
        let expected = |kind: &str, spec: &Value, at: &str| -> BTreeSet<String> {
            let mut spec = spec.clone();
            spec.pointer_mut(at).unwrap()["unheardOf"] = true.into();
            let problem = parse("a", &document(kind, &spec)).unwrap_err().message;
            let (_, known) = problem.split_once("expected one of ").unwrap();
            let (known, _) = known.split_once(" at line").unwrap();
            known.split(", ").map(str::to_owned).collect()
        };
        let names = |spec: &Value, at: &str| -> BTreeSet<String> {
            spec.pointer(at).and_then(Value::as_object).unwrap().keys().cloned().collect()
        };
        let gateway = serde_json::to_value(&gateways()[1]).unwrap();
        let share = serde_json::to_value(share()).unwrap();
        for (kind, spec, at) in [
            ("Gateway", &gateway, ""),
            ("Gateway", &gateway, "/tunnel"),
            ("Gateway", &gateway, "/mountDefaults"),
            ("Gateway", &gateway, "/targets/0"),
            ("Share", &share, ""),
            ("Share", &share, "/namespaceSelector"),
            ("Share", &share, "/namespaceSelector/matchExpressions/0"),
        ] {
            let mut known = expected(kind, spec, at);
            // A key has no place in what many may read.
            known.remove("privateKey");
            assert_eq!(known, names(spec, at), "{kind} {at}");
        }
    }
}
