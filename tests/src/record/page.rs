//! docs/FAULTS.md.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Records, Row, Seeds};

const HEAD: &str = "# The fault matrix

What breaks × failure policy × access, on the kernel's NFS client, and what the application saw. It is one container,
never restarted: it opens, reads and verifies over and over, or appends and fsyncs; it keeps a descriptor (a writer's holds
a lock), a mapping (a writer's is written through, and msynced) and a working directory. Beside it runs a neighbour, under
`hard`, on another share of the same server.

This page is made by `lab faults` from `tests/record/`, which `make soak` writes; a test holds them against each other. What
each row demands is in `tests/src/scenarios/faults.rs`: a row that passed has seen all of it.

- **verified**: read and found whole. **acknowledged**: records that fsync or msync said were written; each was there.
- **errors**: how many calls ended with which. 512 is what the kernel lets slip from an fsync that was aborted.
- **longest call**: of those that ended. **longest gap**: between two successes of what is opened anew each time.
- **neighbour**: its errors. A fault of one share alone must not cost it any; in gone_for_good, and in a reader's export_replaced and
  export_removed, the neighbour's own export is hit as well.
";

const KILLS: &str = "
## Kill points

Wherever a crash leaves something half-done a hand dies, or the agent with all its hands, a row each: `kill_POINT_hand`,
`kill_POINT_agent`, with the points of `agent/src/killpoint.rs`. Then the same call is made again, and all is as if nobody had
died.

| kernel | rows that passed | rows that failed | commit |
|---|---|---|---|
";

/// The page, for these rows of the matrix, in their order, and what is on record of them.
pub fn page(names: &[&str], kill_names: [&[&str]; 2], records: &Records) -> String {
    let mut text = HEAD.to_owned();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n| row | seen | verified | acknowledged | errors | longest call | longest gap | neighbour | kernel | commit |\n|---|---|---|---|---|---|---|---|---|---|\n"
    );
    for name in names {
        let _ = match records.matrix.iter().find(|row| row.row == *name && row.mutation.is_none()) {
            Some(row) => writeln!(text, "{}", line(row)),
            None => writeln!(text, "| {} | not run yet | | | | | | | | |", shown(name)),
        };
    }
    text += &mutations(&records.mutations);
    text += KILLS;
    text.extend(kill_names.iter().zip(&records.kills).map(|(names, rows)| kills(names, rows)));
    text + &seeds(&records.seeds)
}

fn shown(name: &str) -> String {
    format!("`{name}`")
}

fn line(row: &Row) -> String {
    let seen = &row.seen;
    let errors: Vec<String> = seen.errors.iter().map(|(error, count)| format!("{error} {count}")).collect();
    let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
    // Not what hung or broke in detail: that is in the logs of the run.
    let verdict = if seen.verdict == "passed" { "passed" } else { "**failed**" };
    let megabytes = seen.bytes_verified as f64 / 1e6;
    let verified = if seen.bytes_verified == 0 { String::new() } else { format!("{megabytes:.1} MB") };
    let acknowledged = if seen.acknowledged == 0 { String::new() } else { seen.acknowledged.to_string() };
    format!(
        "| {} | {verdict} | {verified} | {acknowledged} | {errors} | {:.1} s | {:.1} s | {} | {} | {} |",
        shown(&row.row),
        seen.longest_call_s,
        seen.longest_gap_s,
        seen.neighbour_errors,
        seen.kernel,
        row.commit
    )
}

fn mutations(mutants: &[Row]) -> String {
    let mut by_fault: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in mutants {
        by_fault.entry(row.mutation.as_deref().unwrap_or_default()).or_default().push(row);
    }
    let mut text = "
## Rows that can fail

For each fault there is a change for the worse to the engine, `tests/mutations/FAULT.patch`; its head says what it does.
`tests/mutations/run` builds each and runs the fault's rows against it: they must fail.

| fault | rows that failed | rows that passed | commit |
|---|---|---|---|
"
    .to_owned();
    for (fault, rows) in by_fault {
        let passed: Vec<String> =
            rows.iter().filter(|row| row.seen.verdict == "passed").map(|row| shown(&row.row)).collect();
        let failed = rows.len() - passed.len();
        let commit = rows.first().map_or("", |row| row.commit.as_str());
        let passed = if passed.is_empty() { "none".to_owned() } else { passed.join(", ") };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{fault}` | {failed} of {} | {passed} | {commit} |", rows.len());
    }
    text
}

fn kills(names: &[&str], rows: &[Row]) -> String {
    let of = |name: &&&str| rows.iter().any(|row| row.row == **name);
    let missing = names.iter().filter(|name| !of(name)).count();
    let mut by_run: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_run.entry((&row.seen.kernel, &row.commit)).or_default().push(row);
    }
    let lines = by_run.into_iter().map(|((kernel, commit), rows)| {
        let failed: Vec<String> =
            rows.iter().filter(|row| row.seen.verdict != "passed").map(|row| shown(&row.row)).collect();
        let passed = rows.len() - failed.len();
        let failed = if failed.is_empty() { "none".to_owned() } else { failed.join(", ") };
        format!("| {kernel} | {passed} of {} | {failed} | {commit} |\n", names.len())
    });
    let unseen = (missing > 0).then(|| format!("| | {missing} not run yet | | |\n"));
    lines.chain(unseen).collect()
}

fn seeds(stretches: &[Seeds]) -> String {
    let mut text = "
## The simulator

What docs/SIMULATOR.md tells of, a life from each seed.

| seeds | failed | commit |
|---|---|---|
"
    .to_owned();
    for Seeds { first, end, failed, commit } in stretches {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {first}..{end} | {failed} | {commit} |");
    }
    text
}
