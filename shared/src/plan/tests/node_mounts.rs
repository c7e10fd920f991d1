//! What is mounted on the node itself, for whoever looks there.

use super::*;
use crate::observed::Occupants;
use crate::selector::{Is, Labels, Requirement, Selector};

#[test]
fn a_node_mount_stays_as_long_as_a_container_has_it_and_moves_with_its_share() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(NODE));
    world.apply(&Op::Unpublish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    let id = World::publication(NODE).id();
    assert!(world.observed.is_published(id));
    // Of one that merely sees it, it is taken if that is meant.
    let goes = |world: &World| plan(&world.desired, &world.observed, world.now).contains(&Step::Unpublish(id));
    let mut seeing = World { observed: world.observed.clone(), ..World::new(true) };
    seeing.desired = world.desired.clone();
    seeing.observed.copies.values_mut().for_each(|copies| copies.bound = 0);
    assert!(goes(&seeing) && !goes(&world));
    seeing.desired.objects.withdrawn.insert("checkpoints".parse().unwrap());
    assert!(!goes(&seeing));
    world.apply(&Op::ServerDies(0));
    (0..12).for_each(|_| world.second(0, 0));
    let top = world.containers[&id][0].layers.last().unwrap().to_string();
    assert!(top.ends_with(".b.1@node-rw"), "{top}");
    assert!(world.observed.namespaces.values().any(|tunnel| *tunnel == Tunnel::Fenced), "it may have left something");
    // Where the kernel mounts beneath, nothing of the old one is seen.
    world.containers.values_mut().flatten().for_each(|container| drop(container.layers.remove(0)));
    world.observed.published.values_mut().for_each(|layers| drop(layers.remove(0)));
    (0..3).for_each(|_| world.second(0, 0));
    let left: Vec<&SuperblockId> = world.observed.superblocks.iter().collect();
    assert!(left.len() == 1 && left[0].epoch == 2, "the old one has ended, though the new one is held: {left:?}");
    world.apply(&Op::EndContainers(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    assert_eq!((world.desired.publications.len(), world.observed.superblocks.len()), (0, 0));
}

#[test]
fn a_node_mount_leaves_a_place_for_another_though_a_container_has_it() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(NODE));
    let id = World::publication(NODE).id();
    let goes = |world: &World| plan(&world.desired, &world.observed, world.now).contains(&Step::Unpublish(id));
    world.ask_for_node_mount(None);
    world.second(0, 0);
    assert!(!goes(&world));
    world.ask_for_node_mount(Some("/mnt/other"));
    let other = world.desired.node_mount_changes().pop().unwrap();
    world.desired.publications.insert(other.id(), other);
    assert!(goes(&world), "its superblock is kept up for the other place, and for the container");
}

#[test]
fn what_a_container_has_of_a_node_mount_moves_though_the_node_itself_has_it_no_more() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(NODE));
    world.apply(&Op::Unpublish(NODE));
    let id = World::publication(NODE).id();
    world.observed.published.remove(&id);
    world.apply(&Op::ServerDies(0));
    (0..12).for_each(|_| world.second(0, 0));
    let top = world.containers[&id][0].layers.last().unwrap().to_string();
    assert!(top.ends_with(".b.1@node-rw"), "{top}");
    assert!(!world.observed.is_published(id), "nobody wants it there");
}

#[test]
fn a_node_mount_that_is_asked_for_again_stays_though_that_is_not_on_record_yet() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    let id = World::publication(NODE).id();
    let goes = |world: &World| plan(&world.desired, &world.observed, world.now).contains(&Step::Unpublish(id));
    world.desired.publications.get_mut(&id).unwrap().wanted = false;
    assert!(!goes(&world));
    world.ask_for_node_mount(None);
    assert!(goes(&world));
}

#[test]
fn what_is_left_of_a_node_mount_in_a_container_ends_when_its_server_is_given_up() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(NODE));
    world.second(0, 0);
    // It merely saw the directory above, and keeps what was mounted there by hand.
    world.desired.publications.clear();
    world.observed.published.clear();
    world.ask_for_node_mount(None);
    let superblock = world.observed.superblocks.first().unwrap().clone();
    let ends =
        |world: &World| plan(&world.desired, &world.observed, world.now).contains(&Step::Abort(superblock.clone()));
    assert!(!ends(&world));
    let server = std::mem::replace(world.observed.servers.get_mut(&superblock.namespace).unwrap(), silent());
    world.now = Duration::from_secs(60);
    for (who, goes) in [(Occupants::Living, false), (Occupants::Ending, false), (Occupants::Killed, true)] {
        world.observed.copies.get_mut(&superblock).unwrap().occupants = Some(who);
        assert_eq!(ends(&world), goes, "{who:?}");
    }
    world.observed.servers.insert(superblock.namespace.clone(), server);
    world.observed.namespaces.insert(superblock.namespace.clone(), Tunnel::Fenced);
    assert!(ends(&world));
}

#[test]
fn the_way_is_cut_for_what_a_program_may_still_write_to_a_node_mount_that_was_left_behind() {
    let mut world = World::new(true);
    let reader = Publication { read_only: true, ..World::publication(2) };
    world.desired.publications.insert(reader.id(), reader);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ExportReplaced(0));
    (0..5).for_each(|_| world.second(0, 0));
    // The program has a descriptor, which no table shows.
    world.observed.published.values_mut().for_each(|layers| drop(layers.drain(..layers.len() - 1)));
    world.apply(&Op::Unpublish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    let writers = |world: &World| -> Vec<u32> {
        world.observed.superblocks.iter().filter(|id| id.user.writes()).map(|id| id.epoch).collect()
    };
    assert_eq!(writers(&world), [1]);
    world.apply(&Op::ServerDies(0));
    let is_fenced = |world: &World| world.observed.namespaces.values().any(|tunnel| *tunnel == Tunnel::Fenced);
    assert!((0..12).any(|_| {
        world.second(0, 0);
        is_fenced(&world)
    }));
    (0..3).for_each(|_| world.second(0, 0));
    assert!(writers(&world).is_empty());
}

#[test]
fn one_node_mount_takes_the_place_of_another_when_that_is_gone() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    let id = World::publication(NODE).id();
    world.apply(&Op::StartContainer(NODE));
    world.ask_for_node_mount(None);
    world.desired.objects.shares.get_mut(&"data".parse().unwrap()).unwrap().node_mount = "/mnt/node".parse().ok();
    (0..5).for_each(|_| world.second(0, 0));
    assert_eq!(world.desired.publications[&id].share.as_str(), "checkpoints");
    world.apply(&Op::EndContainers(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    assert_eq!(world.desired.publications[&id].share.as_str(), "data");
    assert!(world.observed.is_published(id));
}

#[test]
fn a_node_mount_is_for_the_nodes_that_are_meant() {
    let mut world = World::new(true);
    world.ask_for_node_mount(Some("/mnt/data"));
    let share = world.desired.objects.shares.get_mut(&"checkpoints".parse().unwrap()).unwrap();
    share.node_selector = Some(Selector(vec![Requirement { key: "gpu".into(), is: Is::There }]));
    let labelled = |key: &str| Some(Labels::from([(key.to_owned(), "yes".to_owned())]));
    let changes = |world: &mut World, labels: Option<Labels>| {
        world.desired.labels = labels;
        world.desired.node_mount_changes()
    };
    assert_eq!(changes(&mut world, None), [], "nobody knows yet");
    assert_eq!(changes(&mut world, labelled("cpu")), []);
    let [new] = &changes(&mut world, labelled("gpu"))[..] else { panic!("it is asked for") };
    assert!(new.wanted);
    world.desired.publications.insert(new.id(), new.clone());
    assert_eq!(changes(&mut world, labelled("gpu")), []);
    assert_eq!(changes(&mut world, None), [], "an agent that begins takes nothing away");
    let [gone] = &changes(&mut world, labelled("cpu"))[..] else { panic!("it is given back") };
    assert!(!gone.wanted);
}
