//! Where a claim's directory is to be: a class's `subDir`, with the names of the claim in it. Those are whoever's who claims,
//! so none of them may lead anywhere else.

use std::fmt;
use std::str::FromStr;

use moorline_shared::sub_dir::SubDir;

/// A directory for each namespace, and in it one for each claim that never was before.
pub(crate) const DEFAULT: &str = "${pvc.metadata.namespace}/${pvc.metadata.name}-${pv.metadata.name}";
/// Without a claim there is one name alone.
pub(crate) const NAMELESS: &str = "${pv.metadata.name}";
/// What a file system takes for one name, and what is sensible for a path.
const LONGEST_NAME: usize = 255;
const LONGEST: usize = 1024;
/// Names that directories have before they are a claim's, and afterwards.
const RESERVED: [&str; 2] = [".moorline-", "archived-"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Of(Variable),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    Claim,
    Namespace,
    Volume,
}

impl Variable {
    const ALL: [Self; 3] = [Self::Namespace, Self::Claim, Self::Volume];

    fn name(self) -> &'static str {
        match self {
            Self::Claim => "pvc.metadata.name",
            Self::Namespace => "pvc.metadata.namespace",
            Self::Volume => "pv.metadata.name",
        }
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${{{}}}", self.name())
    }
}

/// What is known of a claim by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names<'a> {
    pub(crate) claim: Option<&'a str>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) volume: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error(
        "subDir: {0} is not known; there are ${{pvc.metadata.namespace}}, ${{pvc.metadata.name}} and ${{pv.metadata.name}}"
    )]
    Unknown(String),
    #[error("subDir: {0:?} has no end: write it as ${{pvc.metadata.name}}")]
    Open(String),
    #[error(
        "subDir: {0} is not told by who asks for the volume: csi-provisioner does with --extra-create-metadata; or leave it out"
    )]
    Untold(&'static str),
    #[error(
        "subDir: {variable} is {value:?}, which can't be part of a path: give it a name without '/', and other than '.' and '..'"
    )]
    Value { variable: &'static str, value: String },
    #[error("subDir: {0}")]
    Path(#[from] moorline_shared::sub_dir::SubDirError),
    #[error(
        "subDir: {0:?} is too long for a server, with {LONGEST_NAME} bytes for a name and {LONGEST} for all: use ${{pv.metadata.name}} alone, or a shorter name"
    )]
    Long(String),
    #[error("subDir: {0:?} begins as only moorline's own directories do (.moorline-, archived-): use another name")]
    Reserved(String),
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            let (inner, after) = from[2..].split_once('}').ok_or_else(|| TemplateError::Open(from.to_owned()))?;
            let variable = Variable::ALL.into_iter().find(|variable| variable.name() == inner);
            let variable = variable.ok_or_else(|| TemplateError::Unknown(format!("${{{inner}}}")))?;
            parts.extend((!before.is_empty()).then(|| Part::Text(before.to_owned())));
            parts.push(Part::Of(variable));
            rest = after;
        }
        parts.extend((!rest.is_empty()).then(|| Part::Text(rest.to_owned())));
        let template = Self(parts);
        // What would be wrong whatever the names are is wrong at once.
        template.fill(&Names { claim: Some("a"), namespace: Some("a"), volume: "a" })?;
        Ok(template)
    }
}

impl Template {
    pub(crate) fn fill(&self, names: &Names) -> Result<SubDir, TemplateError> {
        let mut path = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Of(variable) => path.push_str(names.value(*variable)?),
            }
        }
        let sub_dir: SubDir = path.parse()?;
        if path.len() > LONGEST || path.split('/').any(|name| name.len() > LONGEST_NAME) {
            return Err(TemplateError::Long(path));
        }
        match path.split('/').find(|name| RESERVED.iter().any(|reserved| name.starts_with(reserved))) {
            Some(name) => Err(TemplateError::Reserved(name.to_owned())),
            None => Ok(sub_dir),
        }
    }
}

impl Names<'_> {
    fn value(&self, variable: Variable) -> Result<&str, TemplateError> {
        let value = match variable {
            Variable::Claim => self.claim,
            Variable::Namespace => self.namespace,
            Variable::Volume => Some(self.volume),
        };
        let value = value.ok_or(TemplateError::Untold(variable.name()))?;
        if matches!(value, "" | "." | "..") || value.contains(['/', '\0']) {
            return Err(TemplateError::Value { variable: variable.name(), value: value.to_owned() });
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    const NAMES: Names = Names { claim: Some("data"), namespace: Some("training"), volume: "pvc-1" };

    fn filled(template: &str) -> Result<String, String> {
        let filled = template.parse::<Template>().and_then(|template| template.fill(&NAMES));
        filled.map(|path| path.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_take_their_places() {
        assert_eq!(filled(DEFAULT).unwrap(), "training/data-pvc-1");
        assert_eq!(filled("a/${pv.metadata.name}${pvc.metadata.name}").unwrap(), "a/pvc-1data");
        assert_eq!(filled("common").unwrap(), "common");
        assert_eq!(filled("$x{").unwrap(), "$x{");
    }

    #[test]
    fn what_can_be_no_path_is_refused_with_the_cure() {
        for (template, said) in [
            ("${pvc.name}", "there are ${pvc.metadata.namespace}, ${pvc.metadata.name} and ${pv.metadata.name}"),
            ("${pvc.metadata.name", "has no end"),
            ("/abs", "relative to that root"),
            ("../${pv.metadata.name}", "relative to that root"),
            ("a//${pv.metadata.name}", "relative to that root"),
            ("", "relative to that root"),
            ("archived-${pv.metadata.name}", "use another name"),
        ] {
            let refused = filled(template).unwrap_err();
            assert!(refused.contains(said), "{template}: {refused}");
        }
        let long = "x".repeat(253);
        let template: Template = DEFAULT.parse().unwrap();
        let refused = template.fill(&Names { claim: Some(&long), ..NAMES }).unwrap_err();
        assert!(refused.to_string().contains("use ${pv.metadata.name} alone"), "{refused}");
        let refused = template.fill(&Names { claim: None, ..NAMES }).unwrap_err();
        assert!(refused.to_string().contains("--extra-create-metadata"), "{refused}");
    }

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("${pvc.metadata.name}".to_owned()),
            Just("${pvc.metadata.namespace}".to_owned()),
            Just("${pv.metadata.name}".to_owned()),
            Just("..".to_owned()),
            Just("/".to_owned()),
            Just("${".to_owned()),
            "[a-z./$}\\PC]{0,4}",
        ]
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("..".to_owned()),
            Just(String::new()),
            Just("a/../..".to_owned()),
            "[a-z./]{0,6}",
            "\\PC{0,300}"
        ]
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_the_share(
            pieces in prop::collection::vec(piece(), 0..8), claim in name(), namespace in name(), volume in name(),
        ) {
            let names = Names { claim: Some(&claim), namespace: Some(&namespace), volume: &volume };
            let filled = pieces.concat().parse::<Template>().and_then(|template| template.fill(&names));
            if let Ok(path) = filled {
                prop_assert!(path.as_path().components().all(|part| matches!(part, Component::Normal(_))));
                // As many parts as the template has: no name is more than one of them.
                prop_assert_eq!(path.as_path().components().count(), pieces.concat().split('/').count());
                prop_assert!(path.to_string().len() <= LONGEST);
            }
        }
    }
}
