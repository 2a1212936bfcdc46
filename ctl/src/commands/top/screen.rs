//! A terminal that shows one view after the other, and its keys. It is as it was before when this is dropped.

use std::io::{self, Write, stdout};
use std::thread;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, read};
use crossterm::queue;
use crossterm::style::Print;
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::view::Sort;
use crate::output::output_error;
use crate::protocol::CallError;

/// What a key means.
pub(super) enum Key {
    /// The end.
    Quit,
    /// Another order.
    Sort(Sort),
    /// Nothing; or the terminal has another size.
    Other,
}

/// A terminal that is ours.
pub(super) struct Screen {
    keys: UnboundedReceiver<Key>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// What stopped it.
    pub(super) fn enter() -> Result<Self, CallError> {
        let failed = |cause: io::Error| CallError::io("terminal", &cause);
        enable_raw_mode().map_err(failed)?;
        let (sender, keys) = unbounded_channel();
        // From here on dropping it gives the terminal back.
        let screen = Screen { keys };
        queue!(stdout(), EnterAlternateScreen, Hide).map_err(failed)?;
        // It waits in a read for ever, and ends with the process.
        thread::spawn(move || {
            while let Ok(event) = read() {
                if sender.send(meaning(&event)).is_err() {
                    return;
                }
            }
        });
        Ok(screen)
    }

    /// Shows a text, as much of it as there is room for, and which keys there are.
    ///
    /// # Errors
    /// When the terminal has gone.
    pub(super) fn draw(&mut self, text: &str, sort: Sort) -> Result<(), CallError> {
        let (width, height) = size().unwrap_or((80, 24));
        let mut out = stdout().lock();
        draw(&mut out, text, sort, (width.into(), height.into()))
            .and_then(|()| out.flush())
            .map_err(|cause| output_error(&cause))
    }

    /// The next key. Never, when the terminal has none.
    pub(super) async fn key(&mut self) -> Key {
        match self.keys.recv().await {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing any more.
        let _ = queue!(stdout(), Show, LeaveAlternateScreen).and_then(|()| stdout().flush());
        let _ = disable_raw_mode();
    }
}

fn draw(
    out: &mut impl Write,
    text: &str,
    sort: Sort,
    (width, height): (usize, usize),
) -> io::Result<()> {
    queue!(out, MoveTo(0, 0))?;
    let clipped = |line: &str| line.chars().take(width).collect::<String>();
    for line in text.lines().take(height.saturating_sub(1)) {
        queue!(out, Print(clipped(line)), Clear(ClearType::UntilNewLine))?;
        queue!(out, Print("\r\n"))?;
    }
    queue!(out, Clear(ClearType::FromCursorDown))?;
    let last = u16::try_from(height.saturating_sub(1)).unwrap_or(u16::MAX);
    queue!(out, MoveTo(0, last), Print(clipped(&keys_line(sort))))
}

fn keys_line(sort: Sort) -> String {
    let keys = [
        ('r', "requests", Sort::Requests),
        ('b', "bytes", Sort::Throughput),
        ('l', "latency", Sort::Latency),
        ('m', "mapped", Sort::Mapped),
        ('n', "name", Sort::Name),
    ];
    let mut line = "sort by:".to_owned();
    for (key, name, by) in keys {
        let (open, close) = if by == sort { ("[", "]") } else { (" ", " ") };
        line = format!("{line} {open}{key} {name}{close}");
    }
    line + "   q quit"
}

fn meaning(event: &Event) -> Key {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press,
        ..
    }) = event
    else {
        return Key::Other;
    };
    match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('r') => Key::Sort(Sort::Requests),
        KeyCode::Char('b') => Key::Sort(Sort::Throughput),
        KeyCode::Char('l') => Key::Sort(Sort::Latency),
        KeyCode::Char('m') => Key::Sort(Sort::Mapped),
        KeyCode::Char('n') => Key::Sort(Sort::Name),
        _ => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_clipped() {
        let mut out = Vec::new();
        draw(&mut out, "abcdef\nsecond\nthird\n", Sort::Name, (4, 3)).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("abcd") && !text.contains("abcde"), "{text:?}");
        assert!(text.contains("seco") && !text.contains("thir"), "{text:?}");
        assert!(text.ends_with("sort"), "{text:?}");
    }

    #[test]
    fn the_order_is_marked() {
        assert!(keys_line(Sort::Latency).contains("[l latency]"));
    }
}
