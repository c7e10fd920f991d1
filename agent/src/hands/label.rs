//! The SELinux label that containers see a share's files with.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Failure, doing};

const ENFORCE: &str = "/sys/fs/selinux/enforce";
const CONTEXT: &str = "/sys/fs/selinux/context";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SELinux label: give USER:ROLE:TYPE:LEVEL, as {default}", default = Label::DEFAULT)]
pub struct LabelError(String);

impl Label {
    /// Every container may read and write it: the type that policies for containers give to their files, and none of the
    /// categories that keep one pod from another's.
    pub const DEFAULT: &str = "system_u:object_r:container_file_t:s0";

    /// Itself where new superblocks are to have it. Asked in the host's mount namespace: a container has no selinuxfs.
    ///
    /// They have it where SELinux is permissive too, if the policy knows it: they outlive a `setenforce 1`, and so do the
    /// pods on them.
    pub(super) fn where_it_counts(&self) -> Result<Option<&Self>, Failure> {
        let enforces = match fs::read_to_string(ENFORCE) {
            Ok(text) => text.trim() == "1",
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(doing(format!("read {ENFORCE}"))(error)),
        };
        let known = self.is_known().map_err(doing(format!("ask by {CONTEXT} for the label {self}")))?;
        if enforces && !known {
            return Err(Failure::definite(format!(
                "this node's SELinux policy does not know the label {self}, which its containers are to see shares with: install the policy for containers (container-selinux), or name a label that they may read and write by the agent's --selinux-label"
            )));
        }
        Ok(known.then_some(self))
    }

    /// Whether the policy has it.
    fn is_known(&self) -> io::Result<bool> {
        let mut asked = File::options().read(true).write(true).open(CONTEXT)?;
        match asked.write_all(self.0.as_bytes()) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => return Ok(false),
            written => written?,
        }
        let mut meant = String::new();
        asked.read_to_string(&mut meant)?;
        // Before a policy is loaded the kernel takes everything for its one label, `kernel`.
        Ok(meant.contains(':'))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let plain = |part: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.,".contains(&byte);
            !part.is_empty() && part.bytes().all(known)
        };
        // A level may have a colon of its own; a policy without levels has three parts.
        if text.split(':').count() >= 3 && text.split(':').all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(LabelError(text.to_owned()))
        }
    }
}

impl Default for Label {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_its_parts_and_nothing_that_a_mount_option_minds() {
        for good in [Label::DEFAULT, "system_u:object_r:nfs_t", "u:object_r:share_t:s0:c1,c2", "u:r:t:s0-s0:c0.c1023"] {
            assert_eq!(good.parse::<Label>().map(|label| label.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "container_file_t", "a::c", "a:b:", "a:b:c\"d", "a:b:c d", "a:b:c\n", "a:b:ö"] {
            let error = bad.parse::<Label>().unwrap_err().to_string();
            assert!(error.contains("USER:ROLE:TYPE:LEVEL"), "{error}");
        }
        assert_eq!(Label::DEFAULT.parse(), Ok(Label::default()));
    }
}
