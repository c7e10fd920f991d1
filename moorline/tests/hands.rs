//! A hand is its agent's, and nobody's else.

use std::io::Write;
use std::process::{Command, Stdio};

/// What a hand says to a request that can't be read.
fn asked(agent: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moorline"));
    command.arg("hands").args(agent).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut hand = command.spawn().expect("start a hand");
    // One that has ended already reads nothing.
    let _ = hand.stdin.take().expect("its requests").write_all(b"{}\n");
    let output = hand.wait_with_output().expect("wait for it");
    String::from_utf8(output.stdout).expect("a reply")
}

#[test]
fn a_hand_whose_agent_has_died_does_nothing() {
    assert_eq!(asked(&["1"]), "", "this process is not 1");
    assert_eq!(asked(&[]), "", "nobody's");
    let reply = asked(&[&std::process::id().to_string()]);
    assert!(reply.contains("read the request"), "{reply}");
}
