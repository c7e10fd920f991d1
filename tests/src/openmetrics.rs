//! A strict reader of the text format of OpenMetrics: what a scraper would refuse is refused here.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub struct Page {
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Page {
    /// The sample with this name and exactly these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }
}

/// Panics with the line that is wrong.
#[track_caller]
pub fn parse(text: &str) -> Page {
    let mut page = Page::default();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped: BTreeSet<&str> = BTreeSet::new();
    let mut family = "";
    let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end mark: {text:?}"));
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(helped.insert(name) && !help.is_empty(), "help twice, or none: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert!(types.insert(name, kind).is_none(), "declared twice: {line}");
            family = name;
        } else {
            let (name, labels, value) = sample(line).unwrap_or_else(|| panic!("not a sample: {line}"));
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("outside its family {family}: {line}"));
            let fits = match types.get(family).copied() {
                Some("counter") => suffix == "_total" && value >= 0.0,
                Some("gauge") => suffix.is_empty(),
                Some("histogram") => matches!(suffix, "_bucket" | "_sum" | "_count"),
                _ => false,
            };
            assert!(fits, "not what its family is: {line}");
            assert!(page.samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
        }
    }
    assert!(types.keys().all(|name| helped.contains(name)), "a type without help: {types:?}");
    page
}

fn sample(line: &str) -> Option<(&str, BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, rest)) => (name, rest.strip_suffix('}')?),
    };
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let mut parsed = BTreeMap::new();
    // No value of ours holds a comma or a quote, so that none needs an escape.
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (label, value) = label.split_once('=')?;
        let value = value.strip_prefix('"')?.strip_suffix('"').filter(|value| !value.contains(['"', '\\']))?;
        (is_name(label) && parsed.insert(label.to_owned(), value.to_owned()).is_none()).then_some(())?;
    }
    is_name(name).then_some((name, parsed, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_b Help.\n# TYPE a_b counter\na_b_total{x=\"1\",y=\"2\"} 3\n# EOF\n";

    #[test]
    fn a_good_page_is_read() {
        let page = parse(GOOD);
        assert_eq!(page.value("a_b_total", &[("y", "2"), ("x", "1")]), Some(3.0));
        assert_eq!(page.value("a_b_total", &[("x", "1")]), None);
    }

    #[test]
    fn what_a_scraper_refuses_is_refused() {
        for bad in [
            GOOD.replace("# EOF\n", ""),
            GOOD.replace("_total", ""),
            GOOD.replace(" 3", " three"),
            GOOD.replace("# TYPE a_b counter\n", ""),
            GOOD.replace("# HELP a_b Help.\n", ""),
            GOOD.replace("\"1\"", "1"),
            GOOD.replace("a_b_total{x=\"1\",y=\"2\"} 3\n", "a_b_total 3\na_b_total 3\n"),
        ] {
            assert!(std::panic::catch_unwind(|| parse(&bad)).is_err(), "{bad}");
        }
    }
}
