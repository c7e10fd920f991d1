//! Every scenario, in one table. A scenario is a straight line: topology, what is done, what must have been seen.

use std::time::Duration;

mod adoption;
mod api;
mod bad_input;
mod copies;
mod deletion;
mod direct;
mod failover;
mod faults;
mod newer;
mod publication;
mod the_lab;

use crate::wait::seconds;

/// What scenarios run on: the kernel at hand (this machine's, or the guest's that Debian has), and one that knows what
/// came later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    Usual,
    Newer,
}

#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub deadline: Duration,
    pub kernels: &'static [Kernel],
    pub run: fn(),
}

const fn scenario(name: &'static str, deadline: u64, run: fn()) -> Scenario {
    Scenario { name, deadline: seconds(deadline), kernels: &[Kernel::Usual], run }
}

impl Scenario {
    /// What it shows takes another path on a newer kernel.
    const fn on_both(self) -> Self {
        Self { kernels: &[Kernel::Usual, Kernel::Newer], ..self }
    }

    /// What it shows is not there on older kernels.
    const fn on_newer(self) -> Self {
        Self { kernels: &[Kernel::Newer], ..self }
    }
}

/// The longest first: they are started in this order.
pub const ALL: &[Scenario] = &[
    scenario("hard_mount_outlives_its_network", 180, newer::hard_mount_outlives_its_network).on_newer(),
    scenario("failover_read_only", 120, failover::read_only).on_both(),
    scenario("failover_read_write_shared_data", 120, failover::read_write_shared_data).on_both(),
    scenario("a_failover_is_told_as_it_happens", 180, api::a_failover_is_told_as_it_happens),
    scenario("published_by_the_api_over_a_crash", 180, api::published_by_the_api_over_a_crash),
    scenario("a_json_log_is_json_and_holds_no_key", 180, api::a_json_log_is_json_and_holds_no_key),
    scenario("health_is_what_the_loop_does", 180, api::health_is_what_the_loop_does),
    scenario("a_direct_gateway_fails_over", 150, direct::a_direct_gateway_fails_over).on_both(),
    scenario("read_write_waits_without_shared_data", 120, failover::read_write_waits_without_shared_data),
    scenario("pod_deleted_while_blackholed", 120, deletion::while_blackholed).on_both(),
    scenario("writer_stuck_in_fsync_goes_with_its_pod", 180, deletion::writer_stuck_in_fsync).on_both(),
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
    scenario("sub_path_stays_what_it_was", 180, copies::sub_path_stays_what_it_was).on_both(),
    scenario("sub_path_that_is_missing_is_left_alone", 180, copies::sub_path_that_is_missing_is_left_alone),
    scenario("what_is_mounted_below_is_not_hidden", 180, copies::what_is_mounted_below_is_not_hidden),
    scenario("one_layer_is_left", 120, newer::one_layer_is_left).on_newer(),
    scenario("agent_killed_while_pod_reads", 120, adoption::agent_killed_while_pod_reads),
    scenario("agent_restarted_while_server_is_dead", 120, adoption::agent_restarted_while_server_is_dead),
    scenario("first_target_is_preferred", 90, failover::first_target_is_preferred),
    scenario("blackhole_blocks_a_hard_read", 90, the_lab::blackhole_blocks_a_hard_read).on_both(),
    scenario("bad_volumes_are_refused", 90, bad_input::bad_volumes_are_refused),
    scenario("bad_objects_change_nothing", 90, bad_input::bad_objects_change_nothing),
    scenario("rights_are_judged_when_a_volume_comes", 90, publication::rights_are_judged_when_a_volume_comes),
    scenario("read_only_whatever_the_pod_asks", 90, publication::read_only_whatever_the_pod_asks),
    scenario("site_serves_through_wireguard", 60, the_lab::site_serves_through_wireguard),
    scenario("sites_may_share_a_tree", 60, the_lab::sites_may_share_a_tree),
    scenario("delay_is_felt", 60, the_lab::delay_is_felt).on_both(),
    scenario("pod_has_no_privilege", 60, the_lab::pod_has_no_privilege),
];

/// One row of the fault matrix for each policy and access: all of them in the soak, those with `now` in every test run,
/// where each fault, each policy and each access stands at least once.
macro_rules! matrix {
    ($($fault:ident $name:literal [$($now:literal)*];)*) => {
        pub const FAULTS: &[Scenario] = &[$(
            scenario(concat!("fault_", $name, "_hard_ro"), 300, || {
                faults::run(faults::Fault::$fault, faults::Policy::Hard, faults::Access::ReadOnly)
            }),
            scenario(concat!("fault_", $name, "_hard_rw"), 300, || {
                faults::run(faults::Fault::$fault, faults::Policy::Hard, faults::Access::ReadWrite)
            }),
            scenario(concat!("fault_", $name, "_soft_ro"), 300, || {
                faults::run(faults::Fault::$fault, faults::Policy::Soft, faults::Access::ReadOnly)
            }),
            scenario(concat!("fault_", $name, "_soft_rw"), 300, || {
                faults::run(faults::Fault::$fault, faults::Policy::Soft, faults::Access::ReadWrite)
            }),
            scenario(concat!("fault_", $name, "_bounded_ro"), 300, || {
                faults::run(faults::Fault::$fault, faults::Policy::Bounded, faults::Access::ReadOnly)
            }),
            scenario(concat!("fault_", $name, "_bounded_rw"), 300, || {
                faults::run(faults::Fault::$fault, faults::Policy::Bounded, faults::Access::ReadWrite)
            }),
        )*];
        const IN_EVERY_RUN: &[&str] = &[$($(concat!("fault_", $name, "_", $now),)*)*];
    };
}

matrix! {
    Blackhole "blackhole" ["bounded_rw" "soft_ro"];
    HostAway "host_away" ["hard_rw" "bounded_ro"];
    NetworkLost "network_lost" ["soft_rw"];
    GoneForGood "gone_for_good" ["bounded_rw"];
    ExportReplaced "export_replaced" ["soft_rw"];
    ExportRemoved "export_removed" ["hard_ro"];
    PodDeleted "pod_deleted" ["soft_rw"];
    ServerRestarted "server_restarted" ["hard_rw"];
    AgentKilled "agent_killed" ["bounded_rw"];
}

/// What one run runs: every scenario that belongs to its kernel, and some rows of the matrix; or all of those alone.
pub fn chosen(kernel: Kernel, soak: bool) -> impl Iterator<Item = &'static Scenario> {
    let rows = FAULTS.iter().filter(move |row| soak || IN_EVERY_RUN.contains(&row.name));
    rows.chain(ALL.iter().filter(move |_| !soak)).filter(move |scenario| scenario.kernels.contains(&kernel))
}

pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().chain(FAULTS).find(|scenario| scenario.name == name)
}
