//! Identities that live in the names of files below the agent's run directory, so that a new agent
//! reads from the mount table alone what an earlier one made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::name::Name;
use crate::share::Access;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name {1}")]
pub struct IdError(String, &'static str);

impl IdError {
    pub(crate) fn new(text: &str, what: &'static str) -> Self {
        Self(text.to_owned(), what)
    }
}

/// A name for what may be called anything: 32 hexadecimal digits.
pub fn fingerprint(text: &str) -> String {
    Sha256::digest(text)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One server behind a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId {
    pub gateway: Name,
    pub target: Name,
}

/// A network namespace that leads to one target. A namespace that was fenced never leads anywhere again:
/// its target gets the next generation, so what an old superblock still holds can't reach the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId {
    pub target: TargetId,
    pub generation: u32,
}

/// A publication, named by a digest of its target path: the path is what kubelet identifies it by on a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicationId([u8; 8]);

/// Who uses a superblock: the kernel aborts by superblock, so this is also who an abort reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum User {
    /// Every read-only publication of the share.
    ReadOnly,
    /// This read-write publication alone.
    ReadWrite(PublicationId),
    /// The share's node mount: whoever uses the node's own file system, all together.
    Node(Access),
}

impl User {
    /// It may leave something unwritten.
    pub fn writes(self) -> bool {
        match self {
            Self::ReadOnly | Self::Node(Access::ReadOnly) => false,
            Self::ReadWrite(_) | Self::Node(Access::ReadWrite) => true,
        }
    }
}

/// A superblock of the kernel's NFS client, held by a mount of our own. The share's highest epoch is the one in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SuperblockId {
    pub share: Name,
    pub epoch: u32,
    pub namespace: NamespaceId,
    pub user: User,
}

impl SuperblockId {
    /// It has taken the place of that one: of the same share and user, and newer.
    pub fn succeeds(&self, old: &Self) -> bool {
        self.share == old.share && self.user == old.user && self.epoch > old.epoch
    }
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.gateway, self.target)
    }
}

impl FromStr for TargetId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parse = || {
            let (gateway, target) = text.split_once('.')?;
            Some(Self { gateway: gateway.parse().ok()?, target: target.parse().ok()? })
        };
        parse().ok_or_else(|| IdError::new(text, "a target (gateway.target)"))
    }
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.target, self.generation)
    }
}

impl FromStr for NamespaceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parse = || {
            let mut parts = text.split('.');
            let id = Self {
                target: TargetId { gateway: parts.next()?.parse().ok()?, target: parts.next()?.parse().ok()? },
                generation: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(id)
        };
        parse().ok_or_else(|| IdError(text.to_owned(), "a network namespace (gateway.target.generation)"))
    }
}

impl PublicationId {
    pub fn of(target_path: &str) -> Self {
        let digest = Sha256::digest(target_path.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Self(id)
    }
}

impl fmt::Display for PublicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PublicationId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let lower_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let number = lower_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number
            .map(|number| Self(number.to_be_bytes()))
            .ok_or_else(|| IdError(text.to_owned(), "a publication (16 hexadecimal digits)"))
    }
}

impl fmt::Display for SuperblockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}@", self.share, self.epoch, self.namespace)?;
        match self.user {
            User::ReadOnly => f.write_str("ro"),
            User::ReadWrite(publication) => write!(f, "{publication}"),
            User::Node(Access::ReadOnly) => f.write_str("node-ro"),
            User::Node(Access::ReadWrite) => f.write_str("node-rw"),
        }
    }
}

impl FromStr for SuperblockId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parse = || {
            let mut parts = text.split('@');
            let (share, epoch) = parts.next()?.split_once('.')?;
            let namespace = parts.next()?.parse().ok()?;
            let user = match parts.next()? {
                "ro" => User::ReadOnly,
                "node-ro" => User::Node(Access::ReadOnly),
                "node-rw" => User::Node(Access::ReadWrite),
                publication => User::ReadWrite(publication.parse().ok()?),
            };
            let id = Self { share: share.parse().ok()?, epoch: epoch.parse().ok()?, namespace, user };
            parts.next().is_none().then_some(id)
        };
        parse().ok_or_else(|| IdError(text.to_owned(), "a superblock (share.epoch@namespace@user)"))
    }
}

/// Serialised as the text that Display prints and FromStr reads.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use serde_as_text;
serde_as_text!(TargetId, NamespaceId, PublicationId, SuperblockId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_round_trip_through_file_names() {
        for text in
            ["data.1@gw.a.1@ro", "data.2@gw.a.1@node-ro", "data.3@gw.a.1@node-rw", "data.12@gw-2.b.3@00ff00ff00ff00ff"]
        {
            assert_eq!(text.parse::<SuperblockId>().unwrap().to_string(), text);
        }
        let publication = PublicationId::of("/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/v/mount");
        assert_eq!(publication.to_string().parse::<PublicationId>().unwrap(), publication);
    }

    #[test]
    fn foreign_file_names_are_no_ids() {
        for text in ["", "data", "data.1", "data.1@gw.a.1", "data.1@gw.a.1@rw", "data.1@gw.a.1@ro@", "../x.1@gw.a.1@ro"]
        {
            assert!(text.parse::<SuperblockId>().is_err(), "{text:?}");
        }
        for text in ["gw", "gw.a", "gw.a.b", "gw.a.1.2", "gw.a.-1"] {
            assert!(text.parse::<NamespaceId>().is_err(), "{text:?}");
        }
    }
}
