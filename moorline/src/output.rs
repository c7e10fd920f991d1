//! What the commands that ask an agent have in common: patience, standard output, and how they end.

use std::future::Future;
use std::io::{self, Write};
use std::time::Duration;

use moorline_agent::api::AskError;
use moorline_control::convert::ConvertError;
use moorline_control::crds::WriteError;
use moorline_control::uninstall::UninstallError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::exit::Exit;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// From one try to reach an agent that is being restarted to the next.
const RETRY: Duration = Duration::from_secs(1);

/// Runs a command to its end, or until somebody has seen enough of it (Ctrl-C, SIGTERM).
pub(crate) fn run(command: impl Future<Output = Result<(), Failure>>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("moorline: start the runtime: {error}");
            return Exit::Failed;
        }
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = command => outcome,
            outcome = interrupted() => outcome.map_err(Failure::Signals),
        }
    });
    match outcome {
        // A reader that has seen enough, such as `head`, is no failure.
        Ok(()) => Exit::Success,
        Err(Failure::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
        Err(failure) => {
            eprintln!("moorline: {}", moorline_agent::chain(&failure));
            match failure {
                Failure::Late | Failure::Ask(AskError::Connect { .. } | AskError::Ended(_)) => Exit::NoAgent,
                Failure::Convert(_) | Failure::Read(..) => Exit::BadInput,
                Failure::Ask(_)
                | Failure::Write(_)
                | Failure::Json(_)
                | Failure::Crds(_)
                | Failure::Uninstall(_)
                | Failure::Signals(_) => Exit::Failed,
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the agent did not answer within {PATIENCE:?}: is it stopped, or its node overloaded?")]
    Late,
    #[error("write to standard output")]
    Write(#[from] io::Error),
    #[error("write as JSON")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Crds(#[from] WriteError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error(transparent)]
    Uninstall(#[from] UninstallError),
    #[error("read {0}")]
    Read(String, #[source] io::Error),
    #[error("wait for signals")]
    Signals(#[source] io::Error),
}

/// An answer that must begin in time.
pub(crate) async fn ask<T>(question: impl Future<Output = Result<T, AskError>>) -> Result<T, Failure> {
    Ok(timeout(PATIENCE, question).await.map_err(|_| Failure::Late)??)
}

/// Asks again and again, until an agent is there: one was, and is restarted.
pub(crate) async fn ask_until_there<T, F>(mut question: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, AskError>>,
{
    loop {
        match ask(question()).await {
            Err(Failure::Ask(AskError::Connect { .. } | AskError::Ended(_) | AskError::Http(_)) | Failure::Late) => {
                tokio::time::sleep(RETRY).await;
            }
            answer => return answer,
        }
    }
}

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.trim_end().as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

pub(crate) async fn interrupted() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
