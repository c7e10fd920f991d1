//! What agents, controllers and command line have in common as clients of one API server: names that are contracts between
//! them, and how long they wait.

use std::time::Duration;

pub const GROUP: &str = "moorline.io";
pub const VERSION: &str = "v1alpha1";
/// Both, as objects say it.
pub const API_VERSION: &str = "moorline.io/v1alpha1";

/// The label of Leases of volumes: an agent makes them, and the controller looks for those whose node is no more.
pub const LEASE: &str = "moorline.io/lease";
pub const OF_A_VOLUME: &str = "volume";

/// What a volume says of itself: the controller writes it into PersistentVolumes, people into pods, and agents read it.
pub const SHARE: &str = "share";
pub const SUB_DIR: &str = "subDir";

/// How long one watch lasts, in seconds: its end is the only sign of life where nothing changes.
pub const WATCH: u32 = 30;
/// A connection that is silent for longer is dead. Without this a request waits as long as TCP tries: a quarter of an hour.
pub const SILENCE: Duration = Duration::from_secs(WATCH as u64 + 5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_and_version_make_the_api_version() {
        assert_eq!(API_VERSION, format!("{GROUP}/{VERSION}"));
    }
}
