//! What a shell is told, by the one table of exit codes.

use std::process::Command;

fn code(arguments: &[&str]) -> Option<i32> {
    let output = Command::new(env!("CARGO_BIN_EXE_moorline")).args(arguments).output().expect("run it");
    output.status.code()
}

#[test]
fn help_is_no_failure() {
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["status", "--help"]), Some(0));
}

#[test]
fn a_command_line_that_cannot_be_read_is_said_to_be_that() {
    assert_eq!(code(&["status", "--no-such-option"]), Some(2));
    assert_eq!(code(&[]), Some(2));
}

#[test]
fn a_node_without_an_agent_is_told_from_an_agent_in_trouble() {
    assert_eq!(code(&["status", "--socket", "/nonexistent/agent.sock"]), Some(5));
}

#[test]
fn a_directory_of_objects_that_is_not_there_is_bad_input() {
    let run = std::env::temp_dir().join(format!("moorline-exit-{}", std::process::id()));
    std::fs::create_dir(&run).expect("a directory");
    let arguments =
        ["agent", "--node", "n", "--config", "/nonexistent/objects", "--run-dir", run.to_str().expect("a path")];
    assert_eq!(code(&arguments), Some(3));
    let _ = std::fs::remove_file(run.join("agent.lock"));
    let _ = std::fs::remove_dir(&run);
}
