//! As many pods at once as kubelet lets a node have.

use std::time::Duration;

use tonic::Code;

use crate::agent::Agent;
use crate::csi::{Answer, Volume};
use crate::mounts::{self, Mount};
use crate::node::Node;
use crate::objects;
use crate::pod::{insist, publish, volume};
use crate::site::Site;
use crate::wait::{eventually, seconds};

const PODS: usize = 110;

/// A publish waits so long for its mount, says the agent; and on a busy machine a little longer.
const ANSWERED: Duration = seconds(25);

/// A server dies, nobody has noticed yet, and pods ask at one moment for volumes of its and of another's. Those of the other
/// come while its own still wait; all is given back.
pub(super) fn nobody_waits_for_anothers_server() {
    let node = Node::new("node1");
    let (live, dead) = (Site::start(&node, "a"), Site::start(&node, "b"));
    let parts = [
        objects::gateway("gw", false, &[&live]),
        objects::share("datasets", "gw", "ReadOnly"),
        objects::share_of("models", "gw", "checkpoints", "ReadOnly"),
        objects::gateway("solo", false, &[&dead]),
        objects::share_of("archive", "solo", "datasets", "ReadOnly"),
        objects::share_of("journal", "solo", "checkpoints", "ReadWrite"),
    ];
    let agent = Agent::start(&node, &parts.join("---\n"));
    let csi = agent.csi();
    // Both serve, and the other's shares are mounted: one more pod is no more than a clone.
    let first = ["datasets", "models"].map(|share| volume(&node, "first", share, true));
    first.iter().for_each(|volume| publish(&agent, volume));
    let trial = volume(&node, "trial", "journal", false);
    publish(&agent, &trial);
    insist(&agent, "unpublish", || csi.unpublish(&trial.target));
    let before = published();

    let wanted: Vec<Volume> = (0..PODS)
        .map(|number| {
            let share = ["datasets", "archive", "models", "journal"][number % 4];
            volume(&node, &format!("pod-{number}"), share, share != "journal")
        })
        .collect();
    dead.blackhole();
    let answers = csi.publish_at_once(&wanted).expect("an answer to each");
    let of_dead = |volume: &Volume| matches!(volume.share.as_str(), "archive" | "journal");
    let (theirs, others): (Vec<_>, Vec<_>) =
        wanted.iter().zip(&answers).partition::<Vec<(&Volume, &Answer)>, _>(|(volume, _)| of_dead(volume));
    for (volume, answer) in &others {
        assert_eq!(answer.said.as_ref().map_err(ToString::to_string), Ok(&()), "{}", volume.share);
        let there = mounts::at(&volume.target);
        assert!(there.len() == 1 && there[0].kind == "nfs4", "{there:?}");
    }
    for (volume, Answer { said, after }) in &theirs {
        let refused = said.as_ref().expect_err("its server is dead");
        let cure = refused.message().contains("answers");
        assert!(refused.code() == Code::Unavailable && cure, "{}: {refused}", volume.share);
        assert!(*after < ANSWERED, "{} was answered after {after:?}", volume.share);
    }
    let after = |answers: &[(&Volume, &Answer)]| -> Vec<Duration> { answers.iter().map(|(_, it)| it.after).collect() };
    let (last, earliest) = (after(&others).into_iter().max(), after(&theirs).into_iter().min());
    println!("the other's came within {last:?}, its own were refused from {earliest:?} on");
    assert!(last < earliest, "{last:?} is not before {earliest:?}: some waited for a server that is not theirs");

    // Kubelet gives back what never came as well.
    let returned = csi.unpublish_at_once(&wanted).expect("an answer to each");
    for (volume, Answer { said, after }) in wanted.iter().zip(&returned) {
        assert!(*after < ANSWERED, "{} was given back after {after:?}: {said:?}", volume.target.display());
    }
    for volume in &wanted {
        insist(&agent, "unpublish", || csi.unpublish(&volume.target));
    }
    eventually("nothing of them is left", seconds(30), || {
        let (now, told) = (published(), agent.status()["publications"].clone());
        let left = told.as_array().map_or(0, Vec::len);
        if now == before && left == first.len() { Ok(()) } else { Err((now, told)) }
    });
    first.iter().for_each(|volume| insist(&agent, "unpublish", || csi.unpublish(&volume.target)));
}

/// What is mounted at kubelet's places.
fn published() -> Vec<Mount> {
    mounts::of("self").into_iter().filter(|mount| mount.point.starts_with("/var/lib/kubelet/")).collect()
}
