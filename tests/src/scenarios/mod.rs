//! Every scenario, in one table. A scenario is a straight line: topology, what is done, what must have been seen.

use std::time::Duration;

mod adoption;
mod api;
mod bad_input;
mod copies;
mod deletion;
mod failover;
mod publication;
mod the_lab;

use crate::wait::seconds;

#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub deadline: Duration,
    pub run: fn(),
}

const fn scenario(name: &'static str, deadline: u64, run: fn()) -> Scenario {
    Scenario { name, deadline: seconds(deadline), run }
}

/// The longest first: they are started in this order.
pub const ALL: &[Scenario] = &[
    scenario("failover_read_only", 120, failover::read_only),
    scenario("failover_read_write_shared_data", 120, failover::read_write_shared_data),
    scenario("a_failover_is_told_as_it_happens", 180, api::a_failover_is_told_as_it_happens),
    scenario("published_by_the_api_over_a_crash", 180, api::published_by_the_api_over_a_crash),
    scenario("a_json_log_is_json_and_holds_no_key", 180, api::a_json_log_is_json_and_holds_no_key),
    scenario("health_is_what_the_loop_does", 180, api::health_is_what_the_loop_does),
    scenario("read_write_waits_without_shared_data", 120, failover::read_write_waits_without_shared_data),
    scenario("pod_deleted_while_blackholed", 120, deletion::while_blackholed),
    scenario("writer_stuck_in_fsync_goes_with_its_pod", 180, deletion::writer_stuck_in_fsync),
    scenario(
        "writer_stuck_in_fsync_goes_though_strangers_see_it",
        180,
        deletion::writer_stuck_in_fsync_seen_by_strangers,
    ),
    scenario("pod_with_unwritten_data_goes_in_time", 180, deletion::with_unwritten_data),
    scenario("a_job_that_ends_in_an_outage_keeps_what_it_wrote", 180, deletion::a_job_that_ends_in_an_outage),
    scenario("a_lost_uplink_fences_nobody", 180, failover::a_lost_uplink_fences_nobody),
    scenario("broken_objects_and_a_restart", 180, adoption::broken_objects_and_a_restart),
    scenario("a_wrong_gateway_is_corrected", 180, bad_input::a_wrong_gateway_is_corrected),
    scenario("sub_path_stays_what_it_was", 180, copies::sub_path_stays_what_it_was),
    scenario("sub_path_that_is_missing_is_left_alone", 180, copies::sub_path_that_is_missing_is_left_alone),
    scenario("what_is_mounted_below_is_not_hidden", 180, copies::what_is_mounted_below_is_not_hidden),
    scenario("agent_killed_while_pod_reads", 120, adoption::agent_killed_while_pod_reads),
    scenario("agent_restarted_while_server_is_dead", 120, adoption::agent_restarted_while_server_is_dead),
    scenario("first_target_is_preferred", 90, failover::first_target_is_preferred),
    scenario("blackhole_blocks_a_hard_read", 90, the_lab::blackhole_blocks_a_hard_read),
    scenario("bad_volumes_are_refused", 90, bad_input::bad_volumes_are_refused),
    scenario("bad_objects_change_nothing", 90, bad_input::bad_objects_change_nothing),
    scenario("rights_are_judged_when_a_volume_comes", 90, publication::rights_are_judged_when_a_volume_comes),
    scenario("read_only_whatever_the_pod_asks", 90, publication::read_only_whatever_the_pod_asks),
    scenario("site_serves_through_wireguard", 60, the_lab::site_serves_through_wireguard),
    scenario("sites_may_share_a_tree", 60, the_lab::sites_may_share_a_tree),
    scenario("delay_is_felt", 60, the_lab::delay_is_felt),
    scenario("pod_has_no_privilege", 60, the_lab::pod_has_no_privilege),
];

pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
