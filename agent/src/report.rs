//! The agent's view, as `moorline status` shows it.

use moorline_shared::id::SuperblockId;
use moorline_shared::observed::{Liveness, Moment, Observed, Tunnel};
use moorline_shared::plan::{self, Desired};
use moorline_shared::publication::Publication;
use moorline_shared::report::{
    MountReport, PublicationReport, PublicationState, Report, ServerState, ShareReport, TunnelReport, TunnelState,
};
use moorline_shared::share::Share;

use crate::host::Host;

pub(crate) fn report(
    node: &str,
    desired: &Desired,
    observed: &Observed,
    problems: Vec<String>,
    host: &Host,
    now: Moment,
) -> Report {
    Report {
        node: node.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shares: desired.objects.shares.values().map(|share| share_report(share, desired, observed, now)).collect(),
        mounts: observed.superblocks.iter().map(|id| mount_report(id, desired, observed, now)).collect(),
        publications: desired
            .publications
            .values()
            .filter(|publication| publication.errand.is_none())
            .map(|publication| publication_report(publication, observed))
            .collect(),
        tunnels: tunnels(desired, observed, host, now),
        problems,
    }
}

fn share_report(share: &Share, desired: &Desired, observed: &Observed, now: Moment) -> ShareReport {
    let current = observed.superblocks.iter().filter(|id| id.share == share.name).max_by_key(|id| id.epoch);
    let publications = desired.publications.values().filter(|it| it.share == share.name && it.errand.is_none()).count();
    ShareReport {
        name: share.name.to_string(),
        gateway: share.gateway.to_string(),
        access: share.access.to_string(),
        policy: share.policy.to_string(),
        target: current.map(|id| id.namespace.target.target.to_string()),
        publications,
        withdrawn: desired.objects.withdrawn.contains(&share.name),
        waiting: plan::waiting(desired, observed, now, share)
            .filter(|_| publications > 0)
            .map(|waiting| waiting.explain(share)),
    }
}

fn mount_report(id: &SuperblockId, desired: &Desired, observed: &Observed, now: Moment) -> MountReport {
    MountReport {
        superblock: id.to_string(),
        share: id.share.to_string(),
        target: id.namespace.target.to_string(),
        read_only: !id.user.writes(),
        health: plan::health(desired, observed, now, id),
        copies: observed.copies.get(id).map_or(0, |copies| copies.all),
    }
}

fn publication_report(publication: &Publication, observed: &Observed) -> PublicationReport {
    let there = observed.is_published(publication.id());
    let leaves = observed.pods.is_leaving(&publication.pod.uid);
    PublicationReport {
        id: publication.id().to_string(),
        share: publication.share.to_string(),
        sub_dir: publication.sub_dir.clone(),
        namespace: publication.pod.namespace.clone(),
        pod: publication.pod.name.clone(),
        pod_uid: publication.pod.uid.clone(),
        node: publication.node,
        read_only: publication.read_only,
        target_path: publication.target_path.clone(),
        state: match (publication.wanted, there) {
            // Of a pod that is being deleted nothing comes any more: it was hidden from kubelet.
            (true, false) if leaves => PublicationState::Unpublishing,
            (false, _) => PublicationState::Unpublishing,
            (true, true) => PublicationState::Published,
            (true, false) => PublicationState::Publishing,
        },
    }
}

fn tunnels(desired: &Desired, observed: &Observed, host: &Host, now: Moment) -> Vec<TunnelReport> {
    let mut tunnels = Vec::new();
    for (id, state) in &observed.namespaces {
        let view = host.tunnel(id);
        let server = observed.servers.get(id);
        let configured =
            desired.objects.gateways.get(&id.target.gateway).and_then(|gateway| gateway.target(&id.target.target));
        tunnels.push(TunnelReport {
            namespace: id.to_string(),
            gateway: id.target.gateway.to_string(),
            target: id.target.target.to_string(),
            endpoint: configured
                .and_then(|target| target.peer.as_ref())
                .map_or_else(|| "direct".to_owned(), |peer| peer.endpoint.to_string()),
            state: match state {
                // On the node's own network it is the way that is carried, or not.
                Tunnel::Attached if observed.ways.get(&id.target).is_some_and(|way| !way.carried) => {
                    TunnelState::Detached
                }
                Tunnel::Detached => TunnelState::Detached,
                Tunnel::Attached => TunnelState::Attached,
                Tunnel::Fenced => TunnelState::Fenced,
            },
            handshake_age: view.as_ref().and_then(|view| view.stats.handshake_age),
            sent_bytes: view.as_ref().map_or(0, |view| view.stats.sent_bytes),
            received_bytes: view.as_ref().map_or(0, |view| view.stats.received_bytes),
            server: match observed.liveness(id, now) {
                Liveness::Unknown => ServerState::Unknown,
                Liveness::Alive => ServerState::Alive,
                Liveness::Away => ServerState::Away,
            },
            answered_in: server.and_then(|server| server.answered_in),
            silent_for: server.map(|server| server.silence(now)),
        });
    }
    tunnels
}
