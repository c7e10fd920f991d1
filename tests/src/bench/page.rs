//! Figures as a table: on the terminal, and in docs/BENCHMARKS.md, which is made from the records beside it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::figures::{Definition, KUBERNETES, Limit, MOUNT};
use super::record::{Figure, Record};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Terminal,
    Markdown,
}

/// Makes the page anew from the records in `docs/bench`.
pub fn write(docs: &Path) -> io::Result<PathBuf> {
    let path = docs.join("BENCHMARKS.md");
    fs::write(&path, document(docs)?)?;
    Ok(path)
}

/// The page, as it must be.
pub fn document(docs: &Path) -> io::Result<String> {
    let mut text = String::from(
        "# What it costs\n\n\
         `make bench` measures every area, `make bench AREA=mount` one: with the profile that the image is built with \
         (`cargo build --release`), in a User Mode Linux guest where this machine's kernel has no NFS. A guest has one CPU, \
         for the agent, who asks it, the NFS client and the servers together, and its system calls and context switches \
         take several times what they take on a real kernel: the times are worth something beside the floor and the peers \
         of the same runs. What needs a kubelet is measured in a cluster (`tests/kube`), whose node is such a guest with an \
         older kernel and whose control plane is not.\n\n\
         Each figure is the median of its runs, five at the least in what `make bench` measures, in each of which everything is measured once, ours and the peers' in turn. \
         Nothing fails for being slow: the last column says whether a figure is within its limit.\n\n\
         This page is made from `docs/bench/*.json`, which `make bench RECORD=1` replaces; `lab benchmarks` makes the page \
         alone.\n",
    );
    for (area, figures) in AREAS {
        let path = docs.join("bench").join(format!("{area}.json"));
        if !path.exists() {
            let _ = write!(text, "\n## {area}\nNot on record yet.\n");
            continue;
        }
        let record = Record::read(&path)?;
        let about = &record.about;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n## {area}\nCommit {}, {}, Linux {}, runs: {}.\n\n{}\n### How\n",
            about.commit,
            about.cpu,
            about.kernel,
            about.runs,
            table(&record, Style::Markdown)
        );
        for Definition { name, method, .. } in *figures {
            let _ = writeln!(text, "- `{name}`: {method}");
        }
    }
    Ok(text)
}

const AREAS: &[(&str, &[Definition])] = &[("mount", MOUNT), ("kubernetes", KUBERNETES)];

const HEAD: [&str; 7] = ["figure", "unit", "moorline", "samples", "peers", "floor", "limit"];

pub fn table(record: &Record, style: Style) -> String {
    let rows = record.figures.iter().map(|figure| row(figure, record));
    let rows: Vec<[String; 7]> = std::iter::once(HEAD.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let line = match style {
            Style::Markdown => format!("| {} |", row.join(" | ")),
            Style::Terminal => {
                let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
                padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
            }
        };
        text += &format!("{line}\n");
        if number == 0 && style == Style::Markdown {
            text += &format!("{}|\n", "|---".repeat(HEAD.len()));
        }
    }
    text
}

fn row(figure: &Figure, record: &Record) -> [String; 7] {
    let peer = |(name, value): (&String, &f64)| {
        let over = if figure.over.contains(name) { "> " } else { "" };
        format!("{name} {over}{}", short(*value))
    };
    let peers: Vec<String> = figure.peers.iter().map(peer).collect();
    [
        figure.figure.clone(),
        figure.unit.clone(),
        short(figure.moorline),
        figure.samples.iter().map(|sample| short(*sample)).collect::<Vec<_>>().join(" "),
        peers.join(", "),
        figure.floor.map(short).unwrap_or_default(),
        verdict(figure, record),
    ]
}

fn verdict(figure: &Figure, record: &Record) -> String {
    let definition = AREAS.iter().flat_map(|(_, figures)| *figures).find(|definition| definition.name == figure.figure);
    let (within, limit) = match definition.map_or(Limit::None, |definition| definition.limit) {
        Limit::None => return String::new(),
        Limit::Below(limit) => (figure.moorline < limit, format!("< {}", short(limit))),
        Limit::AtMost(limit) => (figure.moorline <= limit, format!("≤ {}", short(limit))),
        Limit::Times(times, of) => match record.figure(of) {
            Some(other) => (figure.moorline <= times * other.moorline, format!("≤ {} × {of}", short(times))),
            None => return format!("{of} is missing"),
        },
        Limit::Beats(peer) => match figure.peers.get(peer) {
            Some(theirs) => (figure.moorline > *theirs, format!("> {peer}")),
            None => return format!("{peer} is missing"),
        },
    };
    format!("{limit}: {}", if within { "within" } else { "OVER" })
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(publish: f64, idle_100: f64, peer: f64) -> Record {
        let text = format!(
            r#"[{{"figure":"about","commit":"c","cpu":"x","kernel":"k","runs":5}},
            {{"figure":"publish_ro_p99_ms","unit":"ms","moorline":{publish},"samples":[1.0]}},
            {{"figure":"reconcile_idle_us_10","unit":"µs","moorline":10.0,"samples":[10.0]}},
            {{"figure":"reconcile_idle_us_100","unit":"µs","moorline":{idle_100},"samples":[10.0]}},
            {{"figure":"read_10ms_rtt_mb_s","unit":"MB/s","moorline":50.0,"samples":[1.0],"peers":{{"kernel-defaults":{peer}}}}}]"#
        );
        Record::parse(&text).unwrap()
    }

    #[test]
    fn each_figure_is_judged_by_its_limit() {
        let verdicts = |record: &Record| -> Vec<bool> {
            let judged = record.figures.iter().map(|figure| verdict(figure, record));
            judged.filter(|verdict| !verdict.is_empty()).map(|verdict| verdict.ends_with(": within")).collect()
        };
        assert_eq!(verdicts(&record(1.9, 100.0, 20.0)), [true, true, true]);
        assert_eq!(verdicts(&record(2.0, 101.0, 50.0)), [false, false, false]);
    }

    #[test]
    fn a_peer_that_was_given_up_is_said_to_take_longer() {
        let text = r#"[{"figure":"about","commit":"c","cpu":"x","kernel":"k","runs":1},
            {"figure":"f","unit":"s","moorline":1.0,"samples":[1.0],"peers":{"p":60.0,"q":2.0},"over":["p"]}]"#;
        let table = table(&Record::parse(text).unwrap(), Style::Markdown);
        assert!(table.contains("| p > 60.0, q 2.00 |"), "{table}");
    }

    #[test]
    fn every_figure_of_a_committed_record_is_defined_and_none_is_missing() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        for (area, figures) in AREAS {
            let path = docs.join("bench").join(format!("{area}.json"));
            if !path.exists() {
                continue;
            }
            let record = Record::read(&path).unwrap();
            let recorded: Vec<&str> = record.figures.iter().map(|figure| figure.figure.as_str()).collect();
            let defined: Vec<&str> = figures.iter().map(|definition| definition.name).collect();
            assert_eq!(recorded, defined);
            assert!(record.figures.iter().all(|figure| figure.samples.len() == record.about.runs));
        }
    }

    #[test]
    fn the_page_is_what_the_records_say() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let written = fs::read_to_string(docs.join("BENCHMARKS.md")).unwrap();
        assert_eq!(written, document(&docs).unwrap(), "docs/BENCHMARKS.md is stale: `lab benchmarks` makes it");
    }
}
