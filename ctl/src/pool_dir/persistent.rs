//! The attachments that every daemon of the pool makes again: `attachments.toml`.
//!
//! ```text
//! version = 1
//!
//! [[attachment]]
//! name = "prod"
//! mount = "/srv/prod"       # optional, like all below
//! transport = "ublk"
//! sector_size = "4096"
//! queues = 2
//! depth = 64
//! buffer_bytes = 524288
//! ```
//!
//! Devices stand there by name: what is called so when the daemon starts is attached, whatever was
//! rolled back or made anew since. Whoever renames or deletes a device keeps the table true.

use std::fs;
use std::io;
use std::path::PathBuf;

use pool::DeviceName;
use serde::{Deserialize, Serialize};

use super::{PoolDir, read_bounded, write_whole};
use crate::cli::{DeviceOptions, SectorSize};
use crate::protocol::{AttachRequest, CallError, CallErrorKind};
use crate::transports::Transport;

/// The table's file in the pool's directory.
pub const ATTACHMENTS_FILE: &str = "attachments.toml";

/// The only version so far.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    #[serde(default, rename = "attachment")]
    attachments: Vec<Persistent>,
}

/// An attachment to make again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Persistent {
    /// Which volume or snapshot.
    pub name: DeviceName,
    /// Where to mount it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// How; the best way that works unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// How large its sectors are to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<SectorSize>,
    /// How many queues it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// How many requests each is to take at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// The largest request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer_bytes: Option<u32>,
}

impl From<&AttachRequest> for Persistent {
    fn from(request: &AttachRequest) -> Self {
        let options = request.options;
        Persistent {
            name: request.name.clone(),
            mount: request.mount.clone(),
            transport: request.transport,
            sector_size: options.sector_size,
            queues: options.queues,
            depth: options.depth,
            buffer_bytes: options.buffer_bytes,
        }
    }
}

impl From<Persistent> for AttachRequest {
    fn from(persistent: Persistent) -> Self {
        AttachRequest {
            name: persistent.name,
            mount: persistent.mount,
            // It was made the first time.
            mkfs: None,
            transport: persistent.transport,
            options: DeviceOptions {
                sector_size: persistent.sector_size,
                queues: persistent.queues,
                depth: persistent.depth,
                buffer_bytes: persistent.buffer_bytes,
            },
            // It stands in the table already.
            persist: false,
        }
    }
}

impl PoolDir {
    /// The attachments to make again.
    ///
    /// # Errors
    /// `Damaged` when the table cannot be understood.
    pub fn persistent(&self) -> Result<Vec<Persistent>, CallError> {
        let path = self.path.join(ATTACHMENTS_FILE);
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(CallError::io(path.display(), &cause)),
        };
        let damaged = |reason: String| {
            let message = format!("{}: {reason}: correct or remove it", path.display());
            CallError::new(CallErrorKind::Damaged, message)
        };
        let contents: Contents =
            toml::from_str(&text).map_err(|cause| damaged(cause.message().to_owned()))?;
        if contents.version != VERSION {
            return Err(damaged(format!(
                "its version is {}, this program knows version {VERSION}",
                contents.version
            )));
        }
        Ok(contents.attachments)
    }

    /// From now on this attachment is made again; it takes the place of one of the same device.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub fn persist(&self, attachment: Persistent) -> Result<(), CallError> {
        let mut all = self.persistent()?;
        all.retain(|other| other.name != attachment.name);
        all.push(attachment);
        self.write_persistent(all)
    }

    /// From now on no attachment of this device is made again. Whether one would have been.
    ///
    /// # Errors
    /// As [`PoolDir::persist`].
    pub fn forget_persistent(&self, name: &DeviceName) -> Result<bool, CallError> {
        let all = self.persistent()?;
        let mut left = all.clone();
        left.retain(|other| other.name != *name);
        let had_it = left.len() < all.len();
        if had_it {
            self.write_persistent(left)?;
        }
        Ok(had_it)
    }

    /// The device has another name now.
    ///
    /// # Errors
    /// As [`PoolDir::persist`].
    pub fn rename_persistent(&self, from: &DeviceName, to: &DeviceName) -> Result<(), CallError> {
        let mut all = self.persistent()?;
        if let Some(renamed) = all.iter_mut().find(|other| other.name == *from) {
            renamed.name = to.clone();
            self.write_persistent(all)?;
        }
        Ok(())
    }

    fn write_persistent(&self, attachments: Vec<Persistent>) -> Result<(), CallError> {
        let path = self.path.join(ATTACHMENTS_FILE);
        let written = if attachments.is_empty() {
            fs::remove_file(&path)
        } else {
            let contents = Contents {
                version: VERSION,
                attachments,
            };
            toml::to_string(&contents)
                .map_err(io::Error::other)
                .and_then(|text| write_whole(&self.path, ATTACHMENTS_FILE, &text))
        };
        written.map_err(|cause| CallError::io(path.display(), &cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool_dir::PoolConfig;

    fn pool_dir(path: PathBuf) -> PoolDir {
        let config: PoolConfig =
            toml::from_str("version = 1\nuuid = 'u'\nmetadata = 'm'\ndata = 'd'").unwrap();
        PoolDir { path, config }
    }

    fn attachment(name: &str) -> Persistent {
        Persistent {
            name: name.parse().unwrap(),
            mount: Some("/mnt/a b\"'".into()),
            transport: Some(Transport::Fuse),
            sector_size: Some(SectorSize::S4096),
            queues: Some(2),
            depth: Some(32),
            buffer_bytes: Some(1 << 20),
        }
    }

    #[test]
    fn what_is_persistent_is_found_again_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let dir = pool_dir(root.path().to_owned());
        let name = |text: &str| text.parse::<DeviceName>().unwrap();
        assert_eq!(dir.persistent().unwrap(), []);
        assert!(!dir.forget_persistent(&name("vol")).unwrap());
        dir.persist(attachment("vol")).unwrap();
        let plain = Persistent {
            mount: None,
            transport: None,
            sector_size: None,
            queues: None,
            depth: None,
            buffer_bytes: None,
            ..attachment("vol@s")
        };
        for persistent in [&plain, &attachment("vol")] {
            let request = AttachRequest::from(persistent.clone());
            assert_eq!(Persistent::from(&request), *persistent);
        }
        dir.persist(plain.clone()).unwrap();
        dir.persist(attachment("vol")).unwrap();
        assert_eq!(
            dir.persistent().unwrap(),
            [plain.clone(), attachment("vol")]
        );
        dir.rename_persistent(&name("vol"), &name("new")).unwrap();
        dir.rename_persistent(&name("vol"), &name("other")).unwrap();
        assert_eq!(
            dir.persistent().unwrap(),
            [plain.clone(), attachment("new")]
        );
        assert!(dir.forget_persistent(&name("new")).unwrap());
        assert_eq!(dir.persistent().unwrap(), [plain]);
        assert!(dir.forget_persistent(&name("vol@s")).unwrap());
        assert!(!root.path().join(ATTACHMENTS_FILE).exists());
    }

    #[test]
    fn a_table_that_is_not_understood_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = pool_dir(root.path().to_owned());
        for text in [
            "version = 2",
            "",
            "version = 1\nattachment = 3",
            "version = 1\n[[attachment]]\nname = '../vol'",
            "version = 1\n[[attachment]]\nname = 'vol'\nother = 1",
        ] {
            fs::write(root.path().join(ATTACHMENTS_FILE), text).unwrap();
            let error = dir.persistent().unwrap_err();
            assert_eq!(error.kind, CallErrorKind::Damaged, "{text}: {error}");
            assert!(error.message.contains(ATTACHMENTS_FILE), "{error}");
        }
    }
}
