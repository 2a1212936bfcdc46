//! Whether this machine can have ublk devices, and what it lacks if not.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

use crate::deadline::{COMMAND_LIMIT, within};
use crate::kernel::{CONTROL_DEVICE, Control, Features};

/// What stands in the way of ublk devices, and what brings it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}: {remedy}")]
pub struct Missing {
    /// The missing piece.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Missing {
    Missing {
        what: what.into(),
        remedy: remedy.into(),
    }
}

/// Asks the driver what it can do, never the kernel for its version: distributions backport.
///
/// Blocks for as long as the driver takes, at most half a minute.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), Missing> {
    check_rings(Path::new("/proc/sys/kernel/io_uring_disabled"))?;
    check_control_device(Path::new(CONTROL_DEVICE))?;
    let features =
        within(COMMAND_LIMIT, "asking for features", Control::features).map_err(|error| {
            let remedy = error.cause().map_or(REBOOT, remedy);
            missing(error.to_string(), remedy)
        })?;
    check_features(features)?;
    check_permission()
}

const REBOOT: &str = "see the kernel's log (dmesg); a driver that hangs needs a reboot";

/// What to do when a call of this process failed.
fn remedy(cause: &io::Error) -> &'static str {
    match Errno::from_io_error(cause) {
        Some(Errno::MFILE) => "raise the daemon's limit of open files (ulimit -n, LimitNOFILE=)",
        Some(Errno::AGAIN) => "raise the daemon's limit of threads (ulimit -u, TasksMax=)",
        _ => REBOOT,
    }
}

/// The kernel's switch for io_uring: 0 is on, 1 only for a group, 2 off.
fn check_rings(switch: &Path) -> Result<(), Missing> {
    let value = fs::read_to_string(switch).unwrap_or_default();
    if value.trim() == "2" {
        return Err(missing(
            "io_uring is switched off",
            "sysctl kernel.io_uring_disabled=0",
        ));
    }
    Ok(())
}

fn check_control_device(control: &Path) -> Result<(), Missing> {
    match File::options().read(true).write(true).open(control) {
        Ok(_) => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let release = rustix::system::uname();
            let release = release.release().to_string_lossy();
            let modules = Path::new("/lib/modules").join(&*release);
            Err(no_driver(&release, has_module(&modules)))
        }
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => Err(missing(
            format!("{} may not be opened", control.display()),
            "run as root, with CAP_SYS_ADMIN",
        )),
        Err(cause) => Err(missing(
            format!("{}: {cause}", control.display()),
            remedy(&cause),
        )),
    }
}

fn no_driver(release: &str, has_module: bool) -> Missing {
    if has_module {
        return missing(
            "the ublk driver is not loaded",
            "modprobe ublk_drv (for every boot: echo ublk_drv >/etc/modules-load.d/ublk.conf)",
        );
    }
    missing(
        format!("kernel {release} has no ublk driver (CONFIG_BLK_DEV_UBLK, module ublk_drv)"),
        format!(
            "a kernel with it, 6.1 or newer: on Debian 12 the package linux-image-6.12-amd64, \
             on Ubuntu linux-modules-extra-{release}"
        ),
    )
}

/// Whether the kernel's modules, in this directory, include the driver.
fn has_module(modules: &Path) -> bool {
    let lists = |file: &str| {
        fs::read_to_string(modules.join(file)).is_ok_and(|text| text.contains("/ublk_drv.ko"))
    };
    lists("modules.dep") || lists("modules.builtin")
}

/// The driver tells anybody what it can do.
fn check_permission() -> Result<(), Missing> {
    let allowed =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if allowed {
        return Ok(());
    }
    Err(missing(
        "making ublk devices is not permitted",
        "run as root, with CAP_SYS_ADMIN",
    ))
}

/// What every device here is made with.
fn check_features(features: Features) -> Result<(), Missing> {
    if features.can_recover() {
        return Ok(());
    }
    Err(missing(
        format!("the ublk driver is too old (features {features})"),
        "a newer kernel: it lacks USER_RECOVERY or USER_RECOVERY_REISSUE, which keep devices alive when their daemon dies",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_not_loaded_or_not_there() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!has_module(directory.path()));
        fs::write(
            directory.path().join("modules.dep"),
            "kernel/drivers/block/ublk_drv.ko.xz:\n",
        )
        .unwrap();
        assert!(has_module(directory.path()));
        assert!(
            no_driver("6.12", true)
                .remedy
                .starts_with("modprobe ublk_drv")
        );
        assert!(
            no_driver("6.1.0-9", false)
                .to_string()
                .contains("linux-image-6.12-amd64")
        );
    }

    #[test]
    fn features_are_asked_for_not_versions() {
        // What Linux 6.12 answers.
        assert!(check_features(Features(0x1fe)).is_ok());
        for without in [1 << 3, 1 << 4] {
            assert!(check_features(Features(0x1fe & !without)).is_err());
        }
    }

    #[test]
    fn rings_can_be_switched_off() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().join("switch");
        assert!(check_rings(&switch).is_ok());
        for (value, is_fine) in [("0\n", true), ("1\n", true), ("2\n", false)] {
            fs::write(&switch, value).unwrap();
            assert_eq!(check_rings(&switch).is_ok(), is_fine);
        }
    }

    #[test]
    fn a_control_device_that_cannot_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        assert!(check_control_device(&directory.path().join("none")).is_err());
        assert!(check_control_device(directory.path()).is_err());
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_control_device(&file).is_ok());
    }
}
