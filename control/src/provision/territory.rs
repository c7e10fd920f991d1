//! Which part of a server's file system a volume is, so that no two claims get the same.

use std::collections::BTreeMap;

use moorline_shared::name::Name;
use moorline_shared::share::Share;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Territory {
    root: Root,
    parts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    /// By the paths that its servers export.
    Gateway(Name),
    /// One that is not known any more.
    Share(String),
}

impl Territory {
    pub(crate) fn of(shares: &BTreeMap<Name, Share>, share: &str, sub_dir: &str) -> Self {
        let known = share.parse::<Name>().ok().and_then(|name| shares.get(&name));
        let (root, export) = match known {
            Some(share) => (Root::Gateway(share.gateway.clone()), share.export.as_str()),
            None => (Root::Share(share.to_owned()), ""),
        };
        Self { root, parts: [parts(export), parts(sub_dir)].concat() }
    }

    /// As a server of a Gateway exports it.
    pub(crate) fn at(gateway: &Name, path: &str) -> Self {
        Self { root: Root::Gateway(gateway.clone()), parts: parts(path) }
    }

    /// The same directory, or one in it.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.root == other.root && other.parts.starts_with(&self.parts)
    }
}

fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::testing::share;

    #[test]
    fn a_directory_is_the_same_by_whichever_share_it_is_reached() {
        let shares: BTreeMap<Name, Share> =
            [share("wide", "/data"), share("narrow", "/data/team"), share("other", "/data-2")]
                .map(|it| (it.name.clone(), it))
                .into();
        let at = |share, sub_dir| Territory::of(&shares, share, sub_dir);
        assert!(at("wide", "team/a").contains(&at("narrow", "a")));
        assert!(at("narrow", "a").contains(&at("wide", "team/a/b")));
        assert!(at("wide", "").contains(&at("narrow", "a")));
        assert!(!at("wide", "team/a").contains(&at("wide", "team/ab")));
        assert!(!at("wide", "a").contains(&at("other", "a")));
        assert!(at("gone", "a").contains(&at("gone", "a/b")) && !at("gone", "a").contains(&at("wide", "a")));
    }
}
