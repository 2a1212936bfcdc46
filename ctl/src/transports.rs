//! The ways a device of a pool can become a local block device, and which of them work here.

use std::fs::File;
use std::io;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::attach::{nbd, ublk};
use crate::external::find_program;
use crate::protocol::{CallError, CallErrorKind};

/// A way to a local block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Transport {
    /// `/dev/ublkbN`, which outlives the daemon.
    Ublk,
    /// `/dev/nbdN`, which outlives the daemon, too.
    Nbd,
    /// A file of a FUSE mount with a loop device on top.
    Fuse,
}

/// Every transport, in the order in which `attach` tries them.
pub const ORDER: [Transport; 3] = [Transport::Ublk, Transport::Nbd, Transport::Fuse];

/// What a transport lacks, and what brings it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lack {
    /// The missing piece.
    pub missing: String,
    /// What to do about it.
    pub remedy: String,
}

/// The transport that was taken, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Which.
    pub transport: Transport,
    /// Why.
    pub reason: String,
}

impl Transport {
    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Ublk => "ublk",
            Transport::Nbd => "nbd",
            Transport::Fuse => "fuse",
        }
    }

    /// Whether it would work here, as far as can be told without making a device. May take as long
    /// as a driver does to answer.
    ///
    /// # Errors
    /// The first thing it lacks.
    pub fn probe(self) -> Result<(), Lack> {
        match self {
            Transport::Ublk => ublk::probe(),
            Transport::Nbd => nbd::probe(),
            Transport::Fuse => probe_fuse(),
        }
    }
}

/// Takes what was asked for, else the first transport that works.
///
/// # Errors
/// What the one asked for lacks, or what all of them lack.
pub fn choose(asked: Option<Transport>) -> Result<Choice, CallError> {
    choose_among(&ORDER, asked, Transport::probe)
}

fn choose_among(
    order: &[Transport],
    asked: Option<Transport>,
    probe: impl Fn(Transport) -> Result<(), Lack>,
) -> Result<Choice, CallError> {
    if let Some(transport) = asked {
        return match probe(transport) {
            Ok(()) => Ok(Choice {
                transport,
                reason: "it was asked for".to_owned(),
            }),
            Err(lack) => Err(lacking(&[told(transport, &lack)])),
        };
    }
    let mut lacks = Vec::new();
    for &transport in order {
        match probe(transport) {
            Ok(()) if lacks.is_empty() => {
                return Ok(Choice {
                    transport,
                    reason: "it is the best and works here".to_owned(),
                });
            }
            Ok(()) => {
                return Ok(Choice {
                    transport,
                    reason: lacks.join("; "),
                });
            }
            Err(lack) => lacks.push(told(transport, &lack)),
        }
    }
    Err(lacking(&lacks))
}

fn told(transport: Transport, lack: &Lack) -> String {
    format!(
        "no {}: {} ({})",
        transport.name(),
        lack.missing,
        lack.remedy
    )
}

fn lacking(lacks: &[String]) -> CallError {
    CallError::new(CallErrorKind::Other, lacks.join("; "))
}

fn probe_fuse() -> Result<(), Lack> {
    can_open(
        Path::new("/dev/fuse"),
        "modprobe fuse, or a kernel with CONFIG_FUSE_FS",
    )?;
    can_open(
        Path::new("/dev/loop-control"),
        "modprobe loop, or a kernel with CONFIG_BLK_DEV_LOOP",
    )?;
    if find_program("losetup").is_none() {
        return Err(Lack {
            missing: "the program losetup".to_owned(),
            remedy: "apt-get install util-linux, or what your system calls it".to_owned(),
        });
    }
    Ok(())
}

fn can_open(device: &Path, remedy: &str) -> Result<(), Lack> {
    let Err(cause) = File::options().read(true).write(true).open(device) else {
        return Ok(());
    };
    let remedy = if cause.kind() == io::ErrorKind::PermissionDenied {
        "run as root"
    } else {
        remedy
    };
    Err(Lack {
        missing: CallError::io(device.display(), &cause).message,
        remedy: remedy.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(works: &[Transport]) -> impl Fn(Transport) -> Result<(), Lack> {
        move |transport| {
            if works.contains(&transport) {
                return Ok(());
            }
            Err(Lack {
                missing: format!("{transport:?} is missing"),
                remedy: "get it".to_owned(),
            })
        }
    }

    #[test]
    fn the_first_that_works_is_taken_and_it_is_told_why() {
        let choose = |asked, works: &[Transport]| choose_among(&ORDER, asked, only(works));
        let both = choose(None, &[Transport::Ublk, Transport::Fuse]).unwrap();
        assert_eq!(both.transport, Transport::Ublk);
        let fallback = choose(None, &[Transport::Fuse]).unwrap();
        assert_eq!(fallback.transport, Transport::Fuse);
        assert_eq!(
            fallback.reason,
            "no ublk: Ublk is missing (get it); no nbd: Nbd is missing (get it)"
        );
        let second = choose(None, &[Transport::Nbd, Transport::Fuse]).unwrap();
        assert_eq!(second.transport, Transport::Nbd);
        let asked = choose(Some(Transport::Fuse), &[Transport::Ublk, Transport::Fuse]).unwrap();
        assert_eq!(asked.transport, Transport::Fuse);
    }

    #[test]
    fn what_was_asked_for_is_not_replaced() {
        let refused =
            choose_among(&ORDER, Some(Transport::Ublk), only(&[Transport::Fuse])).unwrap_err();
        assert!(refused.message.contains("Ublk is missing"), "{refused}");
        let nothing = choose_among(&ORDER, None, only(&[])).unwrap_err();
        assert!(
            nothing.message.contains("Ublk is missing")
                && nothing.message.contains("Fuse is missing"),
            "{nothing}"
        );
    }
}
