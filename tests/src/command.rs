//! The machine's own tools (ip, wg, mount, runc, ...), each run with its output kept for the report.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::seconds;

/// Longer than any tool takes, a mount from a server that is away among them; shorter than a scenario's watchdog, which could
/// not say which tool it was.
const PATIENCE: Duration = seconds(600);

/// Runs a tool and returns its standard output; panics with what it said if it failed.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    checked(&mut command, None)
}

/// Like [`run`], with a text on standard input.
#[track_caller]
pub fn run_with_input<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>, input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    checked(&mut command, Some(input))
}

/// Runs a short shell script, ended by its first failure.
#[track_caller]
pub fn sh(script: &str) -> String {
    run("sh", ["-ec", script])
}

#[track_caller]
pub fn checked(command: &mut Command, input: Option<&str>) -> String {
    let output = output(command, input);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        panic!("{command:?}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    said
}

#[track_caller]
pub fn output(command: &mut Command, input: Option<&str>) -> Output {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}; is it installed?"));
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("write to {command:?}: {error}"));
    }
    let (ended, waits) = mpsc::channel::<()>();
    let process = child.id().cast_signed();
    let watchdog = thread::spawn(move || match waits.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Timeout) => Some(end(process)),
        _ => None,
    });
    let output = child.wait_with_output();
    drop(ended);
    if let Ok(Some(seen)) = watchdog.join() {
        panic!("{command:?}: not done after {PATIENCE:?}\n{seen}");
    }
    output.unwrap_or_else(|error| panic!("wait for {command:?}: {error}"))
}

/// Ends a tool that does not end by itself, and says where its threads were.
fn end(process: i32) -> String {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let told = threads.map(|thread| {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        format!("{}: {}{}", read("comm").trim(), read("syscall"), read("stack"))
    });
    let told: Vec<String> = told.collect();
    // It may have ended just now.
    let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    told.join("\n")
}
