//! What concerns the cluster as a whole, and no node: it needs no privilege anywhere.

pub mod crds;
