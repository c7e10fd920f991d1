//! What a bench leaves: a list in JSON whose first entry says what it was measured on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::figures::Definition;
use super::{FIGURES, RUNS};
use crate::command;
use crate::kit;

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub about: About,
    pub figures: Vec<Figure>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    figure: AboutName,
    pub commit: String,
    pub cpu: String,
    /// The kernel that was measured, and what it ran in.
    pub kernel: String,
    pub runs: usize,
}

impl About {
    /// What the measured machine itself knows.
    pub fn new(kernel: String, runs: usize) -> Self {
        Self { kernel, runs, ..Self::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum AboutName {
    #[default]
    #[serde(rename = "about")]
    About,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    pub figure: String,
    pub unit: String,
    /// The median of the samples.
    pub moorline: f64,
    /// One of each run.
    pub samples: Vec<f64>,
    /// The medians of others, in the same runs.
    #[serde(default)]
    pub peers: BTreeMap<String, f64>,
    /// Peers that took longer: their median is how long they were waited for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub over: BTreeSet<String>,
    /// The median of what the kernel alone takes for it, where there is such a thing.
    #[serde(default)]
    pub floor: Option<f64>,
}

impl Record {
    pub fn read(path: &Path) -> io::Result<Self> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("read {}: {error}", path.display()));
        Self::parse(&fs::read_to_string(path).map_err(at)?).map_err(at)
    }

    pub fn parse(text: &str) -> io::Result<Self> {
        let mut entries = serde_json::from_str::<Vec<Value>>(text)?.into_iter();
        let about = entries.next().ok_or_else(|| io::Error::other("an empty list"))?;
        let figures: Result<_, _> = entries.map(serde_json::from_value).collect();
        Ok(Self { about: serde_json::from_value(about)?, figures: figures? })
    }

    /// One entry a line: the file is read by people too.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut lines = vec![serde_json::to_string(&self.about)?];
        for figure in &self.figures {
            lines.push(serde_json::to_string(figure)?);
        }
        fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
    }

    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.figure == name)
    }
}

/// What one run after the other has measured.
#[derive(Debug, Default)]
pub struct Samples {
    values: BTreeMap<(&'static str, Whose), Vec<f64>>,
    /// How long those were waited for, at the least, that took longer.
    waited: BTreeMap<(&'static str, Whose), f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    Ours,
    Peer(&'static str),
    Floor,
}

impl Samples {
    pub fn add(&mut self, figure: &'static str, whose: Whose, value: f64) {
        println!("{figure} {whose:?}: {value:.3}");
        self.values.entry((figure, whose)).or_default().push(value);
    }

    /// It took longer than anybody waited.
    pub fn add_over(&mut self, figure: &'static str, whose: Whose, waited: f64) {
        self.add(figure, whose, waited);
        let least = self.waited.entry((figure, whose)).or_insert(waited);
        *least = least.min(waited);
    }

    /// Has these figures found among the results of a machine that measures.
    #[track_caller]
    pub(super) fn leave(&self, definitions: &[Definition]) {
        let figures =
            definitions.iter().map(|definition| self.figure(definition.name, definition.unit, RUNS)).collect();
        let path = kit::results().join(FIGURES);
        let record = Record { about: About::new(kernel(), RUNS), figures };
        record.write(&path).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// The figure `name`. Panics if anybody was not measured in each of the runs.
    #[track_caller]
    pub fn figure(&self, name: &str, unit: &str, runs: usize) -> Figure {
        let mut figure = Figure {
            figure: name.into(),
            unit: unit.into(),
            moorline: f64::NAN,
            samples: Vec::new(),
            peers: BTreeMap::new(),
            over: BTreeSet::new(),
            floor: None,
        };
        for (key @ (_, whose), values) in self.values.iter().filter(|((of, _), _)| *of == name) {
            assert_eq!(values.len(), runs, "{name} of {whose:?} was not measured in each run: {values:?}");
            match whose {
                Whose::Ours => (figure.moorline, figure.samples) = (median(values), values.clone()),
                Whose::Peer(peer) => {
                    let median = median(values);
                    figure.peers.insert((*peer).to_owned(), median);
                    let over = self.waited.get(key).is_some_and(|waited| median >= *waited);
                    figure.over.extend(over.then(|| (*peer).to_owned()));
                }
                Whose::Floor => figure.floor = Some(median(values)),
            }
        }
        assert!(!figure.samples.is_empty(), "{name} was not measured");
        figure
    }
}

fn kernel() -> String {
    let release = command::run("uname", ["-r"]).trim().to_owned();
    let guest = fs::read_to_string("/proc/cpuinfo").unwrap_or_default().contains("User Mode Linux");
    if guest { format!("{release} (User Mode Linux)") } else { release }
}

/// Panics without a value.
#[track_caller]
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The smallest value that so many percent of all are not above.
#[track_caller]
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 99.0), 198.0);
        assert_eq!(median(&values), 100.0);
        assert_eq!((median(&[7.0]), percentile(&[7.0], 99.0)), (7.0, 7.0));
    }

    #[test]
    fn a_peer_that_did_not_run_each_time_is_an_error() {
        let mut samples = Samples::default();
        for run in 0..3 {
            samples.add("f", Whose::Ours, f64::from(run));
            samples.add("f", Whose::Peer("p"), 10.0);
            samples.add("f", Whose::Floor, 0.5);
        }
        let figure = samples.figure("f", "ms", 3);
        assert_eq!((figure.moorline, figure.peers["p"], figure.floor), (1.0, 10.0, Some(0.5)));
        samples.add("f", Whose::Peer("p"), 11.0);
        assert!(std::panic::catch_unwind(|| samples.figure("f", "ms", 3)).is_err());
        assert!(std::panic::catch_unwind(|| samples.figure("g", "ms", 3)).is_err());
    }

    #[test]
    fn a_peer_that_was_given_up_is_over_where_its_median_is() {
        let figure = |given_up: usize| {
            let mut samples = Samples::default();
            for run in 0..3 {
                samples.add("f", Whose::Ours, 1.0);
                if run < given_up {
                    samples.add_over("f", Whose::Peer("p"), 60.0);
                } else {
                    samples.add("f", Whose::Peer("p"), 30.0);
                }
            }
            samples.figure("f", "s", 3)
        };
        assert_eq!((figure(1).peers["p"], figure(1).over.len()), (30.0, 0));
        assert_eq!((figure(2).peers["p"], figure(2).over.contains("p")), (60.0, true));
    }

    #[test]
    fn a_record_survives_its_file() {
        let text = r#"[{"figure":"about","commit":"c","cpu":"x","kernel":"k","runs":5},
            {"figure":"f","unit":"ms","moorline":1.5,"samples":[1.5],"peers":{"p":3.0},"over":["p"],"floor":0.25}]"#;
        let record = Record::parse(text).unwrap();
        assert_eq!(record.figure("f").unwrap().peers["p"], 3.0);
        let path = std::env::temp_dir().join(format!("moorline-record-{}", std::process::id()));
        record.write(&path).unwrap();
        let read = Record::read(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), record);
        assert!(Record::parse(&text.replace("about", "abuot")).is_err());
    }
}
