//! The node's agent: owns tunnels and NFS mounts, publishes them to pods, and keeps them serving.

pub mod api;
pub mod app;
mod config;
mod csi;
pub mod hands;
pub mod host;
mod kube;
mod paths;
mod probe;
mod reconcile;
mod report;

pub use reconcile::chain;
