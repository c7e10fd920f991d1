//! The kernel, in small safe functions: every unsafe block and raw system call of the project. No policy, and
//! nothing that knows what a share is.

pub mod mapping;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod tun;
