//! Volumes whose pod is gone and that nobody gave back: kubelet was down when it went, or lost its word of them.

use crate::observed::Pods;

/// What the node itself shows of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traces {
    /// Kubelet's directory of the pod. It can't go while anything is mounted in it.
    pub directory: bool,
    /// A process in one of its cgroups.
    pub processes: bool,
}

/// What says that a pod is gone for good, in words for people. None while anything speaks for it.
///
/// What the API server does not know may be a pod of the node's own files, which kubelet runs under a UID that the API
/// server never hears: so its processes count.
pub fn evidence_of_its_end(uid: &str, pods: &Pods, traces: Traces) -> Option<&'static str> {
    match (pods.complete, pods.known.contains_key(uid), traces) {
        (_, true, _) | (_, _, Traces { processes: true, .. }) => None,
        // It may be one that was made since the API server was heard last.
        (true, ..) => pods.heard.then_some(
            "the API server does not know its pod any more, no process of it is left, and kubelet did not ask",
        ),
        (false, _, Traces { directory, .. }) => (!directory).then_some("kubelet's directory of its pod is gone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_gone_when_nothing_speaks_for_it_any_more() {
        let gone = |known: bool, complete, heard, directory, processes| {
            let known = known.then(|| ("uid".to_owned(), None)).into_iter().collect();
            evidence_of_its_end("uid", &Pods { known, complete, heard }, Traces { directory, processes }).is_some()
        };
        assert!(gone(false, true, true, true, false) && gone(false, true, true, false, false));
        assert!(!gone(true, true, true, false, false), "the API server knows it");
        assert!(!gone(false, true, false, true, false), "the API server is away: it may be new");
        assert!(!gone(false, true, true, true, true), "it runs: of a file of the node's, or kubelet is down");
        assert!(gone(false, false, false, false, false));
        assert!(!gone(false, false, false, true, false), "nobody speaks of pods, and kubelet has a directory of it");
        assert!(!gone(true, false, false, false, false), "somebody says that it is on its way out");
        assert!(!gone(false, false, false, false, true), "it runs");
    }
}
