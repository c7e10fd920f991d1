//! Gateways as they are written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Document, Problem, Raw};
use crate::gateway::{Gateway, KeySource, Path, Peer, Target, TunnelSpec};
use crate::key::{KeyError, PrivateKey};

const DEFAULT_MTU: u32 = 1420;
const DEFAULT_AWAY_AFTER: Duration = Duration::from_secs(4);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawGateway {
    path: Option<Spanned<String>>,
    shared_data: Option<Spanned<String>>,
    away_after: Option<Spanned<String>>,
    tunnel: Option<Spanned<RawTunnel>>,
    targets: Spanned<Vec<RawTarget>>,
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
        let path = self.path(spec.path.as_ref(), spec.tunnel.as_ref(), &spec.targets)?;
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
        let shared_data = spec.shared_data.as_ref().map(|text| self.truth(text, "spec.sharedData")).transpose()?;
        Ok(Gateway {
            name: self.name(&raw.metadata)?,
            shared_data: shared_data.unwrap_or(false),
            path,
            away_after,
            targets,
        })
    }

    fn path<T>(
        &self,
        path: Option<&Spanned<String>>,
        tunnel: Option<&Spanned<RawTunnel>>,
        targets: &Spanned<T>,
    ) -> Result<Path, Problem> {
        match (path, tunnel) {
            (Some(path), Some(tunnel)) if path.value == "direct" => {
                let message = "is for path: tunnel; a direct gateway is reached by the node's own network".into();
                Err(self.problem(tunnel, "spec.tunnel", message))
            }
            (Some(path), None) if path.value == "direct" => Ok(Path::Direct),
            (Some(path), _) if path.value != "tunnel" => {
                Err(self.problem(path, "spec.path", format!("is {:?}; use tunnel or direct", path.value)))
            }
            (_, Some(tunnel)) => Ok(Path::Tunnel(self.tunnel(&tunnel.value)?)),
            (_, None) => {
                let message = "is missing: a tunnel needs this node's address and private key (or say path: direct)";
                Err(self.problem(targets, "spec.tunnel", message.into()))
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
        })
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
