//! Random walks through a small world: targets that die and come back, pods that come and go, an agent that restarts,
//! steps that fail. A failing walk prints its operations and the world's state.

mod cases;
mod node_mounts;
mod nodes_end;
mod ways;
mod world;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use world::{World, silent};

/// The last is the node's own.
const SLOTS: usize = 5;
const NODE: usize = 4;

#[derive(Debug, Clone)]
enum Op {
    /// A pod wants a share: slots 0 and 1 read `data`, 2 and 3 write `checkpoints`. Or that is to be mounted on the node, 4.
    Publish(usize),
    Unpublish(usize),
    StartContainer(usize),
    EndContainers(usize),
    KillContainers(usize),
    /// A pod is asked to end.
    Delete(usize),
    ServerDies(usize),
    ServerReturns(usize),
    /// What is mounted from a target is no longer known to it.
    ExportReplaced(usize),
    AgentRestarts,
    /// Others mount from a target by the node's own network, or all have unmounted; a route of that is lost.
    SomebodyMounts(usize),
    NobodyMounts,
    RouteGoes(usize),
    /// The node is about to go down, in so many seconds.
    ShutDown(u64),
    GoOn,
    /// A second passes. Of the lanes, those whose bit is set in `failing` fail, and those in `slow` take longer.
    Second {
        failing: u8,
        slow: u8,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..SLOTS).prop_map(Op::Publish),
        1 => (0..SLOTS).prop_map(Op::Unpublish),
        2 => (0..SLOTS).prop_map(Op::StartContainer),
        1 => (0..SLOTS).prop_map(Op::EndContainers),
        1 => (0..SLOTS).prop_map(Op::KillContainers),
        1 => (0..SLOTS).prop_map(Op::Delete),
        1 => (0..2usize).prop_map(Op::ServerDies),
        1 => (0..2usize).prop_map(Op::ServerReturns),
        1 => (0..2usize).prop_map(Op::ExportReplaced),
        1 => Just(Op::AgentRestarts),
        1 => (0..2usize).prop_map(Op::SomebodyMounts),
        1 => Just(Op::NobodyMounts),
        1 => (0..2usize).prop_map(Op::RouteGoes),
        1 => (0..20u64).prop_map(Op::ShutDown),
        1 => Just(Op::GoOn),
        12 => any::<(u8, u8)>().prop_map(|(a, b)| Op::Second { failing: a & a.rotate_left(3), slow: b & b.rotate_left(3) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_walk_keeps_the_invariants_and_ends_well(
        shared_data in any::<bool>(),
        on_host in prop::bool::weighted(0.3),
        can_shut_down in any::<bool>(),
        spread in 0..6u64,
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut world = World::new(shared_data);
        if on_host {
            world = world.on_host();
            world.observed.can_shut_down = can_shut_down;
        }
        world.desired.jitter = Jitter::new("node/1", Duration::from_secs(spread));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ops.iter().for_each(|op| world.apply(op));
            world.settle();
        }));
        prop_assert!(outcome.is_ok(), "the world at the end: {:#?}", world);
    }
}
