//! `top`: a pool and its volumes, live. What is shown is the difference of two looks at what the daemon counts
//! anyway; `view` works it out, `screen` draws it on a terminal.

mod screen;
mod view;

use std::io::{IsTerminal, stdout};
use std::time::Instant;

use tokio::time::sleep_until;

use super::{Context, daemon_of, unexpected};
use crate::activity::Activity;
use crate::cli::TopArgs;
use crate::output::{Output, write_out};
use crate::pool_dir::PoolDir;
use crate::protocol::{Call, CallError, CallErrorKind, Reply};
use screen::{Key, Screen};
use view::{Sort, View};

/// What the daemon had counted at a moment.
struct Look {
    at: Instant,
    activity: Activity,
}

pub(super) async fn top(context: &Context, args: &TopArgs) -> Result<(), CallError> {
    let dir = PoolDir::open(&args.pool)?;
    let mut before = look(&dir).await?;
    let is_live = !context.output.json && !args.once && stdout().is_terminal();
    let mut display = Display {
        screen: is_live.then(Screen::enter).transpose()?,
        sort: Sort::Requests,
        output: context.output,
    };
    let mut view = View::between(&before, &before);
    if is_live {
        display.show(&mut view)?;
    }
    loop {
        let next = tokio::time::Instant::from(before.at + args.interval);
        let mut interrupt = context.interrupt.clone();
        loop {
            let key = tokio::select! {
                key = display.key() => key,
                () = sleep_until(next) => break,
                () = interrupt.wait() => return Ok(()),
            };
            match key {
                Key::Quit => return Ok(()),
                Key::Sort(sort) => display.sort = sort,
                Key::Other => {}
            }
            display.show(&mut view)?;
        }
        let now = look(&dir).await?;
        view = View::between(&before, &now);
        display.show(&mut view)?;
        if args.once {
            return Ok(());
        }
        before = now;
    }
}

/// Through a connection of its own, so that it goes on with the next daemon.
async fn look(dir: &PoolDir) -> Result<Look, CallError> {
    let mut client = daemon_of(dir, "only a daemon counts requests").await?;
    match client.call(&Call::Activity, &|_| {}).await? {
        Reply::Activity(activity) => Ok(Look {
            at: Instant::now(),
            activity,
        }),
        other => Err(unexpected(&other)),
    }
}

/// Where it is shown.
struct Display {
    /// A terminal; without one every view is printed after the other.
    screen: Option<Screen>,
    sort: Sort,
    output: Output,
}

impl Display {
    fn show(&mut self, view: &mut View) -> Result<(), CallError> {
        view.sort(self.sort);
        if let Some(screen) = &mut self.screen {
            return screen.draw(&view.to_text(), self.sort);
        }
        if !self.output.json {
            return write_out(format!("{}\n", view.to_text()).as_bytes());
        }
        // One line a view, for programs that read one after the other.
        let mut line = serde_json::to_vec(view)
            .map_err(|cause| CallError::new(CallErrorKind::Other, cause.to_string()))?;
        line.push(b'\n');
        write_out(&line)
    }

    async fn key(&mut self) -> Key {
        match &mut self.screen {
            Some(screen) => screen.key().await,
            None => std::future::pending().await,
        }
    }
}
