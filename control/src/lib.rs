//! What concerns the cluster as a whole, and no node: it needs no privilege anywhere.

pub mod controller;
pub mod convert;
pub mod crds;
mod leases;
mod status;
pub mod uninstall;
