//! One promise each, with the world as it must be for it.

use super::*;
use crate::observed::{Deletion, Occupants};
use crate::share::Policy;

#[test]
fn what_is_being_retired_takes_nobodys_place() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(1));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ExportReplaced(0));
    let old = world.observed.superblocks.first().unwrap().clone();
    let new = SuperblockId { epoch: old.epoch + 1, ..old.clone() };
    world.observed.superblocks.insert(new.clone());
    let replace = Step::Replace { old, new: new.clone() };
    assert!(plan(&world.desired, &world.observed, world.now).contains(&replace));
    world.observed.ending.insert(new);
    assert!(!plan(&world.desired, &world.observed, world.now).contains(&replace));
}

#[test]
fn what_a_fence_has_shut_down_that_was_not_ended_is_mounted_anew_from_the_same_server() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(2));
    let shut = world.observed.superblocks.first().unwrap().clone();
    world.observed.given_up.insert(shut.clone());
    (0..5).for_each(|_| world.second(0, 0));
    let new = SuperblockId { epoch: shut.epoch + 1, ..shut };
    let id = World::publication(2).id();
    assert_eq!(world.observed.published[&id].last(), Some(&Layer::Ours(new.clone())));
    assert_eq!(world.containers[&id][0].layers.last(), Some(&new));
    assert_eq!(world.observed.tunnel(&new.namespace), Some(Tunnel::Attached), "nobody is fenced");
}

#[test]
fn what_is_left_of_a_mount_moves_no_share_while_it_is_cleared_away() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(0));
    (0..5).for_each(|_| world.second(0, 0));
    let there = world.observed.superblocks.first().unwrap().clone();
    let husk = SuperblockId { epoch: there.epoch + 1, user: User::Node(Access::ReadOnly), ..there };
    world.observed.husks.insert(husk.clone());
    let clear = Step::Clear(husk);
    assert_eq!(plan(&world.desired, &world.observed, world.now), std::slice::from_ref(&clear));
    note_under_way(&mut world.observed, std::iter::once(&clear));
    assert_eq!(plan(&world.desired, &world.observed, world.now), [clear]);
}

#[test]
fn a_base_mount_stays_until_what_rested_on_it_is_given_back() {
    let mut world = World::new(true);
    [0, 2].into_iter().for_each(|slot| world.apply(&Op::Publish(slot)));
    (0..5).for_each(|_| world.second(0, 0));
    [0, 2].into_iter().for_each(|slot| world.apply(&Op::Unpublish(slot)));
    // Every layer is gone, and the hand that took them away is not done: a late one may still be put there.
    world.observed.published.clear();
    let retired = |world: &World| {
        let steps = plan(&world.desired, &world.observed, world.now);
        steps.iter().filter(|step| matches!(step, Step::Retire { .. })).count()
    };
    assert_eq!((world.observed.superblocks.len(), retired(&world)), (2, 0));
    world.desired.publications.clear();
    assert_eq!(retired(&world), 2);
}

#[test]
fn a_dead_server_is_left_only_for_one_that_answers_and_writers_only_after_a_fence() {
    let mut world = World::new(true);
    for op in [Op::Publish(0), Op::Publish(2)] {
        world.apply(&op);
    }
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(2));
    world.apply(&Op::ServerDies(0));
    let mut kinds = Vec::new();
    for _ in 0..8 {
        world.now += Duration::from_secs(1);
        world.probe();
        world.look();
        for step in plan(&world.desired, &world.observed, world.now) {
            let kind = format!("{step:?}").split(['(', ' ']).next().unwrap().to_owned();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
            world.perform(&step);
        }
    }
    let position =
        |kind: &str| kinds.iter().position(|k| k == kind).unwrap_or_else(|| panic!("no {kind} in {kinds:?}"));
    assert!(position("Mount") < position("Fence"), "a fence is not spent on a server that can't be mounted: {kinds:?}");
    assert!(position("Fence") < position("Replace"), "{kinds:?}");
}

#[test]
fn without_shared_data_a_writer_waits_and_says_so() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    (0..8).for_each(|_| world.second(0, 0));
    let share = world.desired.objects.shares.get(&"checkpoints".parse().unwrap()).unwrap();
    assert_eq!(waiting(&world.desired, &world.observed, world.now, share), Some(Waiting::DataNotShared));
    assert!(plan(&world.desired, &world.observed, world.now).is_empty());
}

#[test]
fn when_every_server_falls_silent_at_once_nothing_is_fenced_and_nothing_moves() {
    let mut world = World::new(true);
    for op in [Op::Publish(0), Op::Publish(2)] {
        world.apply(&op);
    }
    (0..5).for_each(|_| world.second(0, 0));
    // The node's uplink goes, and a moment earlier the successor still answered.
    world.apply(&Op::ServerDies(0));
    world.now += Duration::from_secs(1);
    world.probe();
    world.apply(&Op::ServerDies(1));
    (0..30).for_each(|_| world.second(0, 0));
    assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
    // It comes back, and the tunnel of the successor is the first to.
    world.apply(&Op::ServerReturns(1));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerReturns(0));
    (0..20).for_each(|_| world.second(0, 0));
    assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
    assert!(world.observed.superblocks.iter().all(|id| id.epoch == 1));
    world.settle();
}

#[test]
fn nothing_is_published_from_a_server_that_is_away() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(0));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    world.apply(&Op::ServerDies(1));
    (0..8).for_each(|_| world.second(0, 0));
    world.apply(&Op::Publish(1));
    (0..3).for_each(|_| world.second(0, 0));
    assert!(!world.observed.is_published(World::publication(1).id()));
    world.settle();
}

#[test]
fn what_a_pod_did_not_write_is_lost_when_its_grace_ends_and_not_while_anybody_may_count_on_it() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    (0..8).for_each(|_| world.second(0, 0));
    let id = World::publication(2).id();
    let (now, second) = (world.now, Duration::from_secs(1));
    let deletion = |grace: u32| Some(Deletion { asked: now, ends: now + grace * second });
    let mut aborts = |occupants, told: Option<Option<Deletion>>, complete, at: u32| {
        world.observed.occupants = BTreeMap::from([(id, occupants)]);
        world.observed.pods.known = told.map(|told| ("2".to_owned(), told)).into_iter().collect();
        world.observed.pods.complete = complete;
        let steps = plan(&world.desired, &world.observed, now + at * second);
        steps.iter().any(|step| matches!(step, Step::Abort(_)))
    };
    use Occupants::{Ending, Killed, Living};
    assert!(!aborts(Living, None, false, 3600), "nobody says that it was deleted");
    assert!(!aborts(Ending, None, false, 3600), "it may have ended well");
    assert!(!aborts(Ending, Some(None), true, 3600), "it may have ended well, and its pod stays");
    assert!(aborts(Ending, None, true, 0), "its pod is no more");
    assert!(!aborts(Living, None, true, 0), "the word of it may be late");
    assert!(!aborts(Living, Some(deletion(30)), true, 19) && !aborts(Ending, Some(deletion(30)), true, 19));
    assert!(aborts(Living, Some(deletion(30)), true, 20) && aborts(Ending, Some(deletion(30)), true, 20));
    assert!(aborts(Living, Some(deletion(0)), true, 0), "no grace");
    assert!(aborts(Killed, Some(None), true, 0));
}

#[test]
fn a_share_that_may_fail_blocks_until_its_deadline_and_fails_until_a_server_is_back() {
    let after = Duration::from_secs(20);
    for policy in [Policy::Hard, Policy::Soft, Policy::Bounded { after }] {
        let mut world = World::new(false);
        for share in world.desired.objects.shares.values_mut() {
            share.policy = policy;
            // Two major timeouts are as long.
            share.options.timeo = Some(50);
            share.options.retrans = Some(1);
        }
        world.apply(&Op::Publish(2));
        (0..5).for_each(|_| world.second(0, 0));
        world.apply(&Op::ServerDies(0));
        let died = world.now;
        let mut aborted = Vec::new();
        for _ in 0..40 {
            world.now += Duration::from_secs(1);
            world.probe();
            world.look();
            let steps = plan(&world.desired, &world.observed, world.now);
            if steps.iter().any(|step| matches!(step, Step::Abort(_))) {
                aborted.push(world.now - died);
            }
        }
        match policy {
            Policy::Soft | Policy::Bounded { .. } => {
                assert!(aborted[0] >= after && aborted[0] <= after + Duration::from_secs(2), "{aborted:?}");
                assert_eq!(aborted.last(), Some(&Duration::from_secs(40)));
            }
            Policy::Hard => assert_eq!(aborted, []),
        }
        world.apply(&Op::ServerReturns(0));
        world.now += Duration::from_secs(1);
        world.probe();
        assert_eq!(plan(&world.desired, &world.observed, world.now), []);
    }
}

#[test]
fn a_direct_writer_moves_only_where_the_kernel_can_fence_it() {
    for can_shut_down in [false, true] {
        let mut world = World::new(true);
        for gateway in world.desired.objects.gateways.values_mut() {
            gateway.path = crate::gateway::Path::Direct;
        }
        world.observed.can_shut_down = can_shut_down;
        world.apply(&Op::Publish(2));
        (0..5).for_each(|_| world.second(0, 0));
        world.apply(&Op::ServerDies(0));
        (0..12).for_each(|_| world.second(0, 0));
        let moved = world.observed.superblocks.iter().any(|id| id.epoch == 2);
        assert_eq!(moved, can_shut_down);
        let share = world.desired.objects.shares.get(&"checkpoints".parse().unwrap()).unwrap();
        let waits = waiting(&world.desired, &world.observed, world.now, share);
        assert_eq!(waits, (!can_shut_down).then_some(Waiting::CannotFence));
    }
}

#[test]
fn a_direct_writer_whose_mount_was_under_way_during_a_fence_is_ended_before_another_serves() {
    let mut world = World::new(true);
    for gateway in world.desired.objects.gateways.values_mut() {
        gateway.path = crate::gateway::Path::Direct;
    }
    world.observed.can_shut_down = true;
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    let old = world.observed.superblocks.first().unwrap().clone();
    world.apply(&Op::ServerDies(0));
    while !world.observed.superblocks.iter().any(|id| id.epoch == 2) {
        world.second(0, 0);
    }
    let fence = Step::Fence(old.namespace.clone());
    let steps = |world: &World| plan(&world.desired, &world.observed, world.now);
    let moves = |steps: &[Step]| steps.iter().any(|step| matches!(step, Step::Replace { .. } | Step::Publish(..)));
    // A fence that was made for another share has not met this one.
    world.observed.namespaces.insert(old.namespace.clone(), Tunnel::Fenced);
    assert!(steps(&world).contains(&fence) && !moves(&steps(&world)), "{:?}", steps(&world));
    // Nor has one that was cut short between its mark and its end.
    world.observed.given_up.insert(old.clone());
    assert!(steps(&world).contains(&fence) && !moves(&steps(&world)), "{:?}", steps(&world));
    world.observed.ended.insert(old);
    assert!(!steps(&world).contains(&fence) && moves(&steps(&world)), "{:?}", steps(&world));
}

#[test]
fn a_server_that_cannot_be_mounted_costs_no_fence_and_the_next_is_tried() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.observed.unmountable = BTreeSet::from([(
        "checkpoints".parse().unwrap(),
        TargetId { gateway: "gw".parse().unwrap(), target: "b".parse().unwrap() },
    )]);
    world.apply(&Op::ServerDies(0));
    (0..12).for_each(|_| world.second(0, 0));
    assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
    world.observed.unmountable.clear();
    (0..6).for_each(|_| world.second(0, 0));
    assert!(world.observed.superblocks.iter().any(|id| id.epoch == 2 && id.namespace.target.target.as_str() == "b"));
    world.settle();
}

#[test]
fn a_stale_share_is_mounted_anew_from_the_same_server_and_nobody_is_fenced() {
    for slot in [0, 2] {
        let mut world = World::new(true);
        world.apply(&Op::Publish(slot));
        (0..5).for_each(|_| world.second(0, 0));
        world.apply(&Op::StartContainer(slot));
        world.apply(&Op::ExportReplaced(0));
        (0..5).for_each(|_| world.second(0, 0));
        assert!(world.observed.superblocks.iter().any(|id| id.epoch == 2 && id.namespace.generation == 1));
        assert!(world.observed.namespaces.values().all(|tunnel| *tunnel == Tunnel::Attached));
        world.settle();
    }
}

#[test]
fn of_a_pod_that_is_deleted_kubelet_meets_nothing_that_waits_and_no_other_pod_is_touched() {
    let mut world = World::new(false);
    for slot in 0..4 {
        world.apply(&Op::Publish(slot));
    }
    (0..5).for_each(|_| world.second(0, 0));
    let ids: Vec<PublicationId> = (0..4).map(|slot| World::publication(slot).id()).collect();
    for slot in [0, 2] {
        world.apply(&Op::StartContainer(slot));
        world.apply(&Op::Delete(slot));
    }
    // Its server is there. Should it die now, kubelet would look before anybody knows.
    (0..3).for_each(|_| world.second(0, 0));
    let shown: Vec<bool> = ids.iter().map(|id| world.observed.is_published(*id)).collect();
    assert_eq!(shown, [false, true, false, true]);
    assert!(!world.containers[&ids[0]].is_empty(), "its containers keep what they have");
    // A subPath that kubelet has bound is in its way as well.
    assert!(plan(&world.desired, &world.observed, world.now).is_empty(), "and it does not come again");
    world.observed.shown.insert(ids[0]);
    assert_eq!(plan(&world.desired, &world.observed, world.now), [Step::Hide(ids[0])]);
    world.observed.shown.remove(&ids[0]);
    // So is one that is not asked, and merely no more, once its server is known to be away.
    world.observed.gone.insert("1".to_owned());
    assert!(plan(&world.desired, &world.observed, world.now).is_empty());
    world.observed.gone.clear();
    world.apply(&Op::ServerDies(0));
    world.apply(&Op::ServerDies(1));
    (0..8).for_each(|_| world.second(0, 0));
    world.observed.gone.insert("1".to_owned());
    assert_eq!(plan(&world.desired, &world.observed, world.now), [Step::Hide(ids[1])]);
    world.observed.gone.clear();
    world.settle();
}

#[test]
fn a_writer_whose_record_is_lost_ends_with_its_pod_and_not_before() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(2));
    world.second(0, 0);
    let superblock = world.observed.superblocks.first().unwrap().clone();
    let ends =
        |world: &World| plan(&world.desired, &world.observed, world.now).contains(&Step::Abort(superblock.clone()));
    world.desired.publications.clear();
    world.observed.servers.remove(&superblock.namespace);
    world.observed.namespaces.insert(superblock.namespace.clone(), Tunnel::Attached);
    world.observed.servers.insert(superblock.namespace.clone(), silent());
    world.now = Duration::from_secs(60);
    let User::ReadWrite(publication) = superblock.user else { panic!("a writer's") };
    for (who, goes) in [(Occupants::Living, false), (Occupants::Ending, true), (Occupants::Killed, true)] {
        world.observed.occupants.insert(publication, who);
        assert_eq!(ends(&world), goes, "{who:?}");
    }
}

#[test]
fn a_base_mount_stays_as_long_as_work_that_was_given_up_may_show_it() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(0));
    (0..5).for_each(|_| world.second(0, 0));
    let superblock = world.observed.superblocks.first().unwrap().clone();
    world.desired.publications.clear();
    world.observed.published.clear();
    let goes = |world: &World| {
        let steps = plan(&world.desired, &world.observed, world.now);
        steps.contains(&Step::Retire { superblock: superblock.clone(), abort: false })
    };
    assert!(goes(&world));
    world.observed.lingering.insert(superblock.clone());
    assert!(!goes(&world));
    // That may itself wait for a server that does not answer.
    let ends =
        |world: &World| plan(&world.desired, &world.observed, world.now).contains(&Step::Abort(superblock.clone()));
    assert!(!ends(&world));
    world.observed.given_up.insert(superblock.clone());
    assert!(ends(&world));
}

/// For how long after its server was given up a share stays, on a node that waits for its turn.
fn moves_after(jitter: Jitter, slot: usize) -> Duration {
    let mut world = World::new(true);
    world.desired.jitter = jitter;
    world.apply(&Op::Publish(slot));
    (0..5).for_each(|_| world.second(0, 0));
    assert!(world.observed.is_published(World::publication(slot).id()), "the first mount waits for nothing");
    let first = world.observed.superblocks.first().unwrap().namespace.clone();
    world.apply(&Op::ServerDies(0));
    for _ in 0..60 {
        world.now += Duration::from_millis(100);
        world.probe();
        if world.observed.liveness(&first, world.now) == Liveness::Away {
            break;
        }
    }
    let given_up = world.observed.servers[&first].given_up();
    let share = world.desired.objects.shares[&World::publication(slot).share].clone();
    let moves = |step: &Step| matches!(step, Step::Mount(id, _) if id.epoch == 2);
    while !plan(&world.desired, &world.observed, world.now).iter().any(moves) {
        assert_eq!(waiting(&world.desired, &world.observed, world.now, &share), Some(Waiting::Turn));
        assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
        world.now += Duration::from_millis(10);
        world.probe();
    }
    let waited = world.now.saturating_sub(given_up);
    world.settle();
    waited
}

#[test]
fn a_node_waits_its_turn_and_no_longer_before_it_goes_to_another_server() {
    let server = "gw.a.1".parse().unwrap();
    for node in 0..20 {
        let jitter = Jitter::new(format!("node{node}"), Duration::from_secs(5));
        let turn = jitter.before_leaving(&server);
        for slot in [0, 2] {
            let waited = moves_after(jitter.clone(), slot);
            assert!(
                waited >= turn && waited <= turn + Duration::from_millis(150),
                "{waited:?} for a turn after {turn:?}"
            );
        }
    }
    assert!(moves_after(Jitter::default(), 2) <= Duration::from_millis(150));
}

#[test]
fn a_volume_of_one_node_comes_when_it_is_this_nodes_and_stays_whatever_is_said_then() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    let id = World::publication(2).id();
    let publication = world.desired.publications.get_mut(&id).unwrap();
    publication.sole = Some(Sole::Node);
    let volume = publication.volume_id.clone();
    (0..5).for_each(|_| world.second(0, 0));
    assert!(world.observed.superblocks.is_empty(), "not even mounted");
    world.observed.leases.held.insert(volume);
    (0..5).for_each(|_| world.second(0, 0));
    assert!(world.observed.is_published(id));
    // The API server is away when an agent begins, and the share moves.
    world.observed.leases = Leases::default();
    world.apply(&Op::ExportReplaced(0));
    (0..20).for_each(|_| world.second(0, 0));
    let top = world.observed.published[&id].last();
    assert!(matches!(top, Some(Layer::Ours(top)) if top.epoch > 1), "{:?}", world.observed);
}

#[test]
fn a_volume_that_is_anothers_is_refused_with_the_name() {
    let sole = |slot: usize, sole| Publication { volume_id: "v".into(), sole, ..World::publication(slot) };
    let mut desired = Desired::default();
    let mine = sole(2, Some(Sole::Node));
    let there = Leases { others: [("v".to_owned(), "node-b".to_owned())].into(), ..Leases::default() };
    let refusal = desired.is_taken(&mine, &there).unwrap_err().to_string();
    assert!(refusal.contains("node node-b has it"), "{refusal}");
    assert_eq!(desired.is_taken(&sole(2, None), &there), Ok(()), "anybody may have it");
    let here = sole(3, Some(Sole::Node));
    desired.publications.insert(here.id(), here);
    assert_eq!(desired.is_taken(&mine, &Leases::default()), Ok(()), "pods of one node share it");
    let alone = sole(2, Some(Sole::Pod));
    assert!(matches!(desired.is_taken(&alone, &Leases::default()), Err(Refusal::OtherPod { .. })));
    desired.publications.clear();
    desired.publications.insert(alone.id(), alone.clone());
    assert_eq!(desired.is_taken(&alone, &Leases::default()), Ok(()), "it is its own");
}

#[test]
fn a_share_that_is_for_claims_is_no_pods_own() {
    let mut world = World::new(true);
    let name = World::publication(0).share;
    world.desired.objects.shares.get_mut(&name).unwrap().not_inline = true;
    let of_volume = World::publication(0);
    let inline = Publication { inline: true, ..of_volume.clone() };
    assert_eq!(world.desired.may_begin(&inline), Err(Refusal::NotInline(name.clone())));
    assert_eq!(world.desired.may_begin(&of_volume), Ok(()));
    world.desired.returning.insert(inline.id());
    assert_eq!(world.desired.may_begin(&inline), Ok(()), "its pod has had it");
    world.desired.returning.clear();
    world.desired.objects.shares.get_mut(&name).unwrap().not_inline = false;
    assert_eq!(world.desired.may_begin(&inline), Ok(()));
}
