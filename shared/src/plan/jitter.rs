//! Many nodes lose one server at one moment. Each waits its turn before it goes to the successor, so that they don't all
//! mount there at once.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::id::NamespaceId;

/// How long this node waits. By default not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jitter {
    node: String,
    spread: Duration,
}

impl Jitter {
    /// Up to `spread`, by the `node`'s identity: no two nodes may have the same.
    pub fn new(node: impl Into<String>, spread: Duration) -> Self {
        Self { node: node.into(), spread }
    }

    /// The same each time it is asked: an agent that restarts meanwhile does not begin to wait anew for another time.
    pub fn before_leaving(&self, server: &NamespaceId) -> Duration {
        let digest = Sha256::digest(format!("{}\n{server}", self.node));
        let number = digest.iter().take(4).fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        self.spread.mul_f64(f64::from(number) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_spread_evenly_over_the_whole_time() {
        let (server, spread) = ("gw.a.1".parse().unwrap(), Duration::from_secs(5));
        let mut in_each_second = [0; 5];
        for node in 0..1000 {
            let jitter = Jitter::new(format!("node-{node}/0123"), spread);
            let wait = jitter.before_leaving(&server);
            assert_eq!(wait, jitter.before_leaving(&server));
            in_each_second[wait.as_secs().min(4) as usize] += 1;
        }
        assert!(in_each_second.iter().all(|count| (150..250).contains(count)), "{in_each_second:?}");
        assert_eq!(Jitter::default().before_leaving(&server), Duration::ZERO);
    }
}
