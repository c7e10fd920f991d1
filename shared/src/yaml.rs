//! From a file's text to checked objects. Every refusal names file, line and field, and says what would be right.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;

use crate::gateway::{Gateway, KeySource, Target, TunnelSpec};
use crate::key::{KeyError, PrivateKey};
use crate::name::Name;
use crate::share::{Access, Namespaces, Share};

const API_VERSION: &str = "moorline.io/v1alpha1";
const DEFAULT_MTU: u32 = 1420;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Gateway(Gateway),
    Share(Share),
}

/// What is wrong with a file, in words for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    pub file: String,
    pub line: Option<u64>,
    /// Empty when the problem is with the whole document.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// An object with the file and line where it begins, for problems that show only beside other objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub object: Object,
    pub file: String,
    pub line: u64,
}

/// All objects of one file, or the first problem in it: a file is taken whole or not at all.
pub fn parse(file: &str, text: &str) -> Result<Vec<Located>, Problem> {
    documents(text)
        .map(|(line, document)| Document { file, line, text: document }.parse())
        .filter_map(Result::transpose)
        .collect()
}

/// The documents of a stream, each behind as many empty lines as stand before it, so that positions stay true.
/// A line that begins with `---` always ends a document in YAML, inside block scalars too.
fn documents(text: &str) -> impl Iterator<Item = (u64, String)> {
    let mut documents = vec![(1, String::new())];
    for (index, line) in text.lines().enumerate() {
        let number = index as u64 + 1;
        if line == "---" || line.starts_with("--- ") {
            documents.push((number + 1, "\n".repeat(index + 1)));
        } else if let Some((_, document)) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.into_iter().filter(|(_, document)| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    })
}

struct Document<'a> {
    file: &'a str,
    line: u64,
    text: String,
}

impl Document<'_> {
    fn parse(&self) -> Result<Option<Located>, Problem> {
        let header: Header = self.read()?;
        if header.api_version.value != API_VERSION {
            return Err(self.problem(
                &header.api_version,
                "apiVersion",
                format!("is {:?}; moorline's objects have {API_VERSION:?}", header.api_version.value),
            ));
        }
        let object = match header.kind.value.as_str() {
            "Gateway" => Object::Gateway(self.gateway(self.read()?)?),
            "Share" => Object::Share(self.share(self.read()?)?),
            other => {
                return Err(self.problem(
                    &header.kind,
                    "kind",
                    format!("is {other:?}; known kinds are Gateway and Share"),
                ));
            }
        };
        Ok(Some(Located { object, file: self.file.to_owned(), line: self.line }))
    }

    fn gateway(&self, raw: Raw<RawGateway>) -> Result<Gateway, Problem> {
        let spec = raw.spec;
        if let Some(path) = &spec.path
            && path.value != "tunnel"
        {
            return Err(self.problem(
                path,
                "spec.path",
                format!("is {:?}; this version knows only \"tunnel\"", path.value),
            ));
        }
        let tunnel = self.tunnel(spec.tunnel)?;
        let mut targets: Vec<Target> = Vec::new();
        for (index, raw) in spec.targets.value.iter().enumerate() {
            let target = self.target(index, raw)?;
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
        Ok(Gateway { name: self.name(&raw.metadata)?, shared_data: spec.shared_data, tunnel, targets })
    }

    fn tunnel(&self, raw: RawTunnel) -> Result<TunnelSpec, Problem> {
        let private_key = match (raw.private_key, raw.private_key_file) {
            (Some(key), None) => KeySource::Inline(
                // The text is left out of the message: it may be a key with one character missing.
                key.value
                    .parse()
                    .map_err(|error: KeyError| self.problem(&key, "spec.tunnel.privateKey", error.to_string()))?,
            ),
            (None, Some(file)) if file.value.starts_with('/') && file.value.parse::<PrivateKey>().is_err() => {
                KeySource::File(PathBuf::from(file.value))
            }
            (None, Some(file)) => {
                return Err(self.problem(
                    &file,
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
        let mtu = match raw.mtu {
            None => DEFAULT_MTU,
            Some(mtu) if (1280..=65_000).contains(&mtu.value) => mtu.value,
            Some(mtu) => {
                return Err(self.problem(&mtu, "spec.tunnel.mtu", format!("{} is outside 1280 to 65000", mtu.value)));
            }
        };
        Ok(TunnelSpec {
            address: self.value(&raw.address, "spec.tunnel.address", "an IP address, as 10.90.0.2")?,
            private_key,
            mtu,
        })
    }

    fn target(&self, index: usize, raw: &RawTarget) -> Result<Target, Problem> {
        let field = |name: &str| format!("spec.targets[{index}].{name}");
        let endpoint: SocketAddr = self.value(
            &raw.endpoint,
            &field("endpoint"),
            "an IP address and UDP port, as 192.0.2.1:51820 (names are not looked up)",
        )?;
        if endpoint.port() == 0 {
            return Err(self.problem(
                &raw.endpoint,
                &field("endpoint"),
                "the port is 0; WireGuard's usual one is 51820".into(),
            ));
        }
        Ok(Target {
            name: self.value(&raw.name, &field("name"), "a name")?,
            endpoint,
            public_key: self.value(&raw.public_key, &field("publicKey"), "a WireGuard public key")?,
            server: self.value(
                &raw.server,
                &field("server"),
                "the NFS server's IP address inside the tunnel, as 10.90.0.1",
            )?,
        })
    }

    fn share(&self, raw: Raw<RawShare>) -> Result<Share, Problem> {
        let spec = raw.spec;
        let access = match spec.access.value.as_str() {
            "ReadOnly" => Access::ReadOnly,
            "ReadWrite" => Access::ReadWrite,
            other => {
                return Err(self.problem(
                    &spec.access,
                    "spec.access",
                    format!("is {other:?}; use ReadOnly or ReadWrite"),
                ));
            }
        };
        let export = &spec.export.value;
        let normal = export.starts_with('/')
            && !export.contains('\0')
            && export[1..].split('/').all(|part| !matches!(part, "." | ".."));
        if !normal || (export.len() > 1 && export[1..].split('/').any(str::is_empty)) {
            let message = format!("{export:?} is not an absolute path without '.', '..' and doubled '/'");
            return Err(self.problem(&spec.export, "spec.export", message));
        }
        let namespaces = self.namespaces(&spec.namespaces)?;
        Ok(Share {
            name: self.name(&raw.metadata)?,
            gateway: self.value(&spec.gateway, "spec.gateway", "the name of a Gateway")?,
            export: export.clone(),
            access,
            namespaces,
        })
    }

    fn namespaces(&self, raw: &Spanned<Vec<Spanned<String>>>) -> Result<Namespaces, Problem> {
        match raw.value.as_slice() {
            [] => Err(self.problem(
                raw,
                "spec.namespaces",
                "is empty, so no pod could use the share; name namespaces, or \"*\" for all".into(),
            )),
            [all] if all.value == "*" => Ok(Namespaces::All),
            names => names
                .iter()
                .enumerate()
                .map(|(index, name)| {
                    self.value(name, &format!("spec.namespaces[{index}]"), "a namespace (or \"*\" alone, for all)")
                })
                .collect::<Result<_, _>>()
                .map(Namespaces::Only),
        }
    }

    fn name(&self, metadata: &RawMetadata) -> Result<Name, Problem> {
        self.value(&metadata.name, "metadata.name", "a name")
    }

    fn value<T>(&self, text: &Spanned<String>, field: &str, wanted: &str) -> Result<T, Problem>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        text.value
            .parse()
            .map_err(|error| self.problem(text, field, one_line(&format!("{:?} is not {wanted}: {error}", text.value))))
    }

    fn problem<T>(&self, at: &Spanned<T>, field: &str, message: String) -> Problem {
        Problem { file: self.file.to_owned(), line: Some(at.referenced.line()), field: field.to_owned(), message }
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_saphyr::from_str(&self.text).map_err(|error| Problem {
            file: self.file.to_owned(),
            line: Some(error.location().map_or(self.line, |location| location.line())),
            field: String::new(),
            message: one_line(&error.without_snippet().to_string()),
        })
    }
}

/// On one line, and without what may be a key: a private one in the wrong place must not end in a log. One that was cut
/// short is still most of a key.
fn one_line(text: &str) -> String {
    let key_like =
        |word: &str| word.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')).count() >= 32;
    text.split_whitespace().map(|word| if key_like(word) { "(hidden)" } else { word }).collect::<Vec<_>>().join(" ")
}

// The documents as they are written. Unknown fields are refused, so a misspelt one can't silently do nothing.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Spanned<String>,
    kind: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", bound = "T: Deserialize<'de>")]
struct Raw<T> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: RawMetadata,
    spec: T,
}

/// Labels and annotations are Kubernetes' own and may be there.
#[derive(Deserialize)]
struct RawMetadata {
    name: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawGateway {
    path: Option<Spanned<String>>,
    #[serde(default)]
    shared_data: bool,
    tunnel: RawTunnel,
    targets: Spanned<Vec<RawTarget>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawTunnel {
    address: Spanned<String>,
    private_key: Option<Spanned<String>>,
    private_key_file: Option<Spanned<String>>,
    mtu: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawTarget {
    name: Spanned<String>,
    endpoint: Spanned<String>,
    public_key: Spanned<String>,
    server: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawShare {
    gateway: Spanned<String>,
    export: Spanned<String>,
    access: Spanned<String>,
    namespaces: Spanned<Vec<Spanned<String>>>,
}

#[cfg(test)]
mod tests;
