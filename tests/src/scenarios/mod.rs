//! Every scenario, in one table. A scenario is a straight line: topology, what is done, what must have been seen.

use std::time::Duration;

mod adoption;
mod api;
mod bad_input;
mod copies;
mod crowd;
mod deletion;
mod direct;
mod failover;
mod faults;
mod host_scope;
mod kills;
mod labels;
mod life;
mod mortal;
mod namesakes;
mod newer;
mod partition;
mod publication;
mod the_lab;
mod volumes;

use moorline_agent::killpoint::{Place, Point};

use crate::agent::Whom;
use crate::bench;
use crate::wait::seconds;

/// What scenarios run on: the kernel at hand (this machine's, or the guest's that Debian has), and one that knows what
/// came later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    Usual,
    Newer,
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Usual => "usual",
            Self::Newer => "newer",
        })
    }
}

#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub deadline: Duration,
    pub kernels: &'static [Kernel],
    /// Nothing runs beside it: it asserts what a guest with one CPU can't keep for several at once.
    pub alone: bool,
    /// It changes the whole kernel that it runs on, which is a guest of its own, be this machine's kernel what it may.
    pub apart: bool,
    pub run: fn(),
}

/// Until a scenario counts as hung. Whatever one waits for has a deadline of its own: this one ends what blocks where nobody
/// watches, and says nothing of speed. Where an agent dies thirty times, a runtime that waits for a hand which the kernel
/// holds (12 s) may make minutes of it.
const WATCHDOG: Duration = seconds(900);

pub(crate) const fn scenario(name: &'static str, run: fn()) -> Scenario {
    Scenario { name, deadline: WATCHDOG, kernels: &[Kernel::Usual], alone: false, apart: false, run }
}

impl Scenario {
    /// What it shows takes another path on a newer kernel.
    const fn on_both(self) -> Self {
        Self { kernels: &[Kernel::Usual, Kernel::Newer], ..self }
    }

    const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    const fn apart(self) -> Self {
        Self { apart: true, ..self }
    }

    /// What it shows is not there on older kernels.
    const fn on_newer(self) -> Self {
        Self { kernels: &[Kernel::Newer], ..self }
    }
}

/// What runs alone, then the longest: they are started in this order.
pub const ALL: &[Scenario] = &[
    scenario("new_opens_are_served_in_time", failover::new_opens_are_served_in_time).on_both().alone(),
    scenario("hard_mount_outlives_its_network", newer::hard_mount_outlives_its_network).on_newer(),
    scenario("killed_while_publishing", kills::killed_while_publishing),
    scenario("killed_while_recovering", kills::killed_while_recovering),
    scenario("killed_while_recovering_beneath", kills::killed_while_recovering_beneath).on_newer(),
    scenario("killed_while_recovering_without_a_tunnel", kills::killed_while_recovering_without_a_tunnel).on_newer(),
    scenario("killed_at_the_start", kills::killed_at_the_start),
    scenario("killed_while_the_node_shuts_down", kills::killed_while_the_node_shuts_down),
    scenario("killed_on_an_errand", kills::killed_on_an_errand),
    scenario("killed_while_ways_come_and_go", kills::killed_while_ways_come_and_go),
    scenario("killed_while_hiding", kills::killed_while_hiding),
    scenario("killed_while_objects_change", kills::killed_while_objects_change),
    scenario("failover_read_only", failover::read_only).on_both(),
    scenario("failover_read_write_shared_data", failover::read_write_shared_data).on_both(),
    scenario("a_failover_is_told_as_it_happens", api::a_failover_is_told_as_it_happens),
    scenario("published_by_the_api_over_a_crash", api::published_by_the_api_over_a_crash),
    scenario("a_json_log_is_json_and_holds_no_key", api::a_json_log_is_json_and_holds_no_key),
    scenario("health_is_what_the_loop_does", api::health_is_what_the_loop_does),
    scenario("a_direct_gateway_fails_over", direct::a_direct_gateway_fails_over).on_both(),
    scenario("plain_mounts_ride_the_tunnel", host_scope::plain_mounts_ride_the_tunnel),
    scenario("shares_of_scope_host_are_served", host_scope::shares_of_scope_host_are_served),
    scenario("the_nodes_network_is_not_shadowed", host_scope::the_nodes_network_is_not_shadowed),
    scenario("read_write_waits_without_shared_data", failover::read_write_waits_without_shared_data),
    scenario("pod_deleted_while_blackholed", deletion::while_blackholed).on_both(),
    scenario("old_data_never_overwrites_new", partition::old_data_never_overwrites_new).on_both(),
    scenario("a_deadline_is_its_own_shares_alone", partition::a_deadline_is_its_own_shares_alone),
    scenario("two_nodes_of_one_name_keep_their_locks", namesakes::two_nodes_of_one_name_keep_their_locks),
    scenario("writer_stuck_in_fsync_goes_with_its_pod", deletion::writer_stuck_in_fsync).on_both(),
    scenario("writer_stuck_in_fsync_goes_though_strangers_see_it", deletion::writer_stuck_in_fsync_seen_by_strangers),
    scenario("pod_with_unwritten_data_goes_in_time", deletion::with_unwritten_data),
    scenario("a_job_that_ends_in_an_outage_keeps_what_it_wrote", deletion::a_job_that_ends_in_an_outage),
    scenario("a_lost_uplink_fences_nobody", failover::a_lost_uplink_fences_nobody),
    scenario("broken_objects_and_a_restart", adoption::broken_objects_and_a_restart),
    scenario("a_wrong_gateway_is_corrected", bad_input::a_wrong_gateway_is_corrected),
    scenario("sub_path_stays_what_it_was", copies::sub_path_stays_what_it_was).on_both(),
    scenario("sub_path_that_is_missing_is_left_alone", copies::sub_path_that_is_missing_is_left_alone),
    scenario("what_is_mounted_below_is_not_hidden", copies::what_is_mounted_below_is_not_hidden),
    scenario("errands_stay_in_their_share", volumes::errands_stay_in_their_share),
    scenario("what_is_asked_of_a_volume_waits_for_no_server", volumes::what_is_asked_of_a_volume_waits_for_no_server),
    scenario("a_part_stays_a_part", volumes::a_part_stays_a_part).on_both(),
    scenario("a_node_mount_is_for_everybody", volumes::a_node_mount_is_for_everybody).on_both(),
    scenario("kubelet_meets_nothing_that_waits", deletion::kubelet_meets_nothing_that_waits).on_both(),
    scenario("nothing_lands_on_the_nodes_disk", volumes::nothing_lands_on_the_nodes_disk).on_both(),
    scenario("nobody_waits_for_anothers_server", crowd::nobody_waits_for_anothers_server).on_both(),
    scenario("node_shuts_down_in_order", life::shuts_down_in_order),
    scenario("node_shuts_down_without_its_server", life::shuts_down_without_its_server),
    scenario("node_boots_and_forgets", life::boots_and_forgets),
    scenario("node_keeps_nothing_of_pods_that_are_gone", life::keeps_nothing_of_pods_that_are_gone),
    scenario("node_waits_its_turn", life::waits_its_turn),
    scenario("node_without_logind", life::without_logind),
    scenario("what_the_kernel_has_ended_is_mounted_anew", newer::what_the_kernel_has_ended_is_mounted_anew).on_newer(),
    scenario("one_layer_is_left", newer::one_layer_is_left).on_newer(),
    scenario("agent_killed_while_pod_reads", adoption::agent_killed_while_pod_reads),
    scenario("agent_upgraded_while_a_mount_hangs", adoption::agent_upgraded_while_a_mount_hangs),
    scenario("agent_restarted_while_server_is_dead", adoption::agent_restarted_while_server_is_dead),
    scenario("first_target_is_preferred", failover::first_target_is_preferred),
    scenario("blackhole_blocks_a_hard_read", the_lab::blackhole_blocks_a_hard_read).on_both(),
    scenario("bad_volumes_are_refused", bad_input::bad_volumes_are_refused),
    scenario("a_kernel_too_old_is_named", bad_input::a_kernel_too_old_is_named),
    scenario("bad_objects_change_nothing", bad_input::bad_objects_change_nothing),
    scenario("rights_are_judged_when_a_volume_comes", publication::rights_are_judged_when_a_volume_comes),
    scenario("read_only_whatever_the_pod_asks", publication::read_only_whatever_the_pod_asks),
    scenario("site_serves_through_wireguard", the_lab::site_serves_through_wireguard),
    scenario("sites_may_share_a_tree", the_lab::sites_may_share_a_tree),
    scenario("delay_is_felt", the_lab::delay_is_felt).on_both(),
    scenario("pod_has_no_privilege", the_lab::pod_has_no_privilege),
    scenario("confined_containers_use_shares", labels::confined_containers_use_shares).apart(),
];

/// One row of the fault matrix for each policy and access: all of them in the soak, those with `now` in every test run,
/// where each fault, each policy and each access stands at least once.
macro_rules! matrix {
    ($($fault:ident $name:literal [$($now:literal)*];)*) => {
        pub const FAULTS: &[Scenario] = &[$(
            scenario(concat!("fault_", $name, "_hard_ro"), || {
                faults::run(faults::Fault::$fault, faults::Policy::Hard, faults::Access::ReadOnly)
            }),
            scenario(concat!("fault_", $name, "_hard_rw"), || {
                faults::run(faults::Fault::$fault, faults::Policy::Hard, faults::Access::ReadWrite)
            }),
            scenario(concat!("fault_", $name, "_soft_ro"), || {
                faults::run(faults::Fault::$fault, faults::Policy::Soft, faults::Access::ReadOnly)
            }),
            scenario(concat!("fault_", $name, "_soft_rw"), || {
                faults::run(faults::Fault::$fault, faults::Policy::Soft, faults::Access::ReadWrite)
            }),
            scenario(concat!("fault_", $name, "_bounded_ro"), || {
                faults::run(faults::Fault::$fault, faults::Policy::Bounded, faults::Access::ReadOnly)
            }),
            scenario(concat!("fault_", $name, "_bounded_rw"), || {
                faults::run(faults::Fault::$fault, faults::Policy::Bounded, faults::Access::ReadWrite)
            }),
        )*
            scenario("fault_blackhole_soft_by_default_rw", || {
                faults::run(faults::Fault::Blackhole, faults::Policy::SoftByDefault, faults::Access::ReadWrite)
            }),
        ];
        const IN_EVERY_RUN: &[&str] =
            &[$($(concat!("fault_", $name, "_", $now),)*)* "fault_blackhole_soft_by_default_rw"];
    };
}

matrix! {
    Blackhole "blackhole" ["bounded_rw" "soft_ro"];
    HostAway "host_away" ["hard_rw" "bounded_ro"];
    NetworkLost "network_lost" ["soft_rw"];
    Standby "standby" ["hard_rw"];
    GoneForGood "gone_for_good" ["bounded_rw"];
    ExportReplaced "export_replaced" ["soft_rw"];
    ExportRemoved "export_removed" ["hard_ro"];
    PodDeleted "pod_deleted" ["soft_rw"];
    ServerRestarted "server_restarted" ["hard_rw"];
    AgentKilled "agent_killed" ["bounded_rw"];
}

/// A row for each kill point and whoever may die there: all of them in the soak; in every test run, `killed_*` has each point
/// once.
macro_rules! kills {
    ($($chapter:ident { $($place:ident $point:ident $name:literal $what:literal;)+ })+) => {
        const KILLS: &[(Point, Whom, Scenario)] = &[$($(
            (Point::$point, Whom::Hand, Scenario {
                kernels: kills::kernels(Point::$point),
                ..scenario(concat!("kill_", $name, "_hand"), || kills::one(Point::$point, Whom::Hand))
            }),
            (Point::$point, Whom::Agent, Scenario {
                kernels: kills::kernels(Point::$point),
                ..scenario(concat!("kill_", $name, "_agent"), || kills::one(Point::$point, Whom::Agent))
            }),
        )+)+];
    };
}

moorline_agent::kill_points!(kills);

/// A hand can die only where one comes by.
fn kills() -> impl Iterator<Item = &'static Scenario> {
    let real = |(point, whom, _): &&(Point, Whom, Scenario)| *whom == Whom::Agent || point.place() == Place::Hand;
    KILLS.iter().filter(real).map(|(_, _, scenario)| scenario)
}

pub fn all() -> impl Iterator<Item = &'static Scenario> {
    FAULTS.iter().chain(kills()).chain(ALL).chain(BESIDE).chain(bench::AREAS)
}

/// What one run runs: every scenario that belongs to its kernel, and some rows of the matrix; or all of those and of the kill points, alone.
pub fn chosen(kernel: Kernel, soak: bool) -> impl Iterator<Item = &'static Scenario> {
    let rows = FAULTS.iter().filter(move |row| soak || IN_EVERY_RUN.contains(&row.name));
    let rows = rows.chain(kills().filter(move |_| soak));
    rows.chain(ALL.iter().filter(move |scenario| !soak && !scenario.apart))
        .filter(move |scenario| scenario.kernels.contains(&kernel))
}

/// What a run of scenarios has beside, each in a guest of its own.
pub fn apart(kernel: Kernel) -> impl Iterator<Item = &'static Scenario> {
    ALL.iter().filter(move |scenario| scenario.apart && scenario.kernels.contains(&kernel))
}

/// The kill points' rows of a kernel, by name.
pub fn kill_names(kernel: Kernel) -> Vec<&'static str> {
    kills().filter(|row| row.kernels.contains(&kernel)).map(|row| row.name).collect()
}

/// Whether it is one of those that the soak keeps a record of.
pub fn is_row(name: &str) -> bool {
    FAULTS.iter().chain(kills()).any(|row| row.name == name)
}

/// What runs on further machines of a scenario, started by that.
const BESIDE: &[Scenario] = &[scenario(namesakes::SECOND, namesakes::second)];

pub fn find(name: &str) -> Option<&'static Scenario> {
    all().find(|scenario| scenario.name == name)
}
