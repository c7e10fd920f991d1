//! What concerns the cluster as a whole, and no node: it needs no privilege anywhere.

mod agents;
pub mod controller;
pub mod convert;
pub mod crds;
mod csi;
mod leases;
mod provision;
mod provisioner;
mod sight;
mod status;
pub mod uninstall;
