//! SELinux as it is on a node with containers: a policy of the lab's own, and labels as a container runtime gives them.

use std::fs;
use std::path::Path;

use crate::command::{run, sh};

const PLACE: &str = "/sys/fs/selinux";

/// What a container runs as unless its pod says otherwise.
pub const CONFINED: &str = "container_t";

/// Has this kernel enforce the lab's policy, on everybody: in a guest of one's own alone. What runs by then stays unconfined.
#[track_caller]
pub fn enforce() {
    assert!(!is_on(), "this kernel has an SELinux policy of its own: the scenario belongs into a guest of its own");
    sh(&format!("mountpoint -q {PLACE} || mount -t selinuxfs selinuxfs {PLACE}"));
    write(Path::new("/run/policy.cil"), include_bytes!("selinux/policy.cil"));
    run("secilc", ["-c", "33", "-o", "/run/policy", "-f", "/dev/null", "/run/policy.cil"]);
    let policy = fs::read("/run/policy").unwrap_or_else(|error| panic!("read the policy that secilc made: {error}"));
    write(&Path::new(PLACE).join("load"), &policy);
    write(&Path::new(PLACE).join("enforce"), b"1");
}

/// From now on what is denied is only said, in the kernel's log.
#[track_caller]
pub fn permit() {
    write(&Path::new(PLACE).join("enforce"), b"0");
}

/// Whether labels mean anything: a policy is loaded.
pub fn is_on() -> bool {
    !matches!(of_process("self").as_str(), "" | "kernel")
}

/// The label that a process runs with; nothing where the kernel has no SELinux.
pub fn of_process(pid: &str) -> String {
    let label = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap_or_default();
    label.trim_end_matches('\0').trim().to_owned()
}

/// What a runtime gives to a container of this type: to its processes, and to what it mounts for it. The category keeps
/// other containers out.
pub fn labels(name: &str, kind: &str) -> [String; 2] {
    let category = name.bytes().map(u32::from).sum::<u32>() % 8;
    [format!("system_u:system_r:{kind}:s0:c{category}"), format!("system_u:object_r:container_file_t:s0:c{category}")]
}

#[track_caller]
fn write(file: &Path, bytes: &[u8]) {
    fs::write(file, bytes).unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
}
