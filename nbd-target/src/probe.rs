//! Whether this machine's kernel can be an NBD client of ours, and what it lacks if not.

use std::fs;
use std::io;
use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities};

use crate::driver::Driver;
use crate::message::{ATTRIBUTE_MAX, Device};
use crate::record::block_device;

/// What stands in the way of NBD devices, and what brings it.
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
/// # Errors
/// The first thing that is missing.
pub fn probe() -> Result<(), Missing> {
    let driver = Driver::open().map_err(|cause| no_family(&cause))?;
    check_attributes(driver.family().attribute_max)?;
    check_permission()?;
    let devices = driver.devices().map_err(|cause| {
        missing(
            format!("the nbd driver does not tell its devices ({cause})"),
            "see the kernel's log (dmesg)",
        )
    })?;
    check_nodes(&devices, |device| block_device(device.index).exists())
}

fn no_family(cause: &io::Error) -> Missing {
    if cause.kind() != io::ErrorKind::NotFound {
        return missing(
            format!("generic netlink does not work ({cause})"),
            "a kernel with CONFIG_NET, and a sandbox that allows AF_NETLINK",
        );
    }
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let modules = Path::new("/lib/modules").join(&*release);
    no_driver(&release, has_module(&modules))
}

fn no_driver(release: &str, has_module: bool) -> Missing {
    if has_module {
        return missing(
            "the nbd driver is not loaded",
            "modprobe nbd (for every boot: echo nbd >/etc/modules-load.d/nbd.conf)",
        );
    }
    missing(
        format!("kernel {release} has no nbd driver (CONFIG_BLK_DEV_NBD, module nbd)"),
        format!(
            "a kernel with it: on Debian the package linux-image-amd64, on Ubuntu \
             linux-modules-extra-{release}"
        ),
    )
}

/// Whether the kernel's modules, in this directory, include the driver.
fn has_module(modules: &Path) -> bool {
    let lists = |file: &str| {
        fs::read_to_string(modules.join(file)).is_ok_and(|text| text.contains("/nbd.ko"))
    };
    lists("modules.dep") || lists("modules.builtin")
}

fn check_attributes(max: u32) -> Result<(), Missing> {
    if max >= ATTRIBUTE_MAX {
        return Ok(());
    }
    Err(missing(
        "the nbd driver is too old: its devices have no backend identifier, by which the next \
         daemon knows them",
        "a newer kernel, 5.14 or later",
    ))
}

fn check_permission() -> Result<(), Missing> {
    let allowed =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if allowed {
        return Ok(());
    }
    Err(missing(
        "making NBD devices is not permitted",
        "run as root, with CAP_SYS_ADMIN",
    ))
}

fn check_nodes(devices: &[Device], exists: impl Fn(&Device) -> bool) -> Result<(), Missing> {
    match devices.iter().find(|device| !exists(device)) {
        None => Ok(()),
        Some(device) => Err(missing(
            format!("{} is not there", block_device(device.index).display()),
            "a /dev of type devtmpfs (in a container: the machine's, bind-mounted)",
        )),
    }
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
            "kernel/drivers/block/nbd.ko.xz:\n",
        )
        .unwrap();
        assert!(has_module(directory.path()));
        assert!(no_driver("6.12", true).remedy.starts_with("modprobe nbd"));
        assert!(
            no_driver("6.12", false)
                .to_string()
                .contains("linux-modules-extra-6.12")
        );
        let denied = no_family(&io::ErrorKind::PermissionDenied.into());
        assert!(denied.what.contains("netlink"), "{denied}");
    }

    #[test]
    fn old_drivers_and_missing_nodes_are_told() {
        assert!(check_attributes(ATTRIBUTE_MAX).is_ok());
        assert!(check_attributes(ATTRIBUTE_MAX - 1).is_err());
        let devices = [0, 7].map(|index| Device {
            index,
            connected: false,
        });
        assert!(check_nodes(&devices, |_| true).is_ok());
        let lack = check_nodes(&devices, |device| device.index == 0).unwrap_err();
        assert!(lack.what.contains("/dev/nbd7"), "{lack}");
    }
}
