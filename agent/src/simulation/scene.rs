//! What a seed draws before anything happens: the objects, the servers, the kernel, and how bad the times are.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use fastrand::Rng;
use moorline_shared::gateway::{Gateway, KeySource, Path, Peer, Target, TunnelSpec};
use moorline_shared::key::{PrivateKey, PublicKey};
use moorline_shared::mount_defaults::MountDefaults;
use moorline_shared::name::Name;
use moorline_shared::share::{Access, MountOptions, Namespaces, Policy, Share};
use moorline_shared::yaml::{Located, Object};

/// A key of nobody's.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub gateways: Vec<Gateway>,
    /// Whether the targets of each gateway really hold the same data; what the object says is true, and may come late.
    pub one_store: Vec<bool>,
    pub shares: Vec<Share>,
    pub slots: Vec<Slot>,
    /// The kernel mounts beneath (Linux 6.5), and ends superblocks for good (6.4).
    pub beneath: bool,
    pub shuts_down: bool,
    /// Somebody has put a disk where files should end with the boot.
    pub keeps_run: bool,
    /// The agent hears of pods from the API server; else it is told of deletions only.
    pub api_server: bool,
    /// What rests on this gateway no fault is aimed at: whatever happens elsewhere, its pods must not notice.
    pub sheltered: Option<usize>,
    /// What goes wrong is a server, a link or an export, and no more.
    pub calm: bool,
    /// Of so many thousand pieces of work one fails, hangs, or is cut short with its agent.
    pub failing: u32,
    pub hanging: u32,
    pub killing: u32,
    /// Probes that are lost.
    pub losing: u32,
    pub chaos: Duration,
}

/// A volume that a pod may want.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub share: usize,
    pub read_only: bool,
    pub namespace: &'static str,
    /// The directory of the share that is asked for.
    pub part: Option<&'static str>,
}

impl Scene {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let count = rng.usize(1..=3);
        let mut gateways = Vec::new();
        let mut one_store = Vec::new();
        let mut machine = 0;
        for index in 0..count {
            let direct = rng.u32(..3) == 0;
            let shared = rng.u32(..3) > 0;
            let targets = (0..rng.usize(1..=3)).map(|number| {
                machine += 1;
                target(number, machine, direct)
            });
            gateways.push(Gateway {
                name: name(&format!("gw{index}")),
                shared_data: shared && rng.u32(..8) > 0,
                path: if direct { Path::Direct } else { Path::Tunnel(tunnel()) },
                away_after: Duration::from_secs(4),
                targets: targets.collect(),
                mount_defaults: MountDefaults::default(),
            });
            one_store.push(shared);
        }
        let shares: Vec<Share> = (0..rng.usize(1..=4)).map(|index| share(rng, index, &gateways)).collect();
        let slots = (0..rng.usize(1..=8)).map(|_| {
            let share = rng.usize(..shares.len());
            let namespace = if rng.u32(..4) == 0 { "b" } else { "a" };
            let read_only = shares[share].access == Access::ReadOnly || rng.u32(..3) == 0;
            Slot { share, read_only, namespace, part: (rng.u32(..3) == 0).then_some("runs/one") }
        });
        let slots = slots.collect();
        let calm = rng.u32(..5) == 0;
        let rate = |rng: &mut Rng, most: u32| if calm { 0 } else { rng.u32(..=most) };
        let kernel = rng.u32(3..=5);
        Self {
            sheltered: (count > 1 && rng.bool()).then(|| rng.usize(..count)),
            calm,
            failing: rate(rng, 150),
            hanging: rate(rng, 60),
            killing: rate(rng, 30),
            losing: rate(rng, 60),
            beneath: kernel >= 5,
            shuts_down: kernel >= 4,
            api_server: rng.u32(..3) > 0,
            keeps_run: rng.bool(),
            chaos: Duration::from_secs(rng.u64(20..90)),
            gateways,
            one_store,
            shares,
            slots,
        }
    }

    /// In one seed of three Shares are asked for on the node itself.
    pub(super) fn draw_node_mounts(&mut self, rng: &mut Rng) {
        let some = rng.u32(..3) == 0;
        for share in self.shares.iter_mut().filter(|_| some && rng.u32(..3) > 0) {
            share.node_mount = Some(format!("/srv/{}", share.name).parse().expect("a place"));
        }
    }

    /// In one seed of three some tunnels are on the node's own network.
    pub(super) fn draw_scopes(&mut self, rng: &mut Rng) {
        let some = rng.u32(..3) == 0;
        for gateway in self.gateways.iter_mut().filter(|_| some && rng.u32(..3) > 0) {
            if let Path::Tunnel(tunnel) = &mut gateway.path {
                tunnel.on_host = true;
            }
        }
    }

    pub(super) fn has_ways(&self) -> bool {
        self.gateways.iter().any(|gateway| gateway.ways().next().is_some())
    }

    /// The files as they are when nobody has changed them.
    pub(super) fn files(&self) -> Vec<Located> {
        let gateways = self.gateways.iter().cloned().map(Object::Gateway);
        gateways.chain(self.shares.iter().cloned().map(Object::Share)).map(located).collect()
    }

    pub(super) fn gateway_of(&self, share: &Name) -> Option<usize> {
        let share = self.shares.iter().find(|known| known.name == *share)?;
        self.gateways.iter().position(|gateway| gateway.name == share.gateway)
    }

    pub(super) fn is_sheltered(&self, gateway: &Name) -> bool {
        self.sheltered.is_some_and(|index| self.gateways[index].name == *gateway)
    }
}

pub(super) fn located(object: Object) -> Located {
    Located { object, file: "objects.yaml".into(), line: Some(1) }
}

/// All names here are good ones.
pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(super) fn target(number: usize, machine: u8, direct: bool) -> Target {
    let public_key: PublicKey = KEY.parse().expect("a key");
    Target {
        name: name(["x", "y", "z"][number % 3]),
        server: IpAddr::V4(Ipv4Addr::new(10, 0, machine, 1)),
        peer: (!direct)
            .then(|| Peer { endpoint: SocketAddr::new(Ipv4Addr::new(192, 0, 2, machine).into(), 51820), public_key }),
    }
}

fn tunnel() -> TunnelSpec {
    TunnelSpec {
        address: Ipv4Addr::new(10, 99, 0, 2).into(),
        private_key: KeySource::Inline(PrivateKey::from([7; 32])),
        mtu: 1420,
        on_host: false,
    }
}

fn share(rng: &mut Rng, index: usize, gateways: &[Gateway]) -> Share {
    let policy = match rng.u32(..4) {
        0 => Policy::Soft,
        1 => Policy::Bounded { after: Duration::from_secs(rng.u64(5..20)) },
        _ => Policy::Hard,
    };
    let only = BTreeSet::from([name("a")]);
    Share {
        name: name(&format!("s{index}")),
        gateway: gateways[rng.usize(..gateways.len())].name.clone(),
        // Two shares may be of one export.
        export: format!("/export{}", index / 2),
        access: if rng.u32(..3) == 0 { Access::ReadOnly } else { Access::ReadWrite },
        policy,
        options: MountOptions { timeo: Some(50), ..MountOptions::default() },
        node_mount: None,
        node_selector: None,
        allow_delete: false,
        not_inline: false,
        namespaces: if rng.u32(..6) == 0 { Namespaces::Only(only) } else { Namespaces::All },
    }
}
