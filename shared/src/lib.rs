//! What moorline knows without touching anything: the objects people write, the plan that follows from them,
//! and the report that comes back. No I/O, no clock, no randomness, no runtime.

pub mod client;
pub mod cluster;
pub mod errand;
pub mod gateway;
pub mod happening;
pub mod health;
pub mod id;
pub mod key;
pub mod mount_defaults;
pub mod name;
pub mod node_mount;
pub mod objects;
pub mod observed;
pub mod plan;
pub mod publication;
pub mod report;
#[cfg(feature = "schema")]
pub mod schema;
pub mod selector;
pub mod share;
pub mod status;
pub mod sub_dir;
pub mod usage;
pub mod way;
pub mod wishes;
pub mod yaml;
