//! How full a file system is, as its server says.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: Amount,
    pub files: Amount,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub total: u64,
    pub used: u64,
    /// To who has no privilege on the server: less than what is not used, where some is kept back.
    pub available: u64,
}
