//! The exit codes, all of them.

use std::process::ExitCode;

use moorline_agent::app::AppError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Success,
    /// Something failed that may go better the next time.
    Failed,
    /// The command line can't be read.
    Usage,
    /// What was given can't be used: a directory or file that is not as it must be.
    BadInput,
    /// The host lacks something, or does not let us have it.
    Host,
    /// No agent answers on this node.
    NoAgent,
}

impl Exit {
    pub(crate) fn of(error: &AppError) -> Self {
        match error {
            AppError::Config(..) => Self::BadInput,
            AppError::Lock(..) | AppError::Prepare(_) | AppError::Listen(..) | AppError::Health(_) => Self::Host,
            AppError::Signals(_) | AppError::Loop | AppError::Serve(_) | AppError::Sockets => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::BadInput => 3,
            Exit::Host => 4,
            Exit::NoAgent => 5,
        })
    }
}
