//! The ways of gateways of scope host.

use super::*;

#[test]
fn a_way_outlives_its_gateway_for_as_long_as_it_is_used() {
    let mut world = World::new(true).on_host();
    (0..3).for_each(|_| world.second(0, 0));
    let carried = |world: &World| world.observed.ways.values().filter(|way| way.whole && way.carried).count();
    assert_eq!((carried(&world), world.observed.namespaces.len()), (2, 2), "no Share is in use");
    assert!(world.observed.mount_defaults.as_ref().is_some_and(|text| text.contains("10.0.1.1")));
    world.apply(&Op::SomebodyMounts(1));
    world.desired.objects.gateways.clear();
    (0..3).for_each(|_| world.second(0, 0));
    let left: Vec<String> = world.observed.ways.keys().map(ToString::to_string).collect();
    assert_eq!((left, carried(&world)), (vec!["gw.b".to_owned()], 1));
    world.apply(&Op::NobodyMounts);
    world.second(0, 0);
    assert!(world.observed.ways.is_empty() && world.observed.mount_defaults.is_none());
}

#[test]
fn a_way_whose_gateway_says_another_address_is_made_anew() {
    let mut world = World::new(true).on_host();
    (0..3).for_each(|_| world.second(0, 0));
    for gateway in world.desired.objects.gateways.values_mut() {
        gateway.targets[0].server = "10.0.0.9".parse().unwrap();
    }
    let target: TargetId = "gw.a".parse().unwrap();
    assert_eq!(
        plan(&world.desired, &world.observed, world.now),
        [Step::RemoveWay { target: target.clone(), unused: false }, Step::SetMountDefaults]
    );
    (0..3).for_each(|_| world.second(0, 0));
    let seen = &world.observed.ways[&target];
    assert!(seen.carried && seen.way.server.to_string() == "10.0.0.9");
}
