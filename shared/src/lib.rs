//! What moorline knows without touching anything: the objects people write, the plan that follows from them,
//! and the report that comes back. No I/O, no clock, no randomness, no runtime.

pub mod key;
