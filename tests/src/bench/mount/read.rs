//! A long file over a long way.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::super::figures::PEER;
use super::super::record::{Samples, Whose};
use super::{end, objects, plain_mount, plain_unmount};
use crate::agent::Agent;
use crate::node::Node;
use crate::pod::{insist, publish, volume};
use crate::site::Site;
use crate::wait::now;

const LENGTH: usize = 64 << 20;
/// As cat(1) reads. The kernel reads ahead for one who asks for more at once whatever its setting.
const PIECE: usize = 128 << 10;
/// Each way.
const DELAY: Duration = Duration::from_millis(5);
const FIGURE: &str = "read_10ms_rtt_mb_s";

pub(super) fn measure(node: &Node, site: &Site, run: usize, samples: &mut Samples) {
    site.put("datasets/long", &vec![run as u8; LENGTH]);
    site.delay(DELAY);
    // In turn, so that neither has always the colder server.
    if run.is_multiple_of(2) {
        samples.add(FIGURE, Whose::Ours, ours(node, site));
        samples.add(FIGURE, Whose::Peer(PEER), plain(site));
    } else {
        samples.add(FIGURE, Whose::Peer(PEER), plain(site));
        samples.add(FIGURE, Whose::Ours, ours(node, site));
    }
    site.heal();
    site.put("datasets/long", b"");
}

fn ours(node: &Node, site: &Site) -> f64 {
    let agent = Agent::start(node, &objects(&[site]));
    let volume = volume(node, "reader", "datasets", true);
    publish(&agent, &volume);
    let speed = read(&volume.target.join("long"));
    insist(&agent, "unpublish", || agent.csi().unpublish(&volume.target));
    end(agent);
    speed
}

fn plain(site: &Site) -> f64 {
    let at = Path::new("/srv/plain");
    plain_mount(site, "datasets", at, "ro");
    let speed = read(&at.join("long"));
    plain_unmount(at);
    speed
}

/// MB a second.
#[track_caller]
fn read(path: &Path) -> f64 {
    let mut buffer = vec![0; PIECE];
    let began = now();
    let mut file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let mut length = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) => panic!("read {}: {error}", path.display()),
        }
    }
    let took = began.elapsed().as_secs_f64();
    assert_eq!(length, LENGTH, "{} is not whole", path.display());
    length as f64 / 1e6 / took
}
