//! What an NBD client says before it uses an export.

use nbd_server::fuzzing::handshake;

/// More than any one answer: all export names, or all contexts, with their headers.
const ANSWER_LEN_MAX: usize = 8 * 1024;

/// However the bytes arrive, the outcome is the same; where TLS is required nobody gets to requests without it.
pub fn run(input: &[u8]) {
    for requires_tls in [false, true] {
        let whole = handshake(input, input.len(), requires_tls);
        assert!(
            whole.said_at_once_max <= ANSWER_LEN_MAX,
            "{} bytes in answer to one option",
            whole.said_at_once_max
        );
        assert!(!(requires_tls && whole.is_ready), "ready without TLS");
        for piece_len in [1, 7] {
            let in_pieces = handshake(input, piece_len, requires_tls);
            assert_eq!(in_pieces, whole, "in pieces of {piece_len}");
        }
    }
}
