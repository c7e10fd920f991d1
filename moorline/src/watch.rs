//! `moorline status --watch`: the table, live.

use std::io::{self, IsTerminal};

use moorline_agent::api::{self, AskError};
use moorline_shared::report::Report;

use crate::cli::Status;
use crate::exit::Exit;
use crate::output::{self, Failure, ask, ask_until_there, print};
use crate::screen::Screen;
use crate::status::show;

pub(crate) fn run(status: &Status) -> Exit {
    output::run(follow(status))
}

/// An agent that ends is waited for: its restart is nothing that mounts notice, and who watches wants to see the next.
async fn follow(status: &Status) -> Result<(), Failure> {
    let mut reports = ask(api::watch(&status.socket)).await?;
    let mut view = View::open(status.json)?;
    loop {
        match reports.next().await {
            Ok(Some(report)) => view.show(report)?,
            Ok(None) | Err(AskError::Ended(_)) => {
                view.say_that_it_is_away()?;
                reports = ask_until_there(|| api::watch(&status.socket)).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

enum View {
    /// Drawn anew in place.
    Screen(Screen, Option<Report>),
    /// Nobody can draw there: a block, or a line of JSON, for each change.
    Stream { json: bool, shown: Option<Report> },
}

impl View {
    fn open(json: bool) -> Result<Self, Failure> {
        if !json && io::stdout().is_terminal() {
            Ok(Self::Screen(Screen::open()?, None))
        } else {
            Ok(Self::Stream { json, shown: None })
        }
    }

    fn show(&mut self, report: Report) -> Result<(), Failure> {
        match self {
            Self::Screen(screen, last) => {
                screen.draw(&show(&report))?;
                *last = Some(report);
            }
            // Figures change all the time. On a screen that is life; in a stream it is noise.
            Self::Stream { shown: Some(shown), .. } if report.differs_only_in_figures(shown) => {}
            Self::Stream { json, shown } => {
                print(&if *json { serde_json::to_string(&report)? } else { format!("{}\n\n", show(&report)) })?;
                *shown = Some(report);
            }
        }
        Ok(())
    }

    fn say_that_it_is_away(&mut self) -> Result<(), Failure> {
        const AWAY: &str = "the agent has ended: it was stopped, or is being upgraded; waiting for the next";
        match self {
            Self::Screen(screen, last) => {
                let before = last.as_ref().map(show).unwrap_or_default();
                screen.draw(&format!("! {AWAY}\n\n{before}"))?;
            }
            Self::Stream { .. } => eprintln!("moorline: {AWAY}"),
        }
        Ok(())
    }
}
