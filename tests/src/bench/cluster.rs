//! What is measured in a real cluster, by tests/kube/scenarios/bench: its samples become figures.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::RUNS;
use super::figures::{IN_CLUSTER, IN_TREE};
use super::record::{Record, Samples, Whose};

/// Seconds until its watchdog ends a cluster.
const LIMIT: u32 = 780;

/// Where a cluster comes from, and what its image is made of.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// tests/kube
    pub folder: &'a Path,
    pub moorline: &'a Path,
    pub logs: &'a Path,
}

impl Cluster<'_> {
    /// Measures, and puts what it found behind what is in the record.
    pub(super) fn add_to(&self, record: &mut Record) -> io::Result<()> {
        let moorline = self.moorline.canonicalize()?;
        println!("lab: a cluster is made and measured; its logs are in {}", self.logs.display());
        let status = Command::new(self.folder.join("cluster"))
            .arg(self.folder.join("scenarios/bench"))
            .env("MOORLINE_BIN", moorline)
            .env("KEEP_LOGS", self.logs)
            .env("RUNS", RUNS.to_string())
            .env("LIMIT", LIMIT.to_string())
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("the cluster: {status}; what failed is above")));
        }
        let Measured { kernel, samples } = parse(&fs::read_to_string(self.logs.join("samples"))?)?;
        record.about.kernel += &format!("; in the cluster {kernel} (User Mode Linux)");
        record.figures.extend(IN_CLUSTER.iter().map(|it| samples.figure(it.name, it.unit, RUNS)));
        Ok(())
    }
}

struct Measured {
    kernel: String,
    samples: Samples,
}

/// `kernel RELEASE`, then lines of `FIGURE WHOSE VALUE [over]`.
fn parse(text: &str) -> io::Result<Measured> {
    let mut measured = Measured { kernel: String::new(), samples: Samples::default() };
    for line in text.lines() {
        let wrong = |what: &str| io::Error::other(format!("the cluster's samples: {what}: {line}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["kernel", release] = words[..] {
            measured.kernel = release.to_owned();
            continue;
        }
        let [figure, whose, value, over @ ..] = &words[..] else { return Err(wrong("too few words")) };
        let figure = IN_CLUSTER.iter().find(|known| known.name == *figure).ok_or_else(|| wrong("no such figure"))?;
        let value: f64 = value.parse().map_err(|_| wrong("no number"))?;
        match (*whose, over) {
            ("moorline", []) => measured.samples.add(figure.name, Whose::Ours, value),
            ("moorline", _) => return Err(wrong("moorline took longer than anybody waited")),
            (IN_TREE, []) => measured.samples.add(figure.name, Whose::Peer(IN_TREE), value),
            (IN_TREE, ["over"]) => measured.samples.add_over(figure.name, Whose::Peer(IN_TREE), value),
            _ => return Err(wrong("whose is it?")),
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_figures() {
        let text = "kernel 6.1.0\nrecover_in_pod_s moorline 7.5\nrecover_in_pod_s in-tree-nfs 60 over\n";
        let measured = parse(text).unwrap();
        let figure = measured.samples.figure("recover_in_pod_s", "s", 1);
        assert_eq!((measured.kernel.as_str(), figure.moorline, figure.peers[IN_TREE]), ("6.1.0", 7.5, 60.0));
        assert!(figure.over.contains(IN_TREE));
    }

    #[test]
    fn what_is_no_sample_is_named() {
        for wrong in
            ["recover_in_pod_s", "speed moorline 1", "recover_in_pod_s moorline x", "recover_in_pod_s moorline 60 over"]
        {
            let error = parse(wrong).err().expect(wrong).to_string();
            assert!(error.ends_with(wrong), "{error}");
        }
    }
}
