//! `seccompProfile: RuntimeDefault`, as containerd 2.4.2 makes it (contrib/seccomp, DefaultProfile): it follows from the
//! capabilities, so there is one for the agent's list and one for none.

use serde_json::Value;

/// What `seccomp/agent.json` was made for.
const AGENT: [&str; 6] =
    ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"];

/// The profile that the runtime would give to a container with these capabilities.
#[track_caller]
pub fn runtime_default(capabilities: &[String]) -> Value {
    let text = match capabilities {
        [] => include_str!("seccomp/pod.json"),
        list if list == AGENT => include_str!("seccomp/agent.json"),
        other => panic!(
            "no seccomp profile for {other:?}: the agent's capabilities have changed; \
             make tests/src/seccomp/agent.json again with containerd's contrib/seccomp"
        ),
    };
    serde_json::from_str(text).unwrap_or_else(|error| panic!("a seccomp profile of the lab: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agent_may_mount() {
        let agent = runtime_default(&AGENT.map(str::to_owned)).to_string();
        assert!(agent.contains("\"move_mount\"") && agent.contains("\"setns\""));
        assert!(!runtime_default(&[]).to_string().contains("\"move_mount\""));
    }
}
