//! The ways of carrying packets. What is typed by a WireGuard library stays below here.

pub(crate) mod simple;
