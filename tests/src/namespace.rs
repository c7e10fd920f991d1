//! A set of namespaces (network, mount, UTS) held by a process that does nothing else.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::command::checked;
use crate::wait::{eventually, seconds};

#[derive(Debug)]
pub struct Namespace {
    name: String,
    holder: Child,
}

impl Namespace {
    /// Fresh namespaces; the mounts are copies of the node's, private from here on.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--propagation", "private", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start unshare for {name}: {error}; is util-linux installed?"));
        let pid = holder.id();
        let theirs = format!("/proc/{pid}/comm");
        // unshare(1) becomes `sleep` only after it has made the namespaces.
        eventually(&format!("namespaces of {name}"), seconds(10), || match fs::read_to_string(&theirs) {
            Ok(comm) if comm.trim() == "sleep" => Ok(()),
            other => Err(other),
        });
        let namespace = Self { name: name.into(), holder };
        namespace.sh(&format!("hostname {name}; ip link set lo up"));
        namespace
    }

    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs a shell script in it; panics with its output if it fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        checked(&mut self.command("sh", &["-ec", script]), None)
    }

    /// A command in it, to be run or spawned by the caller.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--net", "--mount", "--uts", "--", program]);
        command.args(arguments);
        command
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // An error means that it has ended already, which is what is wanted.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
