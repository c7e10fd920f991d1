//! What a StorageClass says of the volumes that are claimed by it. Everything that may be said is known here, and everything
//! else refused by name.

use std::collections::BTreeMap;

use moorline_shared::cluster::{SHARE, SUB_DIR};
use moorline_shared::name::Name;

use super::template::{DEFAULT, Template};

const ON_DELETE: &str = "onDelete";
const DRY_RUN: &str = "dryRun";
const UID: &str = "uid";
const GID: &str = "gid";
const MODE: &str = "mountPermissions";
const KNOWN: &str = "share, subDir, onDelete, dryRun, uid, gid and mountPermissions";
/// Whoever the pod runs as may use its directory. Other claims' pods do not see it, and who may have the Share's root does: the
/// Share's `inline: false` is against that.
const DEFAULT_MODE: u32 = 0o777;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) share: Name,
    pub(crate) sub_dir: Template,
    pub(crate) on_delete: OnDelete,
    /// What would be deleted is said, and stays.
    pub(crate) dry_run: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

/// What becomes of a directory when its claim is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OnDelete {
    /// It stays.
    #[default]
    Retain,
    /// It stays, under another name.
    Archive,
    Delete,
}

impl OnDelete {
    pub(crate) fn read(text: &str) -> Option<Self> {
        [Self::Retain, Self::Archive, Self::Delete].into_iter().find(|it| it.as_str() == text)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Retain => "retain",
            Self::Archive => "archive",
            Self::Delete => "delete",
        }
    }
}

impl Class {
    /// `default` is where the directory is if nothing is said.
    pub(crate) fn read(parameters: &BTreeMap<String, String>, default: &str) -> Result<Self, String> {
        let known = [SHARE, SUB_DIR, ON_DELETE, DRY_RUN, UID, GID, MODE];
        let unknown: Vec<&String> = parameters.keys().filter(|key| !known.contains(&key.as_str())).collect();
        if !unknown.is_empty() {
            return Err(format!("parameters {unknown:?} are not known; known are {KNOWN}"));
        }
        let said = |key: &str| parameters.get(key).map(String::as_str);
        let share =
            said(SHARE).ok_or("parameter share is missing: the name of the Share that directories are made in")?;
        let on_delete = said(ON_DELETE).map(|text| {
            OnDelete::read(text).ok_or_else(|| format!("onDelete: is {text:?}; use retain, archive or delete"))
        });
        let on_delete = on_delete.transpose()?.unwrap_or_default();
        let dry_run = match said(DRY_RUN) {
            None | Some("false") => false,
            Some("true") if on_delete == OnDelete::Delete => true,
            Some("true") => return Err("dryRun: is for onDelete: delete; nothing is deleted otherwise".into()),
            Some(other) => return Err(format!("dryRun: is {other:?}; use true or false")),
        };
        let owner = |key: &str| {
            let number =
                |text: &str| text.parse().map_err(|_| format!("{key}: {text:?} is no number from 0 to {}", u32::MAX));
            said(key).map(number).transpose()
        };
        Ok(Self {
            share: share.parse().map_err(|error| format!("share: {error}"))?,
            sub_dir: said(SUB_DIR).unwrap_or(default).parse::<Template>().map_err(|error| error.to_string())?,
            on_delete,
            dry_run,
            uid: owner(UID)?.unwrap_or_default(),
            gid: owner(GID)?.unwrap_or_default(),
            mode: said(MODE).map(permissions).transpose()?.unwrap_or(DEFAULT_MODE),
        })
    }

    pub(crate) fn of_claims(parameters: Option<&BTreeMap<String, String>>) -> Result<Self, String> {
        Self::read(parameters.unwrap_or(&BTreeMap::new()), DEFAULT)
    }
}

fn permissions(text: &str) -> Result<u32, String> {
    let octal = text.len() <= 5 && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o7777);
    mode.ok_or_else(|| format!("{MODE}: {text:?} is no octal number up to 7777, as \"0770\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(parameters: &[(&str, &str)]) -> Result<Class, String> {
        Class::of_claims(Some(
            &parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ))
    }

    #[test]
    fn a_class_says_where_and_whose_and_what_becomes_of_it() {
        let class = read(&[("share", "data")]).unwrap();
        assert_eq!((class.on_delete, class.dry_run, class.mode, class.uid), (OnDelete::Retain, false, 0o777, 0));
        let class = read(&[
            ("share", "data"),
            ("uid", "1000"),
            ("mountPermissions", "0750"),
            ("onDelete", "delete"),
            ("dryRun", "true"),
        ])
        .unwrap();
        assert_eq!((class.on_delete, class.dry_run, class.mode, class.uid), (OnDelete::Delete, true, 0o750, 1000));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_cure() {
        for (key, value, said) in [
            ("server", "10.0.0.1", "[\"server\"] are not known; known are share"),
            ("share", "a/b", "share: \"a/b\" is no name"),
            ("subDir", "..", "subDir: \"..\" is no directory below"),
            ("onDelete", "Delete", "use retain, archive or delete"),
            ("dryRun", "true", "dryRun: is for onDelete: delete"),
            ("uid", "-1", "uid: \"-1\" is no number"),
            ("mountPermissions", "rwx", "is no octal number"),
            ("mountPermissions", "77777", "is no octal number"),
        ] {
            let mut parameters = vec![("share", "data")];
            parameters.retain(|(other, _)| *other != key);
            parameters.push((key, value));
            let refused = read(&parameters).unwrap_err();
            assert!(refused.contains(said), "{key}={value}: {refused}");
        }
        assert!(Class::of_claims(None).unwrap_err().contains("share is missing"));
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_understood_or_refused(
            parameters in prop::collection::btree_map("(share|subDir|onDelete|dryRun|uid|gid|mountPermissions|\\PC{0,4})", "\\PC{0,12}", 0..6),
        ) {
            if let Ok(class) = Class::of_claims(Some(&parameters)) {
                prop_assert!(class.mode <= 0o7777);
            }
        }
    }
}
