//! Names of volumes and snapshots: `prod`, `prod@nightly`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The longest name of a volume, and of a snapshot, in bytes.
pub const NAME_LEN_MAX: usize = 127;

/// The name of a thin device: a volume, or a snapshot of one.
///
/// Each part is 1 to 127 characters of `A-Z a-z 0-9 . _ + -`, the first a letter or a digit. A name
/// is never a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    volume: String,
    snapshot: Option<String>,
}

impl DeviceName {
    /// The volume with this name.
    pub fn volume(volume: &str) -> Result<Self, Error> {
        check_part(volume)?;
        Ok(DeviceName {
            volume: volume.to_owned(),
            snapshot: None,
        })
    }

    /// The snapshot of this name of the same volume.
    pub fn at(&self, snapshot: &str) -> Result<Self, Error> {
        check_part(snapshot)?;
        Ok(DeviceName {
            volume: self.volume.clone(),
            snapshot: Some(snapshot.to_owned()),
        })
    }

    /// The part before the `@`.
    pub fn volume_part(&self) -> &str {
        &self.volume
    }

    /// The part behind the `@`, when it names a snapshot.
    pub fn snapshot_part(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// Whether it names a snapshot.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }
}

fn check_part(part: &str) -> Result<(), Error> {
    let bad = |reason| {
        Err(Error::BadName {
            name: part.chars().take(140).collect(),
            reason,
        })
    };
    let Some(first) = part.chars().next() else {
        return bad("it is empty");
    };
    if part.len() > NAME_LEN_MAX {
        return bad("it is longer than 127 characters");
    }
    if !first.is_ascii_alphanumeric() {
        return bad("it does not begin with a letter or a digit");
    }
    if !part
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-'))
    {
        return bad("only letters, digits, '.', '_', '+' and '-' are allowed");
    }
    Ok(())
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('@') {
            None => Self::volume(text),
            Some((volume, snapshot)) => Self::volume(volume)?.at(snapshot),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.to_string()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            None => f.write_str(&self.volume),
            Some(snapshot) => write!(f, "{}@{snapshot}", self.volume),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for text in ["prod", "prod@nightly", "a.b_c-1", "0", "v1+x"] {
            assert_eq!(text.parse::<DeviceName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_are_never_paths() {
        let long = "x".repeat(NAME_LEN_MAX + 1);
        for text in [
            "",
            "@s",
            "v@",
            "a/b",
            "..",
            ".hidden",
            "-rf",
            "+x",
            "a@b@c",
            "a b",
            "é",
            "a\0",
            "\u{430}dmin",
            "a\u{200b}",
            &long,
        ] {
            assert!(text.parse::<DeviceName>().is_err(), "{text:?} was accepted");
        }
    }
}
