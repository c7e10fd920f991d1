//! Planner, loop and executors as they are, over a machine, servers, a network and a clock that are made up, all from one
//! seed. docs/SIMULATOR.md says what is modelled.

mod apps;
mod boots;
mod chaos;
mod hands;
mod kubelet;
mod life;
mod nodes;
mod scene;
mod storage;
pub mod sweep;
mod table;
mod truth;
mod ways;
mod world;

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

use fastrand::Rng;
use moorline_shared::gateway::Path;
use moorline_shared::share::Share;
use tokio::runtime::Builder;

use scene::Scene;
use world::{Shared, World};

/// How one seed ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The invariant that broke, and how; none if all held.
    pub broken: Option<String>,
    /// What happened, if it was asked for.
    pub story: Vec<String>,
}

thread_local! {
    /// The panic that ended something in the run of this thread.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static RUNS: RefCell<bool> = const { RefCell::new(false) };
}

/// A panic in a task of the agent's is caught by it, and would be nothing but a line in its log.
fn watch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |bug| {
            if RUNS.with(|runs| *runs.borrow()) {
                PANIC.with(|panic| panic.borrow_mut().get_or_insert(bug.to_string()).len());
            } else {
                before(bug);
            }
        }));
    });
}

fn has_panicked() -> bool {
    PANIC.with(|panic| panic.borrow().is_some())
}

/// Lives through one seed: always in the same way.
pub fn run(seed: u64, tell: bool) -> Run {
    watch_panics();
    RUNS.set(true);
    PANIC.take();
    let mut rng = Rng::with_seed(seed);
    let mut scene = Scene::draw(&mut rng);
    // With numbers of their own, so that a seed without them is what it was before there were any.
    scene.draw_node_mounts(&mut Rng::with_seed(!seed));
    scene.draw_scopes(&mut Rng::with_seed(seed.rotate_left(32)));
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing");
    let (broken, story) = runtime.block_on(async {
        let world = Shared::new(World::new(scene, rng, tell));
        world.lock().tell_scene();
        chaos::unfold(&world).await;
        let mut world = world.lock();
        world.over = true;
        (world.broken.first().cloned(), world.take_story())
    });
    RUNS.set(false);
    let panic = PANIC.take().map(|panic| format!("nothing panics: {panic}"));
    Run { broken: broken.or(panic), story }
}

impl World {
    fn tell_scene(&mut self) {
        let scene = self.scene.clone();
        for gateway in &scene.gateways {
            let targets: Vec<String> =
                gateway.targets.iter().map(|target| format!("{} at {}", target.name, target.server)).collect();
            let path = match &gateway.path {
                Path::Direct => "direct",
                Path::Tunnel(tunnel) if tunnel.on_host => "tunnel, scope host",
                Path::Tunnel(_) => "tunnel",
            };
            let (name, shared) = (&gateway.name, gateway.shared_data);
            self.say(|| format!("Gateway {name}: {path}, sharedData {shared}, targets {}", targets.join(", ")));
        }
        for share in &scene.shares {
            let Share { name, gateway, export, access, policy, node_mount, .. } = share;
            let place = node_mount.as_ref().map(|place| format!(", on the node at {place}")).unwrap_or_default();
            self.say(|| format!("Share {name}: {export} of {gateway}, {access}, {policy}{place}"));
        }
        for (index, slot) in scene.slots.iter().enumerate() {
            let access = if slot.read_only { "reads" } else { "writes" };
            let part = slot.part.map(|part| format!("{part} of ")).unwrap_or_default();
            self.say(|| format!("slot {index}: {access} {part}{}", scene.shares[slot.share].name));
        }
        let Scene { beneath, shuts_down, api_server, sheltered, calm, keeps_run, .. } = scene;
        self.say(|| {
            format!("kernel: mounts beneath {beneath}, shuts down {shuts_down}; files outlive a boot {keeps_run}")
        });
        self.say(|| format!("API server {api_server}, Gateway under shelter {sheltered:?}, calm {calm}"));
        let Scene { failing, hanging, killing, losing, .. } = scene;
        self.say(|| format!("of a thousand fail {failing}, hang {hanging}, kill {killing}, are lost {losing}"));
    }
}

#[cfg(test)]
mod tests;
