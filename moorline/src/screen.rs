//! A terminal's screen with one text on it that is drawn anew in place.

use std::io::{self, Write};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::terminal::{
    self, Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
};
use crossterm::{execute, queue};

/// Gives the terminal back as it was when it is dropped, with the last text left on it.
pub(crate) struct Screen {
    last: String,
}

impl Screen {
    pub(crate) fn open() -> io::Result<Self> {
        execute!(io::stdout(), EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(Self { last: String::new() })
    }

    pub(crate) fn draw(&mut self, text: &str) -> io::Result<()> {
        let height = terminal::size().map_or(usize::MAX, |(_, rows)| usize::from(rows).max(2));
        let mut out = io::stdout().lock();
        queue!(out, MoveTo(0, 0))?;
        for line in fit(text, height) {
            write!(out, "{line}")?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
            write!(out, "\r\n")?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        out.flush()?;
        text.clone_into(&mut self.last);
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = execute!(io::stdout(), EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = writeln!(io::stdout(), "{}", self.last.trim_end());
    }
}

/// What fits, the line below the last one included; of the rest, that it is there.
fn fit(text: &str, height: usize) -> Vec<String> {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    if lines.len() < height {
        return lines.into_iter().map(str::to_owned).collect();
    }
    let shown = height.saturating_sub(2);
    let more = format!("... {} more lines; a taller terminal shows them", lines.len() - shown);
    lines.into_iter().take(shown).map(str::to_owned).chain([more]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_announced() {
        assert_eq!(fit("a\nb\n", 3), ["a", "b"]);
        assert_eq!(fit("a\nb\nc", 3), ["a", "... 2 more lines; a taller terminal shows them"]);
    }
}
