//! docs/FAULTS.md says what is on record, and names every row there is.

use std::fs;
use std::path::Path;

use moorline_tests::{record, scenarios};

#[test]
fn the_page_says_what_is_on_record() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../docs/FAULTS.md")).expect("docs/FAULTS.md");
    let rows = record::read(&root.join("record/faults.jsonl")).expect("the record of the matrix");
    let mutants = record::read(&root.join("record/mutations.jsonl")).expect("the record of the mutations");
    let names: Vec<&str> = scenarios::FAULTS.iter().map(|row| row.name).collect();
    assert!(
        page == record::page(&names, &rows, &mutants),
        "docs/FAULTS.md is not what `lab faults` makes of tests/record"
    );
    let unknown = rows.iter().chain(&mutants).find(|row| !names.contains(&row.row.as_str()));
    assert_eq!(unknown, None, "a row is on record that there is not");
}
