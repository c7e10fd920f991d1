//! `moorline events`.

use std::io::{self, IsTerminal};

use crossterm::style::{StyledContent, Stylize};
use moorline_agent::api::{self, AskError};
use moorline_shared::happening::{Gravity, Record};

use crate::cli::Events;
use crate::exit::Exit;
use crate::output::{self, Failure, ask, ask_until_there, print};

pub(crate) fn run(events: &Events) -> Exit {
    output::run(tell(events))
}

async fn tell(events: &Events) -> Result<(), Failure> {
    let mut records = ask(api::events(&events.socket, events.follow)).await?;
    let mut expected = 1;
    loop {
        match records.next().await {
            Ok(Some(record)) => {
                if record.sequence > expected && expected > 1 {
                    eprintln!("moorline: {} events came faster than they were read", record.sequence - expected);
                }
                expected = record.sequence + 1;
                print(&if events.json { serde_json::to_string(&record)? } else { line(&record) })?;
            }
            // The next agent counts anew.
            Ok(None) | Err(AskError::Ended(_)) if events.follow => {
                eprintln!("moorline: the agent has ended: it was stopped, or is being upgraded; waiting for the next");
                records = ask_until_there(|| api::events(&events.socket, true)).await?;
                expected = 1;
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn line(record: &Record) -> String {
    let kind = format!("{:<16}", format!("{:?}", record.kind));
    format!("{}  {} {}", record.at, coloured(kind, record.gravity), record.message)
}

fn coloured(text: String, gravity: Gravity) -> StyledContent<String> {
    let plain = text.stylize();
    match gravity {
        _ if !io::stdout().is_terminal() => plain,
        Gravity::Info => plain,
        Gravity::Warning => plain.yellow(),
        Gravity::Error => plain.red(),
    }
}
