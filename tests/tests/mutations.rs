//! A change for the worse that no longer fits the code proves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use moorline_tests::scenarios;

#[test]
fn every_fault_has_a_change_for_the_worse_and_each_fits_the_code() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = repository.join("tests/mutations");
    let mut mutated = BTreeSet::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let patch = entry.unwrap().path();
        if patch.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let mut check = Command::new("git");
        let output =
            check.args(["apply", "--check", "--recount"]).arg(&patch).current_dir(&repository).output().unwrap();
        assert!(output.status.success(), "{}: {}", patch.display(), String::from_utf8_lossy(&output.stderr));
        mutated.insert(patch.file_stem().unwrap().to_string_lossy().into_owned());
    }
    for row in scenarios::FAULTS {
        let row = row.name.strip_prefix("fault_").unwrap();
        assert!(mutated.iter().any(|fault| row.starts_with(&format!("{fault}_"))), "no change turns {row} red");
    }
}
