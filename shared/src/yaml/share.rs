//! Shares as they are written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Document, Problem, Raw, RawMetadata};
use crate::node_mount::NodeMount;
use crate::selector::{Is, Requirement, Selector};
use crate::share::{Access, MountOptions, Namespaces, Policy, Share, why_not};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawShare {
    gateway: Spanned<String>,
    export: Spanned<String>,
    access: Spanned<String>,
    policy: Option<Spanned<String>>,
    after: Option<Spanned<String>>,
    accept_lost_writes: Option<Spanned<String>>,
    mount_options: Option<BTreeMap<String, Spanned<String>>>,
    namespaces: Option<Spanned<Vec<Spanned<String>>>>,
    namespace_selector: Option<Spanned<RawSelector>>,
    node_mount: Option<Spanned<String>>,
    node_selector: Option<Spanned<RawSelector>>,
    allow_delete: Option<Spanned<String>>,
    inline: Option<Spanned<String>>,
}

/// As Kubernetes writes a LabelSelector.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawSelector {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<RawRequirement>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRequirement {
    key: String,
    operator: Spanned<String>,
    values: Option<Vec<String>>,
}

const OPTIONS: &str = "timeo, retrans, nconnect, readahead, rsize, wsize, actimeo, noexec";

impl Document<'_> {
    pub(super) fn share(&self, raw: Raw<RawShare>) -> Result<Share, Problem> {
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
        let policy = self.policy(&spec, access)?;
        let options = self.options(spec.mount_options.as_ref())?;
        let namespaces = self.namespaces(&raw.metadata, spec.namespaces.as_ref(), spec.namespace_selector.as_ref())?;
        let node_mount = spec.node_mount.as_ref().map(|text| {
            text.value.parse::<NodeMount>().map_err(|error| self.problem(text, "spec.nodeMount", error.to_string()))
        });
        let node_selector = spec.node_selector.as_ref().map(|selector| match &spec.node_mount {
            Some(_) => self.selector(selector, "spec.nodeSelector", "leave it out, and it is mounted on all nodes"),
            None => Err(self.problem(selector, "spec.nodeSelector", "is for spec.nodeMount, and there is none".into())),
        });
        let allow_delete = spec.allow_delete.as_ref().map(|text| self.truth(text, "spec.allowDelete")).transpose()?;
        let inline = spec.inline.as_ref().map(|text| self.truth(text, "spec.inline")).transpose()?;
        Ok(Share {
            name: self.name(&raw.metadata)?,
            gateway: self.value(&spec.gateway, "spec.gateway", "the name of a Gateway")?,
            export: self.export(&spec.export)?,
            access,
            policy,
            options,
            namespaces,
            node_mount: node_mount.transpose()?,
            node_selector: node_selector.transpose()?,
            allow_delete: allow_delete.unwrap_or_default(),
            not_inline: inline == Some(false),
        })
    }

    fn export(&self, text: &Spanned<String>) -> Result<String, Problem> {
        let export = &text.value;
        let normal = export.starts_with('/')
            && !export.contains('\0')
            && export[1..].split('/').all(|part| !matches!(part, "." | ".."));
        if !normal || (export.len() > 1 && export[1..].split('/').any(str::is_empty)) {
            let message = format!("{export:?} is not an absolute path without '.', '..' and doubled '/'");
            return Err(self.problem(text, "spec.export", message));
        }
        Ok(export.clone())
    }

    fn policy(&self, spec: &RawShare, access: Access) -> Result<Policy, Problem> {
        let accepted =
            spec.accept_lost_writes.as_ref().map(|text| self.truth(text, "spec.acceptLostWrites")).transpose()?;
        let policy = match spec.policy.as_ref().map(|policy| (policy, policy.value.as_str())) {
            None | Some((_, "hard")) => Policy::Hard,
            Some((_, "soft")) => Policy::Soft,
            Some((policy, "bounded")) => {
                let Some(after) = &spec.after else {
                    let message = "is bounded, by what? Say after: 5m, or another time".into();
                    return Err(self.problem(policy, "spec.policy", message));
                };
                let range = Duration::from_secs(10)..=Duration::from_secs(7 * 24 * 3600);
                Policy::Bounded { after: self.duration(after, "spec.after", range)? }
            }
            Some((policy, other)) => {
                let message = format!("is {other:?}; use hard, soft or bounded");
                return Err(self.problem(policy, "spec.policy", message));
            }
        };
        if let (Some(after), Policy::Hard | Policy::Soft) = (&spec.after, policy) {
            let message = format!("is for policy: bounded, and the policy is {policy}");
            return Err(self.problem(after, "spec.after", message));
        }
        match (&spec.policy, policy, access) {
            // The kernel tells a program of a write that it gave up only at its next fsync or close, and many ask neither.
            (Some(text), Policy::Soft, Access::ReadWrite) if accepted != Some(true) => {
                let message =
                    "is soft, which contradicts access: ReadWrite: a write that times out is lost, though write() \
                               said that it was done. Use hard or bounded, or say acceptLostWrites: true"
                        .into();
                Err(self.problem(text, "spec.policy", message))
            }
            _ => Ok(policy),
        }
    }

    fn options(&self, raw: Option<&BTreeMap<String, Spanned<String>>>) -> Result<MountOptions, Problem> {
        let mut options = MountOptions::default();
        for (name, text) in raw.into_iter().flatten() {
            let field = format!("spec.mountOptions.{name}");
            let number = |range| self.number(text, &field, range).map(Some);
            match name.as_str() {
                "timeo" => options.timeo = number(10..=6000)?,
                "retrans" => options.retrans = number(0..=100)?,
                "nconnect" => options.nconnect = number(1..=16)?,
                "readahead" => options.readahead = number(4..=65_536)?,
                "rsize" => options.rsize = Some(self.size(text, &field)?),
                "wsize" => options.wsize = Some(self.size(text, &field)?),
                "actimeo" => options.actimeo = number(0..=3600)?,
                "noexec" => options.no_exec = self.truth(text, &field)?,
                other => {
                    let message = match why_not(other) {
                        Some(reason) => format!("is not for a Share to choose: {reason}"),
                        None => format!("is not known; there are: {OPTIONS}"),
                    };
                    return Err(self.problem(text, &field, message));
                }
            }
        }
        Ok(options)
    }

    fn size(&self, text: &Spanned<String>, field: &str) -> Result<u32, Problem> {
        let size = self.number(text, field, 4096..=1_048_576)?;
        if size % 4096 == 0 {
            Ok(size)
        } else {
            Err(self.problem(text, field, format!("{size} is no multiple of 4096")))
        }
    }

    fn namespaces(
        &self,
        metadata: &RawMetadata,
        names: Option<&Spanned<Vec<Spanned<String>>>>,
        labelled: Option<&Spanned<RawSelector>>,
    ) -> Result<Namespaces, Problem> {
        let all = "for all namespaces say namespaces: [\"*\"]";
        let selector = labelled.map(|selector| self.selector(selector, "spec.namespaceSelector", all)).transpose()?;
        let Some(raw) = names else {
            return match selector {
                Some(selector) => Ok(Namespaces::Labelled { names: BTreeSet::new(), selector }),
                None => Err(self.problem(
                    &metadata.name,
                    "spec",
                    "says neither namespaces nor namespaceSelector, so no pod could use the share".into(),
                )),
            };
        };
        match (raw.value.as_slice(), selector) {
            ([], _) => Err(self.problem(
                raw,
                "spec.namespaces",
                "is empty, so no pod could use the share; name namespaces, or \"*\" for all".into(),
            )),
            ([all], None) if all.value == "*" => Ok(Namespaces::All),
            (names, selector) => {
                let names = names.iter().enumerate().map(|(index, name)| {
                    self.value(name, &format!("spec.namespaces[{index}]"), "a namespace (or \"*\" alone, for all)")
                });
                let names = names.collect::<Result<_, _>>()?;
                Ok(match selector {
                    None => Namespaces::Only(names),
                    Some(selector) => Namespaces::Labelled { names, selector },
                })
            }
        }
    }

    /// An empty one is Kubernetes' word for everything, and more often an oversight; `all` is what to say instead.
    fn selector(&self, raw: &Spanned<RawSelector>, name: &str, all: &str) -> Result<Selector, Problem> {
        let labels = raw.value.match_labels.iter().flatten();
        let mut requirements: Vec<Requirement> =
            labels.map(|(key, value)| Requirement { key: key.clone(), is: Is::In([value.clone()].into()) }).collect();
        for (index, expression) in raw.value.match_expressions.iter().flatten().enumerate() {
            let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
            let is = match (expression.operator.value.as_str(), values.is_empty()) {
                ("In", false) => Is::In(values),
                ("NotIn", false) => Is::NotIn(values),
                ("Exists", true) => Is::There,
                ("DoesNotExist", true) => Is::Absent,
                (operator, _) => {
                    let message = format!(
                        "is {operator:?} with {} values; use In or NotIn with values, Exists or DoesNotExist with none",
                        values.len()
                    );
                    let field = format!("{name}.matchExpressions[{index}].operator");
                    return Err(self.problem(&expression.operator, &field, message));
                }
            };
            requirements.push(Requirement { key: expression.key.clone(), is });
        }
        if requirements.is_empty() {
            return Err(self.problem(raw, name, format!("is empty; {all}")));
        }
        Ok(Selector(requirements))
    }
}
