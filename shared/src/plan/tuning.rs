//! What of a mount follows from the way to its server.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::share::MountOptions;

/// Steps are told apart by it, so it takes few values: a mount that failed is tried again as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tuning {
    /// How far the kernel reads ahead, in KiB.
    pub readahead: u32,
    /// TCP connections to the server.
    pub nconnect: u32,
}

impl Tuning {
    /// A reader that waits for each answer gets one readahead in a round trip. The kernel's own 128 KiB are a tenth of
    /// what a link of 10 ms carries; 4 MiB fill one of 10 Gbit/s at up to 3 ms, 16 MiB at up to 13 ms.
    pub fn of(options: &MountOptions, round_trip: Option<Duration>) -> Self {
        let round_trip = round_trip.unwrap_or_default();
        let (readahead, nconnect) = match round_trip.as_micros() {
            0..3_000 => (4 * 1024, 1),
            3_000..6_500 => (8 * 1024, 2),
            _ => (16 * 1024, 4),
        };
        Self { readahead: options.readahead.unwrap_or(readahead), nconnect: options.nconnect.unwrap_or(nconnect) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_way_gets_more_in_flight_and_what_was_chosen_stays() {
        let free = MountOptions::default();
        let at = |millis| Tuning::of(&free, Some(Duration::from_millis(millis)));
        assert_eq!(Tuning::of(&free, None), at(0));
        assert!(at(0) < at(4) && at(4) < at(20));
        let chosen = MountOptions { readahead: Some(128), nconnect: Some(2), ..free };
        assert_eq!(Tuning::of(&chosen, Some(Duration::from_millis(20))), Tuning { readahead: 128, nconnect: 2 });
    }
}
