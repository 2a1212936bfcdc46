//! The handshake as a state machine: bytes in, bytes out. No I/O.
//!
//! The server speaks first ([`greeting`]). Then [`Handshake::advance`] is given everything
//! received and not yet consumed; each call takes at most one option, so that what it appends to the
//! output is bounded. A malformed payload is answered and the handshake goes on, since its length is
//! known; what cannot be answered ends the connection.
//!
//! Where TLS is required, nothing is answered before it but STARTTLS and ABORT, and what was said before it
//! is forgotten.

use crate::context::{Context, Selection};
use crate::wire::{
    NBD_MAGIC, OPTION_HEADER_LEN, OPTION_MAGIC, Reader, handshake_flag, info, option, option_reply,
    put_option_reply, transmission_flag,
};

/// The longest payload of an option that is read at all.
const OPTION_LEN_MAX: usize = 128 * 1024;
/// How many options one connection may send.
const OPTIONS_MAX: u32 = 4096;
/// The longest export name and the longest query, as the protocol has it.
const STRING_LEN_MAX: usize = 4096;
/// How many contexts one option may ask for.
const QUERIES_MAX: u32 = 1024;
/// Padding behind the answer to EXPORT_NAME, from the time before options.
const EXPORT_NAME_PADDING: usize = 124;
/// The largest block size the protocol lets a server prefer or allow here.
pub(crate) const PAYLOAD_LEN_MAX: u32 = 32 * 1024 * 1024;

/// What the handshake knows of the exports.
pub(crate) trait Directory {
    /// An export that was found, held open.
    type Device;

    /// The names of all exports.
    fn names(&self) -> Vec<String>;

    /// Opens an export. None when there is no such name; an error says why it cannot be opened.
    fn open(&self, name: &str) -> Result<Option<(Facts, Self::Device)>, String>;

    /// Whether the server is about to end.
    fn is_stopping(&self) -> bool;
}

/// What a client is told about an export; it stays true for the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Facts {
    /// Size in bytes.
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    /// The device's data block size in bytes.
    pub(crate) block_size: u64,
}

impl Facts {
    pub(crate) fn flags(&self, structured: bool) -> u16 {
        let mut flags = transmission_flag::HAS_FLAGS
            | transmission_flag::SEND_FLUSH
            | transmission_flag::SEND_FUA
            | transmission_flag::CAN_MULTI_CONN
            | transmission_flag::SEND_CACHE;
        flags |= if self.read_only {
            transmission_flag::READ_ONLY
        } else {
            transmission_flag::SEND_TRIM
                | transmission_flag::SEND_WRITE_ZEROES
                | transmission_flag::SEND_FAST_ZERO
        };
        if structured {
            flags | transmission_flag::SEND_DF
        } else {
            flags
        }
    }

    /// The largest power of two that divides the data block size: the protocol wants one.
    fn preferred_block_size(&self) -> u32 {
        let power = 1u64 << self.block_size.trailing_zeros().min(63);
        u32::try_from(power)
            .unwrap_or(u32::MAX)
            .clamp(512, PAYLOAD_LEN_MAX)
    }
}

/// What the two sides have agreed on.
pub(crate) struct Agreement<D> {
    pub(crate) device: D,
    pub(crate) facts: Facts,
    /// Whether replies come in chunks.
    pub(crate) structured: bool,
    pub(crate) contexts: Selection,
}

/// What protects a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protection {
    /// Nothing, and nothing is needed.
    None,
    /// The client must begin TLS before it may ask for anything.
    TlsRequired,
    /// TLS.
    Tls,
}

/// What comes next.
pub(crate) enum Step<D> {
    /// Something was consumed; there may be more.
    Again,
    /// The rest is not complete.
    NeedsMore,
    /// Send the output; what follows is a TLS handshake, and then options again.
    BeginTls,
    /// Send the output and close, for this reason.
    Close(&'static str),
    /// Send the output; what follows are requests.
    Ready(Agreement<D>),
}

/// Why an option was refused.
struct Refusal {
    kind: u32,
    message: String,
}

impl Refusal {
    fn new(kind: u32, message: &str) -> Self {
        Refusal {
            kind,
            message: message.to_owned(),
        }
    }

    fn invalid(message: &str) -> Self {
        Self::new(option_reply::ERR_INVALID, message)
    }
}

/// One connection's handshake.
pub(crate) struct Handshake<D> {
    directory: D,
    protection: Protection,
    /// None until the client has sent its flags.
    no_zeroes: Option<bool>,
    options: u32,
    structured: bool,
    /// The contexts selected, and for which name.
    selected: Option<(String, Selection)>,
}

/// What the server says first.
pub(crate) fn greeting() -> Vec<u8> {
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    [
        &NBD_MAGIC.to_be_bytes()[..],
        &OPTION_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
    ]
    .concat()
}

impl<D: Directory> Handshake<D> {
    pub(crate) fn new(directory: D, protection: Protection) -> Self {
        Handshake {
            directory,
            protection,
            no_zeroes: None,
            options: 0,
            structured: false,
            selected: None,
        }
    }

    /// Looks at the bytes received, appends the answer to `out`, and says how many it consumed.
    pub(crate) fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Step<D::Device>) {
        let Some(no_zeroes) = self.no_zeroes else {
            return self.take_flags(input);
        };
        let mut reader = Reader::new(input);
        let (Some(magic), Some(option), Some(len)) = (reader.u64(), reader.u32(), reader.u32())
        else {
            return (0, Step::NeedsMore);
        };
        if magic != OPTION_MAGIC {
            return (0, Step::Close("bad option magic"));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > OPTION_LEN_MAX {
            return (0, Step::Close("an option is too long"));
        }
        let Some(payload) = reader.bytes(len) else {
            return (0, Step::NeedsMore);
        };
        let consumed = OPTION_HEADER_LEN + len;
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return (consumed, Step::Close("too many options"));
        }
        (consumed, self.answer(option, payload, no_zeroes, out))
    }

    fn take_flags(&mut self, input: &[u8]) -> (usize, Step<D::Device>) {
        let Some(flags) = Reader::new(input).u32() else {
            return (0, Step::NeedsMore);
        };
        let known = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        if flags & !u32::from(known) != 0 {
            return (4, Step::Close("unknown client flags"));
        }
        self.no_zeroes = Some(flags & u32::from(handshake_flag::NO_ZEROES) != 0);
        (4, Step::Again)
    }

    fn answer(
        &mut self,
        option: u32,
        payload: &[u8],
        no_zeroes: bool,
        out: &mut Vec<u8>,
    ) -> Step<D::Device> {
        if option == option::ABORT {
            put_option_reply(out, option, option_reply::ACK, &[]);
            return Step::Close("the client gave up");
        }
        if option == option::STARTTLS {
            return self.start_tls(payload, out);
        }
        if self.protection == Protection::TlsRequired {
            if option == option::EXPORT_NAME {
                return Step::Close("an export was asked for without TLS");
            }
            let message = b"begin TLS first";
            put_option_reply(out, option, option_reply::ERR_TLS_REQD, &[message]);
            return Step::Again;
        }
        if option == option::EXPORT_NAME {
            return self.export_name(payload, no_zeroes, out);
        }
        let answered = if self.directory.is_stopping() {
            Err(Refusal::new(
                option_reply::ERR_SHUTDOWN,
                "the server is shutting down",
            ))
        } else {
            self.negotiate(option, payload, out)
        };
        match answered {
            Ok(agreement) => {
                put_option_reply(out, option, option_reply::ACK, &[]);
                agreement.map_or(Step::Again, Step::Ready)
            }
            Err(refusal) => {
                put_option_reply(out, option, refusal.kind, &[refusal.message.as_bytes()]);
                Step::Again
            }
        }
    }

    fn start_tls(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Step<D::Device> {
        let refusal = match self.protection {
            _ if !payload.is_empty() => Refusal::invalid("STARTTLS takes no data"),
            Protection::None => {
                Refusal::new(option_reply::ERR_UNSUP, "there is no TLS on this address")
            }
            Protection::Tls => Refusal::invalid("TLS has begun already"),
            Protection::TlsRequired => {
                self.protection = Protection::Tls;
                // Anybody may have put in words of his own so far.
                self.structured = false;
                self.selected = None;
                put_option_reply(out, option::STARTTLS, option_reply::ACK, &[]);
                return Step::BeginTls;
            }
        };
        let message = refusal.message.as_bytes();
        put_option_reply(out, option::STARTTLS, refusal.kind, &[message]);
        Step::Again
    }

    /// Does what an option asks for. The caller acknowledges.
    fn negotiate(
        &mut self,
        option: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Agreement<D::Device>>, Refusal> {
        match option {
            option::LIST => self.list(payload, out)?,
            option::STRUCTURED_REPLY => {
                expect_empty(payload)?;
                self.structured = true;
            }
            option::INFO => drop(self.info(option, payload, out)?),
            option::GO => return self.info(option, payload, out).map(Some),
            option::LIST_META_CONTEXT => self.list_contexts(payload, out)?,
            option::SET_META_CONTEXT => self.set_contexts(payload, out)?,
            _ => return Err(Refusal::new(option_reply::ERR_UNSUP, "unknown option")),
        }
        Ok(None)
    }

    /// The option without error replies: what cannot be granted ends the connection.
    fn export_name(
        &mut self,
        payload: &[u8],
        no_zeroes: bool,
        out: &mut Vec<u8>,
    ) -> Step<D::Device> {
        if self.directory.is_stopping() {
            return Step::Close("the server is shutting down");
        }
        let Ok(name) = export_name(payload) else {
            return Step::Close("a bad export name");
        };
        let Ok((_, facts, device)) = self.find(name) else {
            return Step::Close("an export that cannot be opened");
        };
        out.extend_from_slice(&facts.size.to_be_bytes());
        out.extend_from_slice(&facts.flags(self.structured).to_be_bytes());
        if !no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
        }
        Step::Ready(self.agree(name, facts, device))
    }

    fn list(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        expect_empty(payload)?;
        for name in self.directory.names() {
            debug_assert!(name.len() <= STRING_LEN_MAX);
            let len = u32::try_from(name.len()).unwrap_or(0).to_be_bytes();
            let parts = [&len[..], name.as_bytes()];
            put_option_reply(out, option::LIST, option_reply::SERVER, &parts);
        }
        Ok(())
    }

    fn info(
        &self,
        option: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Agreement<D::Device>, Refusal> {
        let (name, wanted) = parse_info(payload)?;
        let (full_name, facts, device) = self.find(name)?;
        let mut put = |kind: u16, parts: &[&[u8]]| {
            let kind = kind.to_be_bytes();
            let parts: Vec<&[u8]> = std::iter::once(&kind[..])
                .chain(parts.iter().copied())
                .collect();
            put_option_reply(out, option, option_reply::INFO, &parts);
        };
        let flags = facts.flags(self.structured);
        put(
            info::EXPORT,
            &[&facts.size.to_be_bytes(), &flags.to_be_bytes()],
        );
        let preferred = facts.preferred_block_size().to_be_bytes();
        let sizes: [&[u8]; 3] = [
            &1u32.to_be_bytes(),
            &preferred,
            &PAYLOAD_LEN_MAX.to_be_bytes(),
        ];
        put(info::BLOCK_SIZE, &sizes);
        if wanted.contains(&info::NAME) {
            put(info::NAME, &[full_name.as_bytes()]);
        }
        if wanted.contains(&info::DESCRIPTION) {
            let text = if facts.read_only {
                "thin device, read only"
            } else {
                "thin device"
            };
            put(info::DESCRIPTION, &[text.as_bytes()]);
        }
        Ok(self.agree(name, facts, device))
    }

    fn agree(&self, name: &str, facts: Facts, device: D::Device) -> Agreement<D::Device> {
        let contexts = match &self.selected {
            Some((selected_for, selection)) if selected_for == name => *selection,
            _ => Selection::default(),
        };
        Agreement {
            device,
            facts,
            structured: self.structured,
            contexts,
        }
    }

    fn list_contexts(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let (name, queries) = parse_queries(payload)?;
        self.find(name)?;
        for context in Context::ALL {
            if queries.is_empty() || queries.iter().any(|query| context.is_listed_by(query)) {
                put_context(out, option::LIST_META_CONTEXT, 0, context);
            }
        }
        Ok(())
    }

    fn set_contexts(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        // Whatever comes of this, the earlier selection is gone.
        self.selected = None;
        if !self.structured {
            return Err(Refusal::invalid("contexts need structured replies"));
        }
        let (name, queries) = parse_queries(payload)?;
        self.find(name)?;
        let mut selection = Selection::default();
        for context in Context::ALL {
            if queries.contains(&context.name().as_bytes()) {
                selection.insert(context);
                put_context(out, option::SET_META_CONTEXT, context.id(), context);
            }
        }
        self.selected = Some((name.to_owned(), selection));
        Ok(())
    }

    /// Opens an export by the name a client uses; the empty name means the only export.
    fn find(&self, name: &str) -> Result<(String, Facts, D::Device), Refusal> {
        let unknown = || Refusal::new(option_reply::ERR_UNKNOWN, "no such export");
        let full_name = if name.is_empty() {
            let mut names = self.directory.names();
            if names.len() != 1 {
                return Err(unknown());
            }
            names.remove(0)
        } else {
            name.to_owned()
        };
        match self.directory.open(&full_name) {
            Ok(Some((facts, device))) => Ok((full_name, facts, device)),
            Ok(None) => Err(unknown()),
            Err(message) => Err(Refusal {
                kind: option_reply::ERR_POLICY,
                message,
            }),
        }
    }
}

fn put_context(out: &mut Vec<u8>, option: u32, id: u32, context: Context) {
    let parts = [&id.to_be_bytes()[..], context.name().as_bytes()];
    put_option_reply(out, option, option_reply::META_CONTEXT, &parts);
}

fn expect_empty(payload: &[u8]) -> Result<(), Refusal> {
    if payload.is_empty() {
        Ok(())
    } else {
        Err(Refusal::invalid("this option takes no data"))
    }
}

fn export_name(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > STRING_LEN_MAX {
        return Err(Refusal::invalid(
            "the export name is longer than 4096 bytes",
        ));
    }
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err(Refusal::invalid("the export name is not UTF-8 text")),
    }
}

/// The name and the kinds of information wanted. The payload must fit exactly.
fn parse_info(payload: &[u8]) -> Result<(&str, Vec<u16>), Refusal> {
    let malformed = || Refusal::invalid("the lengths in the option do not fit");
    let mut reader = Reader::new(payload);
    let name = reader.counted().ok_or_else(malformed)?;
    let count = usize::from(reader.u16().ok_or_else(malformed)?);
    if reader.len() != count * 2 {
        return Err(malformed());
    }
    let wanted = std::iter::from_fn(|| reader.u16()).collect();
    Ok((export_name(name)?, wanted))
}

/// The name and the queries. The payload must fit exactly.
fn parse_queries(payload: &[u8]) -> Result<(&str, Vec<&[u8]>), Refusal> {
    let malformed = || Refusal::invalid("the lengths in the option do not fit");
    let mut reader = Reader::new(payload);
    let name = reader.counted().ok_or_else(malformed)?;
    let count = reader.u32().ok_or_else(malformed)?;
    // Each query has a length of four bytes at least.
    if u64::from(count) * 4 > reader.len() as u64 {
        return Err(malformed());
    }
    if count > QUERIES_MAX {
        return Err(Refusal::new(
            option_reply::ERR_TOO_BIG,
            "more than 1024 queries",
        ));
    }
    let mut queries = Vec::new();
    for _ in 0..count {
        let query = reader.counted().ok_or_else(malformed)?;
        if query.len() > STRING_LEN_MAX {
            return Err(Refusal::invalid("a query is longer than 4096 bytes"));
        }
        queries.push(query);
    }
    if !reader.is_empty() {
        return Err(malformed());
    }
    Ok((export_name(name)?, queries))
}

#[cfg(test)]
mod tests;
