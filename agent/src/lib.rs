//! The node's agent: owns tunnels and NFS mounts, publishes them to pods, and keeps them serving.

pub mod api;
pub mod app;
mod chronicle;
mod config;
mod csi;
mod door;
pub mod hands;
pub mod host;
mod http;
mod identity;
pub mod killpoint;
mod kube;
mod logind;
mod metrics;
mod paths;
mod probe;
mod reconcile;
mod report;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod table;
mod telemetry;
mod vitals;
mod window;

pub use reconcile::chain;
