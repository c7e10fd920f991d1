//! The node shuts down, or does not after all.

use super::*;
use crate::share::Namespaces;

#[test]
fn a_node_that_shuts_down_flushes_and_lets_go_of_everything_and_comes_back_when_it_does_not() {
    let mut world = World::new(true);
    for slot in 0..SLOTS {
        world.apply(&Op::Publish(slot));
    }
    (0..5).for_each(|_| world.second(0, 0));
    for slot in 0..SLOTS {
        world.apply(&Op::StartContainer(slot));
    }
    let before = world.observed.superblocks.clone();
    world.apply(&Op::ShutDown(30));
    let shutdown = world.desired.shutdown.unwrap();
    world.second(0, 0);
    assert_eq!(world.observed.flushed.len(), 3, "all writers, at once");
    world.second(0, 0);
    assert_eq!(world.observed.published.len(), SLOTS, "pods have their time");
    world.apply(&Op::EndContainers(2));
    while world.now < shutdown.pods_until {
        world.second(0, 0);
    }
    world.second(0, 0);
    let writer = before.iter().find(|id| id.user == User::ReadWrite(World::publication(3).id())).unwrap();
    assert!(world.observed.flushed[writer].began >= shutdown.pods_until, "what it wrote meanwhile");
    (0..3).for_each(|_| world.second(0, 0));
    assert!(world.observed.published.is_empty());
    let left: Vec<&SuperblockId> = world.observed.superblocks.iter().collect();
    assert!(left.len() == 3 && left.contains(&writer), "those that containers hold: {left:?}");
    assert!(plan(&world.desired, &world.observed, world.now).contains(&Step::Abort(writer.clone())));
    assert!(!has_let_go(&world.observed));
    // The last ones go, and with them the tunnels.
    let held = world.containers.clone();
    world.containers.clear();
    (0..4).for_each(|_| world.second(0, 0));
    assert!(has_let_go(&world.observed), "{:?}", world.observed);
    assert_eq!(world.desired.publications.len(), SLOTS, "all of them are still wanted");
    drop(held);
    world.apply(&Op::GoOn);
    world.settle();
}

#[test]
fn at_the_nodes_end_a_new_mount_outlasts_the_old_one_that_pods_see() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    let old = world.observed.superblocks.first().unwrap().clone();
    let new = SuperblockId { epoch: old.epoch + 1, ..old.clone() };
    world.observed.superblocks.insert(new.clone());
    world.apply(&Op::ShutDown(10));
    let retired = |world: &World| -> Vec<SuperblockId> {
        let retired = |step| if let Step::Retire { superblock, .. } = step { Some(superblock) } else { None };
        plan(&world.desired, &world.observed, world.now).into_iter().filter_map(retired).collect()
    };
    assert_eq!(retired(&world), []);
    world.observed.published.clear();
    assert_eq!(retired(&world), [old, new]);
}

#[test]
fn after_a_shutdown_that_did_not_come_a_pod_has_its_volume_again_whoever_may_use_the_share_by_now() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(0));
    let Some(share) = world.desired.objects.shares.values_mut().find(|share| share.access == Access::ReadOnly) else {
        panic!("there is one");
    };
    share.namespaces = Namespaces::Only(BTreeSet::new());
    (0..5).for_each(|_| world.second(0, 0));
    let id = World::publication(0).id();
    assert!(!world.observed.is_published(id), "it may not come");
    world.desired.returning.insert(id);
    (0..5).for_each(|_| world.second(0, 0));
    assert!(world.observed.is_published(id), "it was there before");
}

#[test]
fn a_server_that_is_away_when_the_node_shuts_down_costs_no_time() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    (0..8).for_each(|_| world.second(0, 0));
    world.apply(&Op::ShutDown(5));
    let id = world.observed.superblocks.first().unwrap().clone();
    (0..2).for_each(|_| world.second(0, 0));
    assert!(world.observed.flushed.is_empty() && !world.observed.superblocks.contains(&id), "{:?}", world.observed);
    world.second(0, 0);
    assert!(has_let_go(&world.observed), "{:?}", world.observed);
}

#[test]
fn a_node_that_shuts_down_waits_for_those_who_mount_by_its_ways() {
    let mut world = World::new(true).on_host();
    (0..3).for_each(|_| world.second(0, 0));
    world.apply(&Op::SomebodyMounts(0));
    world.apply(&Op::ShutDown(30));
    (0..3).for_each(|_| world.second(0, 0));
    assert!(!has_let_go(&world.observed) && world.observed.ways.values().all(|way| way.carried));
    world.apply(&Op::NobodyMounts);
    assert!(has_let_go(&world.observed));
}
