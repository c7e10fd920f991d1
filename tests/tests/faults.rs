//! docs/FAULTS.md says what is on record, and names every row there is.

use std::fs;
use std::path::Path;

use moorline_tests::scenarios::Kernel;
use moorline_tests::{record, scenarios};

#[test]
fn the_page_says_what_is_on_record() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../docs/FAULTS.md")).expect("docs/FAULTS.md");
    let records = record::Records::of(&root.join("record")).expect("what is on record");
    let names: Vec<&str> = scenarios::FAULTS.iter().map(|row| row.name).collect();
    let kills = [Kernel::Usual, Kernel::Newer].map(scenarios::kill_names);
    let made = record::page(&names, kills.each_ref().map(Vec::as_slice), &records);
    assert!(page == made, "docs/FAULTS.md is not what `lab faults` makes of tests/record");
    let unknown = records.matrix.iter().chain(&records.mutations).find(|row| !names.contains(&row.row.as_str()));
    assert_eq!(unknown, None, "a row is on record that there is not");
    for (names, rows) in kills.iter().zip(&records.kills) {
        let unknown = rows.iter().find(|row| !names.contains(&row.row.as_str()));
        assert_eq!(unknown, None, "a kill point is on record that there is not");
    }
}
