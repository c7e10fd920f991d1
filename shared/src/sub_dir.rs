//! A directory below the root of a share.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Relative and normal: its text can't lead out of a share. What lies there on the server is checked when it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubDir(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no directory below a share's root: write it relative to that root, as a/b, without '.', '..', an empty part, or a '/' at either end"
)]
pub struct SubDirError(String);

impl SubDir {
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for SubDir {
    type Err = SubDirError;

    fn from_str(text: &str) -> Result<Self, SubDirError> {
        let normal = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if normal && !text.contains('\0') { Ok(Self(text.to_owned())) } else { Err(SubDirError(text.to_owned())) }
    }
}

impl TryFrom<String> for SubDir {
    type Error = SubDirError;

    fn try_from(text: String) -> Result<Self, SubDirError> {
        text.parse()
    }
}

impl From<SubDir> for String {
    fn from(path: SubDir) -> Self {
        path.0
    }
}

impl fmt::Display for SubDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_below_the_root_is_a_sub_dir() {
        for good in ["a", "a/b", "..a", "a b"] {
            assert_eq!(good.parse::<SubDir>().unwrap().to_string(), good);
        }
        for bad in ["", "/", "/a", "a/", "a//b", "..", "a/../b", "a/..", "./a", ".", "a\0b"] {
            assert!(bad.parse::<SubDir>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<SubDir>("\"../a\"").is_err());
    }
}
