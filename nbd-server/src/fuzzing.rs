//! What the fuzz targets see of this crate: a handshake without sockets.

use crate::handshake::{Directory, Facts, Handshake, Protection, Step, greeting};

/// Two exports, of which one cannot be opened.
struct Names;

impl Directory for Names {
    type Device = ();

    fn names(&self) -> Vec<String> {
        vec!["prod".to_owned(), "broken".to_owned()]
    }

    fn open(&self, name: &str) -> Result<Option<(Facts, ())>, String> {
        let facts = Facts {
            size: 1 << 30,
            read_only: false,
            block_size: 65_536,
        };
        match name {
            "prod" => Ok(Some((facts, ()))),
            "broken" => Err("it is broken".to_owned()),
            _ => Ok(None),
        }
    }

    fn is_stopping(&self) -> bool {
        false
    }
}

/// How a handshake went.
#[derive(PartialEq, Eq, Debug)]
pub struct Outcome {
    /// All that the server has said.
    pub said: Vec<u8>,
    /// The most that it has said at once.
    pub said_at_once_max: usize,
    /// How much of the input it has taken in.
    pub consumed: usize,
    /// Why it has ended the connection, if it has.
    pub closed: Option<&'static str>,
    /// Whether requests follow.
    pub is_ready: bool,
}

/// Gives a client's bytes to a handshake, in pieces of this length. One that begins TLS counts as ended there.
pub fn handshake(input: &[u8], piece_len: usize, requires_tls: bool) -> Outcome {
    let protection = if requires_tls {
        Protection::TlsRequired
    } else {
        Protection::None
    };
    let mut handshake = Handshake::new(Names, protection);
    let mut outcome = Outcome {
        said: greeting(),
        said_at_once_max: 0,
        consumed: 0,
        closed: None,
        is_ready: false,
    };
    let mut received = 0;
    while received < input.len() {
        received = input.len().min(received + piece_len.max(1));
        loop {
            let before = outcome.said.len();
            let rest = &input[outcome.consumed..received];
            let (consumed, step) = handshake.advance(rest, &mut outcome.said);
            assert!(consumed <= rest.len(), "more is consumed than there is");
            outcome.consumed += consumed;
            let said = outcome.said.len() - before;
            outcome.said_at_once_max = outcome.said_at_once_max.max(said);
            match step {
                Step::Again => assert!(consumed > 0, "it does not go on"),
                Step::NeedsMore => break,
                Step::BeginTls => outcome.closed = Some("TLS begins"),
                Step::Close(reason) => outcome.closed = Some(reason),
                Step::Ready(_) => outcome.is_ready = true,
            }
            if outcome.closed.is_some() || outcome.is_ready {
                return outcome;
            }
        }
    }
    outcome
}
