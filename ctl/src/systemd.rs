//! What systemd's own tools tell: whether it starts a pool's daemon, and whether the machine is being
//! shut down.

use std::process::{Command, Output, Stdio};

use crate::pool_dir::PoolDir;

/// The unit that serves a pool; its instance is the pool's directory.
const UNIT_TEMPLATE: &str = "thinpoold@.service";

/// What is to be done for the pool's daemon to be started with the machine; nothing when it is.
pub fn lacks_at_boot(dir: &PoolDir) -> Option<String> {
    let place = dir.path.display();
    if !is_here() {
        return Some(format!(
            "systemd does not run here: see to it that 'thinpoold {place}' is started with the machine"
        ));
    }
    let template = format!("--template={UNIT_TEMPLATE}");
    let escaped = Command::new("systemd-escape")
        .args(["--path", &template])
        .arg(&dir.path)
        .output();
    let unit = match escaped {
        Ok(output) if output.status.success() => text_of(&output),
        _ => {
            return Some(format!(
                "there is no unit for {place}: systemd-escape fails"
            ));
        }
    };
    match systemctl(&["is-enabled", &unit]) {
        Some(output) if output.status.success() => None,
        _ => Some(format!(
            "nothing starts the pool's daemon with the machine yet: 'systemctl enable {unit}' does"
        )),
    }
}

/// Whether the machine is being shut down.
pub fn machine_ends() -> bool {
    let state = || Some(text_of(&systemctl(&["is-system-running"])?));
    is_here() && state().as_deref() == Some("stopping")
}

fn is_here() -> bool {
    sd_notify::booted().unwrap_or(false)
}

fn systemctl(arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null()).output().ok()
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
