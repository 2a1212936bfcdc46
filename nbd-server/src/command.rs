//! What a request asks for: checked against the export before anything is done.

use pool::{Operation, Zeroing};

use crate::handshake::{Facts, PAYLOAD_LEN_MAX};
use crate::wire::{Errno, Request, command, command_flag};

/// A request that may be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Read { unfragmented: bool },
    Write { durable: bool },
    Flush,
    Trim { durable: bool },
    Cache,
    WriteZeroes { zeroing: Zeroing, durable: bool },
    BlockStatus { only_first: bool },
}

/// Why a request was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(errno: Errno, message: &str) -> Self {
        Refusal {
            errno,
            message: message.to_owned(),
        }
    }
}

/// What was agreed on that decides what a request may be.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) facts: Facts,
    pub(crate) structured: bool,
    /// Whether the client has selected a context.
    pub(crate) has_context: bool,
}

impl Command {
    /// As what it is counted, if it is.
    pub(crate) fn operation(self) -> Option<Operation> {
        match self {
            Command::Read { .. } => Some(Operation::Read),
            Command::Write { .. } => Some(Operation::Write),
            Command::Flush => Some(Operation::Flush),
            Command::Trim { .. } => Some(Operation::Discard),
            Command::WriteZeroes { .. } => Some(Operation::WriteZeroes),
            Command::Cache | Command::BlockStatus { .. } => None,
        }
    }

    /// Checks flags, permission and range, in this order.
    pub(crate) fn check(request: &Request, terms: &Terms) -> Result<Self, Refusal> {
        let command = Self::of(request)?;
        let mut allowed = command.own_flags() | command_flag::FUA;
        if !terms.structured {
            allowed &= !command_flag::DF;
        }
        if request.flags & !allowed != 0 {
            return Err(Refusal::new(
                Errno::Invalid,
                "a flag this command does not know",
            ));
        }
        if terms.facts.read_only && command.changes_data() {
            return Err(Refusal::new(Errno::Permission, "the export is read only"));
        }
        command.check_range(request, terms)?;
        Ok(command)
    }

    fn of(request: &Request) -> Result<Self, Refusal> {
        let has = |flag: u16| request.flags & flag != 0;
        let durable = has(command_flag::FUA);
        Ok(match request.command {
            command::READ => Command::Read {
                unfragmented: has(command_flag::DF),
            },
            command::WRITE => Command::Write { durable },
            command::FLUSH => Command::Flush,
            command::TRIM => Command::Trim { durable },
            command::CACHE => Command::Cache,
            command::WRITE_ZEROES => {
                let no_hole = has(command_flag::NO_HOLE);
                let zeroing = match (has(command_flag::FAST_ZERO), no_hole) {
                    (false, false) => Zeroing::MayUnmap,
                    (false, true) => Zeroing::KeepMapped,
                    (true, false) => Zeroing::Fast,
                    (true, true) => Zeroing::FastKeepMapped,
                };
                Command::WriteZeroes { zeroing, durable }
            }
            command::BLOCK_STATUS => Command::BlockStatus {
                only_first: has(command_flag::REQ_ONE),
            },
            _ => return Err(Refusal::new(Errno::Invalid, "unknown command")),
        })
    }

    fn own_flags(self) -> u16 {
        match self {
            Command::Read { .. } => command_flag::DF,
            Command::WriteZeroes { .. } => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            Command::BlockStatus { .. } => command_flag::REQ_ONE,
            _ => 0,
        }
    }

    fn changes_data(self) -> bool {
        matches!(
            self,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
        )
    }

    fn check_range(self, request: &Request, terms: &Terms) -> Result<(), Refusal> {
        // A flush has no range; whatever is in the fields is ignored.
        if self == Command::Flush {
            return Ok(());
        }
        let end = request.offset.checked_add(u64::from(request.len));
        if end.is_none_or(|end| end > terms.facts.size) {
            let errno = match self {
                Command::Write { .. } | Command::WriteZeroes { .. } => Errno::NoSpace,
                _ => Errno::Invalid,
            };
            return Err(Refusal::new(errno, "the request ends beyond the export"));
        }
        match self {
            Command::Read { unfragmented } if request.len > PAYLOAD_LEN_MAX => {
                let errno = if unfragmented {
                    Errno::Overflow
                } else {
                    Errno::Invalid
                };
                Err(Refusal::new(errno, "longer than the largest payload"))
            }
            Command::BlockStatus { .. } if request.len == 0 => {
                Err(Refusal::new(Errno::Invalid, "block status of nothing"))
            }
            Command::BlockStatus { .. } if !(terms.structured && terms.has_context) => {
                Err(Refusal::new(Errno::Invalid, "no context was selected"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    fn check(command: u16, flags: u16, offset: u64, len: u32, terms: Terms) -> Result<(), Errno> {
        let request = Request {
            flags,
            command,
            cookie: 0,
            offset,
            len,
        };
        Command::check(&request, &terms)
            .map(|_| ())
            .map_err(|refusal| refusal.errno)
    }

    fn terms() -> Terms {
        let facts = Facts {
            size: SIZE,
            read_only: false,
            block_size: 65536,
        };
        Terms {
            facts,
            structured: true,
            has_context: true,
        }
    }

    #[test]
    fn ranges_end_within_the_export() {
        use command::{BLOCK_STATUS, CACHE, READ, TRIM, WRITE, WRITE_ZEROES};
        for (command, errno) in [
            (READ, Errno::Invalid),
            (WRITE, Errno::NoSpace),
            (TRIM, Errno::Invalid),
            (CACHE, Errno::Invalid),
            (WRITE_ZEROES, Errno::NoSpace),
            (BLOCK_STATUS, Errno::Invalid),
        ] {
            assert_eq!(check(command, 0, SIZE - 1, 1, terms()), Ok(()));
            for offset in [SIZE, u64::MAX, u64::MAX - 1] {
                assert_eq!(
                    check(command, 0, offset, 2, terms()),
                    Err(errno),
                    "{command}"
                );
            }
        }
        assert_eq!(check(command::FLUSH, 0, u64::MAX, 9, terms()), Ok(()));
    }

    #[test]
    fn flags_belong_to_commands() {
        for command in 0..=7 {
            if command == command::DISCONNECT {
                continue;
            }
            assert_eq!(
                check(command, command_flag::FUA, 0, 1, terms()),
                Ok(()),
                "{command}"
            );
            for bit in 5..16 {
                assert_eq!(check(command, 1 << bit, 0, 1, terms()), Err(Errno::Invalid));
            }
        }
        assert_eq!(
            check(command::READ, command_flag::DF, 0, 1, terms()),
            Ok(())
        );
        let simple = Terms {
            structured: false,
            ..terms()
        };
        assert_eq!(
            check(command::READ, command_flag::DF, 0, 1, simple),
            Err(Errno::Invalid)
        );
        assert_eq!(
            check(command::TRIM, command_flag::NO_HOLE, 0, 1, terms()),
            Err(Errno::Invalid)
        );
        assert_eq!(
            check(command::DISCONNECT, 0, 0, 0, terms()),
            Err(Errno::Invalid)
        );
        assert_eq!(check(9, 0, 0, u32::MAX, terms()), Err(Errno::Invalid));
    }

    #[test]
    fn read_only_exports_refuse_changes() {
        let facts = Facts {
            read_only: true,
            ..terms().facts
        };
        let terms = Terms { facts, ..terms() };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(check(command, 0, 0, 1, terms), Err(Errno::Permission));
        }
        for command in [
            command::READ,
            command::FLUSH,
            command::CACHE,
            command::BLOCK_STATUS,
        ] {
            assert_eq!(check(command, 0, 0, 1, terms), Ok(()));
        }
    }

    #[test]
    fn lengths_have_limits() {
        let long = PAYLOAD_LEN_MAX + 1;
        assert_eq!(
            check(command::READ, 0, 0, long, terms()),
            Err(Errno::Invalid)
        );
        let overflow = check(command::READ, command_flag::DF, 0, long, terms());
        assert_eq!(overflow, Err(Errno::Overflow));
        assert_eq!(
            check(command::BLOCK_STATUS, 0, 0, 0, terms()),
            Err(Errno::Invalid)
        );
        assert_eq!(check(command::READ, 0, SIZE, 0, terms()), Ok(()));
        let without = Terms {
            has_context: false,
            ..terms()
        };
        assert_eq!(
            check(command::BLOCK_STATUS, 0, 0, 1, without),
            Err(Errno::Invalid)
        );
    }
}
