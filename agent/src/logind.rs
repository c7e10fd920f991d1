//! What the node's login manager says: that the node is about to shut down. It waits for whoever holds a lock.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use zbus::proxy::{CacheProperties, SignalStream};
use zbus::{Connection, Proxy, connection, zvariant};

use crate::paths::from_agent;
use crate::reconcile::{Event, chain};

const BUS: &str = "/run/dbus/system_bus_socket";
/// Until the bus, or who should be on it, is asked again.
const PAUSE: Duration = Duration::from_secs(10);

/// Tells the loop when the node begins to shut down, and when it does not after all. Ends with the loop.
pub(crate) async fn watch(events: mpsc::Sender<Event>) {
    let mut said = false;
    while !events.is_closed() {
        match follow(&events, &mut said).await {
            Ok(()) => warn!("logind has left the bus; looking for it again"),
            Err(error) if !said => {
                warn!(
                    "no logind at {BUS}: {}; a shutdown of the node is not recognised, and what pods leave unwritten then is lost",
                    chain(&error)
                );
                said = true;
            }
            Err(error) => debug!("still no logind: {}", chain(&error)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(events: &mpsc::Sender<Event>, said: &mut bool) -> zbus::Result<()> {
    let address = format!("unix:path={}", from_agent(Path::new(BUS)).display());
    let bus = connection::Builder::address(address.as_str())?.build().await?;
    let manager = manager(&bus).await?;
    // Listened to before the lock is taken: with a lock and deaf we would hold the node up for nothing.
    let mut signals = manager.receive_signal("PrepareForShutdown").await?;
    loop {
        let lock: zvariant::OwnedFd =
            manager.call("Inhibit", &("shutdown", "moorline", "unmount remote storage", "delay")).await?;
        let delay = delay(&manager).await?;
        info!("logind tells when the node shuts down, and waits {delay:?} for us");
        *said = false;
        if !next(&mut signals, true).await? {
            return Ok(());
        }
        // It may have been changed since, by kubelet for one.
        let within = self::delay(&manager).await.unwrap_or(delay);
        let lock = OwnedFd::from(lock);
        if events.send(Event::ShuttingDown { within, lock }).await.is_err() || !next(&mut signals, false).await? {
            return Ok(());
        }
        if events.send(Event::GoesOn).await.is_err() {
            return Ok(());
        }
    }
}

async fn manager(bus: &Connection) -> zbus::Result<Proxy<'static>> {
    zbus::proxy::Builder::new(bus)
        .destination("org.freedesktop.login1")?
        .path("/org/freedesktop/login1")?
        .interface("org.freedesktop.login1.Manager")?
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

async fn delay(manager: &Proxy<'_>) -> zbus::Result<Duration> {
    manager.get_property("InhibitDelayMaxUSec").await.map(Duration::from_micros)
}

/// Waits for a signal that says so; false if the bus has gone.
async fn next(signals: &mut SignalStream<'_>, wanted: bool) -> zbus::Result<bool> {
    while let Some(signal) = signals.next().await {
        if signal.body().deserialize::<bool>()? == wanted {
            return Ok(true);
        }
    }
    Ok(false)
}
