//! Gateways as they are written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Document, Problem, Raw};
use crate::gateway::{Gateway, KeySource, Path, Peer, Target, TunnelSpec};
use crate::key::{KeyError, PrivateKey};
use crate::mount_defaults::MountDefaults;

const DEFAULT_MTU: u32 = 1420;
const DEFAULT_AWAY_AFTER: Duration = Duration::from_secs(4);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawGateway {
    path: Option<Spanned<String>>,
    scope: Option<Spanned<String>>,
    shared_data: Option<Spanned<String>>,
    away_after: Option<Spanned<String>>,
    tunnel: Option<Spanned<RawTunnel>>,
    mount_defaults: Option<Spanned<RawMountDefaults>>,
    targets: Spanned<Vec<RawTarget>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawMountDefaults {
    policy: Option<Spanned<String>>,
    accept_lost_writes: Option<Spanned<String>>,
    timeo: Option<Spanned<String>>,
    retrans: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawTunnel {
    address: Spanned<String>,
    private_key: Option<Spanned<String>>,
    private_key_file: Option<Spanned<String>>,
    mtu: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawTarget {
    name: Spanned<String>,
    endpoint: Option<Spanned<String>>,
    public_key: Option<Spanned<String>>,
    server: Spanned<String>,
}

impl Document<'_> {
    pub(super) fn gateway(&self, raw: Raw<RawGateway>) -> Result<Gateway, Problem> {
        let spec = raw.spec;
        let path = self.path(&spec)?;
        let on_host = matches!(&path, Path::Tunnel(tunnel) if tunnel.on_host);
        let mut targets: Vec<Target> = Vec::new();
        for (index, raw) in spec.targets.value.iter().enumerate() {
            let target = self.target(index, raw, &path)?;
            if targets.iter().any(|other| other.name == target.name) {
                let field = format!("spec.targets[{index}].name");
                return Err(self.problem(
                    &raw.name,
                    &field,
                    format!("{} is the name of an earlier target; each needs its own", target.name),
                ));
            }
            if let Some(problem) = self.leads_astray(index, raw, &target, &targets).filter(|_| on_host) {
                return Err(problem);
            }
            targets.push(target);
        }
        if targets.is_empty() {
            return Err(self.problem(&spec.targets, "spec.targets", "is empty; name at least one target".into()));
        }
        let longest = Duration::from_secs(600);
        let away_after = match &spec.away_after {
            Some(text) => self.duration(text, "spec.awayAfter", Duration::from_secs(2)..=longest)?,
            None => DEFAULT_AWAY_AFTER,
        };
        let mount_defaults = match &spec.mount_defaults {
            Some(defaults) if !on_host => {
                let message = "is for scope: host; what a Share is mounted with stands in the Share".into();
                return Err(self.problem(defaults, "spec.mountDefaults", message));
            }
            defaults => self.mount_defaults(defaults.as_ref().map(|defaults| &defaults.value))?,
        };
        let shared_data = spec.shared_data.as_ref().map(|text| self.truth(text, "spec.sharedData")).transpose()?;
        Ok(Gateway {
            name: self.name(&raw.metadata)?,
            shared_data: shared_data.unwrap_or(false),
            path,
            away_after,
            targets,
            mount_defaults,
        })
    }

    fn path(&self, spec: &RawGateway) -> Result<Path, Problem> {
        let on_host = match &spec.scope {
            None => false,
            Some(scope) => match scope.value.as_str() {
                "isolated" => false,
                "host" => true,
                other => {
                    return Err(self.problem(scope, "spec.scope", format!("is {other:?}; use isolated or host")));
                }
            },
        };
        match (&spec.path, &spec.tunnel) {
            (Some(path), Some(tunnel)) if path.value == "direct" => {
                let message = "is for path: tunnel; a direct gateway is reached by the node's own network".into();
                Err(self.problem(tunnel, "spec.tunnel", message))
            }
            (Some(path), None) if path.value == "direct" => match &spec.scope {
                Some(scope) => {
                    let message = "is for path: tunnel; a direct gateway is on the node's own network anyway".into();
                    Err(self.problem(scope, "spec.scope", message))
                }
                None => Ok(Path::Direct),
            },
            (Some(path), _) if path.value != "tunnel" => {
                Err(self.problem(path, "spec.path", format!("is {:?}; use tunnel or direct", path.value)))
            }
            (_, Some(tunnel)) => Ok(Path::Tunnel(TunnelSpec { on_host, ..self.tunnel(&tunnel.value)? })),
            (_, None) => {
                let message = "is missing: a tunnel needs this node's address and private key (or say path: direct)";
                Err(self.problem(&spec.targets, "spec.tunnel", message.into()))
            }
        }
    }

    fn tunnel(&self, raw: &RawTunnel) -> Result<TunnelSpec, Problem> {
        let private_key = match (&raw.private_key, &raw.private_key_file) {
            (Some(key), None) => KeySource::Inline(
                // The text is left out of the message: it may be a key with one character missing.
                key.value
                    .parse()
                    .map_err(|error: KeyError| self.problem(key, "spec.tunnel.privateKey", error.to_string()))?,
            ),
            (None, Some(file)) if file.value.starts_with('/') && file.value.parse::<PrivateKey>().is_err() => {
                KeySource::File(PathBuf::from(&file.value))
            }
            (None, Some(file)) => {
                return Err(self.problem(
                    file,
                    "spec.tunnel.privateKeyFile",
                    "is not an absolute path, as /etc/moorline-keys/gw.key (the key itself goes into privateKey)"
                        .into(),
                ));
            }
            (None, None) | (Some(_), Some(_)) => {
                let message = "give exactly one of privateKey and privateKeyFile".into();
                return Err(self.problem(&raw.address, "spec.tunnel", message));
            }
        };
        let mtu = raw.mtu.as_ref().map(|mtu| self.number(mtu, "spec.tunnel.mtu", 1280..=65_000)).transpose()?;
        Ok(TunnelSpec {
            address: self.value(&raw.address, "spec.tunnel.address", "an IP address, as 10.90.0.2")?,
            private_key,
            mtu: mtu.unwrap_or(DEFAULT_MTU),
            on_host: false,
        })
    }

    /// Why the node's own network must not lead to this server, as far as the Gateway tells.
    fn leads_astray(&self, index: usize, raw: &RawTarget, target: &Target, earlier: &[Target]) -> Option<Problem> {
        let server = target.server;
        let endpoint = |target: &Target| target.peer.as_ref().map(|peer| peer.endpoint.ip());
        let (is_multicast, is_loopback) = (server.is_multicast(), server.is_loopback());
        let message = if earlier.iter().any(|other| other.server == server) {
            "is an earlier target's as well, and with scope: host the node's network can lead it one way only: give it another address inside the tunnel, or use scope: isolated"
        } else if earlier.iter().chain([target]).any(|other| endpoint(other) == Some(server))
            || earlier.iter().any(|other| endpoint(target) == Some(other.server))
        {
            "is where a WireGuard peer is: with scope: host its datagrams would be led into the tunnel. Give the server an address inside the tunnel"
        } else if server.is_unspecified() || is_multicast || is_loopback {
            "is no address of another machine's"
        } else {
            return None;
        };
        Some(self.problem(&raw.server, &format!("spec.targets[{index}].server"), message.into()))
    }

    fn mount_defaults(&self, raw: Option<&RawMountDefaults>) -> Result<MountDefaults, Problem> {
        let mut defaults = MountDefaults::default();
        let Some(raw) = raw else { return Ok(defaults) };
        let field = |name: &str| format!("spec.mountDefaults.{name}");
        let accepted = raw.accept_lost_writes.as_ref().map(|text| self.truth(text, &field("acceptLostWrites")));
        let accepted = accepted.transpose()? == Some(true);
        match raw.policy.as_ref().map(|policy| (policy, policy.value.as_str())) {
            None | Some((_, "hard")) => {}
            Some((_, "soft")) if accepted => defaults.soft = true,
            Some((policy, "soft")) => {
                let message = "is soft: a write that times out is lost, though write() said that it was done. Use hard, or say acceptLostWrites: true".into();
                return Err(self.problem(policy, &field("policy"), message));
            }
            Some((policy, other)) => {
                let message = format!("is {other:?}; use hard or soft: nobody ends what is bounded but of Shares");
                return Err(self.problem(policy, &field("policy"), message));
            }
        }
        if let Some(timeo) = &raw.timeo {
            defaults.timeo = self.number(timeo, &field("timeo"), 10..=6000)?;
        }
        if let Some(retrans) = &raw.retrans {
            defaults.retrans = self.number(retrans, &field("retrans"), 0..=100)?;
        }
        Ok(defaults)
    }

    fn target(&self, index: usize, raw: &RawTarget, path: &Path) -> Result<Target, Problem> {
        let field = |name: &str| format!("spec.targets[{index}].{name}");
        let peer = match (path, &raw.endpoint, &raw.public_key) {
            (Path::Tunnel(_), Some(endpoint), Some(key)) => Some(self.peer(endpoint, key, field)?),
            (Path::Tunnel(_), None, _) => {
                return Err(self.problem(
                    &raw.name,
                    &field("endpoint"),
                    "is missing: where is its WireGuard peer?".into(),
                ));
            }
            (Path::Tunnel(_), _, None) => {
                return Err(self.problem(&raw.name, &field("publicKey"), "is missing: its WireGuard peer's".into()));
            }
            (Path::Direct, None, None) => None,
            (Path::Direct, Some(given), _) | (Path::Direct, None, Some(given)) => {
                let message = "has an endpoint or a publicKey, which are for path: tunnel".into();
                return Err(self.problem(given, &format!("spec.targets[{index}]"), message));
            }
        };
        Ok(Target {
            name: self.value(&raw.name, &field("name"), "a name")?,
            server: self.value(
                &raw.server,
                &field("server"),
                "the NFS server's IP address (inside the tunnel, where there is one), as 10.90.0.1",
            )?,
            peer,
        })
    }

    fn peer(
        &self,
        endpoint: &Spanned<String>,
        key: &Spanned<String>,
        field: impl Fn(&str) -> String,
    ) -> Result<Peer, Problem> {
        let wanted = "an IP address and UDP port, as 192.0.2.1:51820 (names are not looked up)";
        let address: SocketAddr = self.value(endpoint, &field("endpoint"), wanted)?;
        if address.port() == 0 {
            let message = "the port is 0; WireGuard's usual one is 51820".into();
            return Err(self.problem(endpoint, &field("endpoint"), message));
        }
        let public_key = self.value(key, &field("publicKey"), "a WireGuard public key")?;
        Ok(Peer { endpoint: address, public_key })
    }
}
