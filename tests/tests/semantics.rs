//! docs/SEMANTICS.md names a scenario for each of its promises: they must be there.

use std::fs;
use std::path::Path;

use moorline_tests::scenarios;

#[test]
fn each_promise_names_scenarios_that_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/SEMANTICS.md");
    let text = fs::read_to_string(path).expect("docs/SEMANTICS.md");
    let known: Vec<&str> = scenarios::all().map(|scenario| scenario.name).collect();
    let clusters = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube/scenarios");
    let mut promises = 0;
    let lines: Vec<&str> = text.lines().collect();
    let rows = lines.windows(2).filter(|pair| !pair[1].starts_with("|---")).map(|pair| pair[0]);
    for row in rows.filter(|line| line.starts_with("| ")) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        // Every odd part is in backquotes.
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "nothing runs this: {row}");
        for name in names {
            promises += 1;
            let is_known = known.iter().any(|known| matches(name, known)) || clusters.join(name).is_file();
            assert!(is_known, "{name} is no scenario, in: {row}");
        }
    }
    assert!(promises > 15, "the tables were not understood: {promises} names found");
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name
            .strip_prefix(head)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(tail, &rest[at..]))),
    }
}
