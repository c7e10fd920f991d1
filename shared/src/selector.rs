//! Which labels are meant, as Kubernetes' own LabelSelector says it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub type Labels = BTreeMap<String, String>;

/// All of it must hold. Never empty: an empty one would mean everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector(pub(crate) Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requirement {
    pub(crate) key: String,
    pub(crate) is: Is,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Is {
    In(BTreeSet<String>),
    /// What has no such label is not among them either.
    NotIn(BTreeSet<String>),
    There,
    Absent,
}

impl Selector {
    pub fn takes(&self, labels: &Labels) -> bool {
        self.0.iter().all(|Requirement { key, is }| match (is, labels.get(key)) {
            (Is::In(values), Some(value)) => values.contains(value),
            (Is::NotIn(values), Some(value)) => !values.contains(value),
            (Is::There, label) => label.is_some(),
            (Is::In(_), None) => false,
            (Is::NotIn(_), None) => true,
            (Is::Absent, label) => label.is_none(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_must_hold() {
        let values = || BTreeSet::from(["ml".to_owned(), "vision".to_owned()]);
        let takes = |is: &[Is], labels: &[(&str, &str)]| {
            let requirements = is.iter().map(|is| Requirement { key: "team".into(), is: is.clone() }).collect();
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Selector(requirements).takes(&labels)
        };
        let (ml, web, none) = (&[("team", "ml")][..], &[("team", "web"), ("a", "ml")][..], &[][..]);
        assert_eq!([ml, web, none].map(|labels| takes(&[Is::In(values())], labels)), [true, false, false]);
        assert_eq!([ml, web, none].map(|labels| takes(&[Is::NotIn(values())], labels)), [false, true, true]);
        assert_eq!([ml, web, none].map(|labels| takes(&[Is::There], labels)), [true, true, false]);
        assert_eq!([ml, web, none].map(|labels| takes(&[Is::Absent], labels)), [false, false, true]);
        assert!(!takes(&[Is::There, Is::NotIn(values())], ml));
    }
}
