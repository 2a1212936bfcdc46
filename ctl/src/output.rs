//! What a command prints: JSON or text on standard output, progress on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::protocol::{CallError, CallErrorKind, Progress};
use crate::service::ProgressSink;

/// Standard output, in one of its two forms.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
}

impl Output {
    /// Prints a value as JSON if that was asked for; else what `text` makes of it, if anything.
    ///
    /// # Errors
    /// `OutputClosed`, or what stopped the output.
    pub fn print<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CallError> {
        let text = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|cause| CallError::new(CallErrorKind::Other, cause.to_string()))?
        } else {
            text(value)
        };
        if text.is_empty() {
            return Ok(());
        }
        let newline = if text.ends_with('\n') { "" } else { "\n" };
        write_out(format!("{text}{newline}").as_bytes())
    }

    /// Prints a value as JSON if that was asked for, and nothing else.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub fn print_quietly<T: Serialize>(self, value: &T) -> Result<(), CallError> {
        self.print(value, |_| String::new())
    }

    /// Tells people what is not as they may expect; in JSON it stands in the answer.
    pub fn note(self, notes: &[String]) {
        if !self.json {
            notes.iter().for_each(|note| eprintln!("thinctl: {note}"));
        }
    }

    /// A place for progress: a bar if somebody watches.
    pub fn progress(self, what: &'static str) -> ProgressView {
        ProgressView::new(!self.json && io::stderr().is_terminal(), what)
    }
}

/// Writes to standard output.
///
/// # Errors
/// `OutputClosed` when whoever reads it has gone, else what stopped it.
pub fn write_out(bytes: &[u8]) -> Result<(), CallError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|cause| output_error(&cause))
}

/// An error of standard output.
pub fn output_error(cause: &io::Error) -> CallError {
    match cause.kind() {
        io::ErrorKind::BrokenPipe => CallError::new(CallErrorKind::OutputClosed, "output closed"),
        _ => CallError::io("standard output", cause),
    }
}

/// A progress bar on standard error; nothing unless somebody watches.
pub struct ProgressView {
    bar: ProgressBar,
}

impl ProgressView {
    fn new(visible: bool, what: &'static str) -> Self {
        let bar = if visible {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if visible {
            // The template is constant; should it ever be refused, the bar looks plainer.
            if let Ok(style) = ProgressStyle::with_template("{prefix} {spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(what);
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        ProgressView { bar }
    }

    /// Shows how far it has come.
    pub fn tell(&self, at: &Progress) {
        tell(&self.bar, at);
    }

    /// Something that can be told from anywhere.
    pub fn sink(&self) -> ProgressSink {
        let bar = self.bar.clone();
        Arc::new(move |at: Progress| tell(&bar, &at))
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn tell(bar: &ProgressBar, at: &Progress) {
    if bar.is_hidden() {
        return;
    }
    let size = |count: u64| {
        if at.unit == "bytes" {
            crate::size::format_size(count)
        } else {
            format!("{count} {}", at.unit)
        }
    };
    let message = match at.total {
        0 => size(at.done),
        total => {
            let percent = u128::from(at.done) * 100 / u128::from(total);
            format!(
                "{} of {} ({}%)",
                size(at.done),
                size(total),
                percent.min(100)
            )
        }
    };
    bar.set_message(message);
}
