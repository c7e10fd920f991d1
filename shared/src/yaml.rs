//! From a file's text to checked objects. Every refusal names file, line and field, and says what would be right.

mod gateway;
mod share;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;

use crate::cluster::API_VERSION;
use crate::gateway::Gateway;
use crate::name::Name;
use crate::share::Share;

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

/// An object with where it stands, for problems that show only beside other objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub object: Object,
    pub file: String,
    /// Where it begins in its file, if it stands in one.
    pub line: Option<u64>,
}

/// All objects of one file, or the first problem in it: a file is taken whole or not at all.
pub fn parse(file: &str, text: &str) -> Result<Vec<Located>, Problem> {
    documents(text).map(|(line, document)| Document { file, line, text: document }.parse()).collect()
}

/// One object that stands in no file, and is known by another name: its lines say nothing to anybody.
pub fn parse_object(name: &str, text: &str) -> Result<Located, Problem> {
    let document = Document { file: name, line: 1, text: text.to_owned() };
    match document.parse() {
        Ok(located) => Ok(Located { line: None, ..located }),
        Err(problem) => Err(Problem { line: None, ..problem }),
    }
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
    fn parse(&self) -> Result<Located, Problem> {
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
        Ok(Located { object, file: self.file.to_owned(), line: Some(self.line) })
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

    fn number(&self, text: &Spanned<String>, field: &str, range: RangeInclusive<u32>) -> Result<u32, Problem> {
        let number = text.value.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let message = one_line(&format!("{:?} is no number from {} to {}", text.value, range.start(), range.end()));
            self.problem(text, field, message)
        })
    }

    fn truth(&self, text: &Spanned<String>, field: &str) -> Result<bool, Problem> {
        self.value(text, field, "true or false")
    }

    fn duration(
        &self,
        text: &Spanned<String>,
        field: &str,
        range: RangeInclusive<Duration>,
    ) -> Result<Duration, Problem> {
        let duration = humantime::parse_duration(&text.value).ok().filter(|duration| range.contains(duration));
        duration.ok_or_else(|| {
            let [from, to] = [range.start(), range.end()].map(|end| humantime::format_duration(*end));
            let message = one_line(&format!("{:?} is no time from {from} to {to}, as 90s or 5m", text.value));
            self.problem(text, field, message)
        })
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

#[cfg(test)]
mod tests;
