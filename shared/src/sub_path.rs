//! A directory below the root of a share.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Relative and normal: its text can't lead out of a share. What lies there on the server is checked when it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubPath(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no directory below a share's root: write it relative to that root, as a/b, without '.', '..', an empty part, or a '/' at either end"
)]
pub struct SubPathError(String);

impl SubPath {
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for SubPath {
    type Err = SubPathError;

    fn from_str(text: &str) -> Result<Self, SubPathError> {
        let normal = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if normal && !text.contains('\0') { Ok(Self(text.to_owned())) } else { Err(SubPathError(text.to_owned())) }
    }
}

impl TryFrom<String> for SubPath {
    type Error = SubPathError;

    fn try_from(text: String) -> Result<Self, SubPathError> {
        text.parse()
    }
}

impl From<SubPath> for String {
    fn from(path: SubPath) -> Self {
        path.0
    }
}

impl fmt::Display for SubPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_below_the_root_is_a_sub_path() {
        for good in ["a", "a/b", "..a", "a b"] {
            assert_eq!(good.parse::<SubPath>().unwrap().to_string(), good);
        }
        for bad in ["", "/", "/a", "a/", "a//b", "..", "a/../b", "a/..", "./a", ".", "a\0b"] {
            assert!(bad.parse::<SubPath>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<SubPath>("\"../a\"").is_err());
    }
}
