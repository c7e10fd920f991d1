//! The node: the scenario's own machine, with a name, a WireGuard key and links to storage sites.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::command::{run, run_with_input, sh};
use crate::wire::Wire;

/// The node's address inside the tunnels of gateway `gw`.
pub const INNER: &str = "10.90.0.2";
/// And inside those of gateway `solo`.
pub const SOLO_INNER: &str = "10.90.0.3";

#[derive(Debug)]
pub struct Node {
    name: String,
    key: Key,
    solo_key: Key,
    wire: Rc<Wire>,
    links: Cell<u8>,
}

/// A WireGuard key pair, as `wg` prints it.
#[derive(Debug, Clone)]
pub struct Key {
    pub private: String,
    pub public: String,
}

impl Key {
    #[track_caller]
    pub fn new() -> Self {
        let private = run("wg", ["genkey"]).trim().to_owned();
        let public = run_with_input("wg", ["pubkey"], &private).trim().to_owned();
        Self { private, public }
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    #[track_caller]
    pub fn new(name: &str) -> Self {
        sh(&format!("hostname {name}"));
        Self {
            name: name.into(),
            key: Key::new(),
            solo_key: Key::new(),
            wire: Rc::new(Wire::new()),
            links: Cell::new(0),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its key for gateway `gw`.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Each tunnel to a site needs a key of its own: WireGuard sends what is for a key to whoever used it last.
    pub fn solo_key(&self) -> &Key {
        &self.solo_key
    }

    /// What leads to its sites.
    pub fn wire(&self) -> Rc<Wire> {
        self.wire.clone()
    }

    /// The number of the next site: its addresses follow from it.
    pub fn next_link(&self) -> u8 {
        self.links.replace(self.links.get() + 1)
    }

    /// The folder of kubelet's volume `volume` of a pod, whose `mount` is what kubelet asks a CSI driver to publish.
    #[track_caller]
    pub fn volume(&self, pod_uid: &str, volume: &str) -> PathBuf {
        let folder = Path::new("/var/lib/kubelet/pods").join(pod_uid).join("volumes/kubernetes.io~csi").join(volume);
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("make {}: {error}", folder.display()));
        folder.join("mount")
    }
}
