//! What the daemon is told on the command line, as `thinpoold` and as `thinctl serve`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser};

use crate::exit;

/// What users of the daemon rely on, as its help tells it.
pub const HELP: &str = "\
When everything listens, one line is printed on standard output, with the port that was chosen where \
port 0 was asked for:

  ready: pools=DIR[,DIR...] nbd=ADDRESS[,ADDRESS...]|none metrics=ADDRESS|none control=PATH[,PATH...]

The log goes to standard error; $THINPOOL_LOG sets its level, info unless given. SIGTERM and SIGINT close everything cleanly.

Each volume is the NBD export VOL, each snapshot the read-only export VOL@SNAP. With several pools \
POOL/VOL always works, POOL being the last component of the pool's directory, and VOL alone as long \
as only one pool has it.";

fn daemon_help() -> String {
    format!("{HELP}\n\n{}", exit::HELP)
}

/// Serves pools: to thinctl, over NBD, and as local block devices
#[derive(Parser, Debug)]
#[command(name = "thinpoold", version, after_help = exit::HELP, after_long_help = daemon_help())]
pub struct DaemonCli {
    /// What to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What to serve, and where.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The pools
    #[arg(value_name = "POOL", required = true)]
    pub pools: Vec<String>,
    /// Serve NBD here, unix:PATH or tcp:127.0.0.1:PORT; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Vec<NbdAddress>,
    /// Serve Prometheus metrics here, at /metrics
    #[arg(long, value_name = "127.0.0.1:PORT", value_parser = parse_loopback)]
    pub metrics: Option<SocketAddr>,
    /// End when nothing is attached any more, and leave the caller's terminal
    #[arg(long)]
    pub while_attached: bool,
}

/// Where NBD is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port on a loopback address.
    Tcp(SocketAddr),
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            NbdAddress::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(NbdAddress::Unix(path.into())),
            Some(("tcp", address)) => parse_loopback(address).map(NbdAddress::Tcp),
            _ => Err("expected unix:PATH or tcp:127.0.0.1:PORT".to_owned()),
        }
    }
}

/// Only loopback addresses: nothing here is encrypted or asks who is there.
fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let text = text
        .strip_prefix("localhost:")
        .map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "expected an address and a port, as in 127.0.0.1:10809".to_owned())?;
    if !address.ip().is_loopback() {
        return Err("only loopback addresses are served: 127.0.0.1 or [::1]".to_owned());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            "unix:/run/a:b".parse(),
            Ok(NbdAddress::Unix("/run/a:b".into()))
        );
        let tcp = |text: &str| Ok(NbdAddress::Tcp(text.parse().unwrap()));
        assert_eq!("tcp:127.0.0.1:0".parse(), tcp("127.0.0.1:0"));
        assert_eq!("tcp:localhost:10809".parse(), tcp("127.0.0.1:10809"));
        assert_eq!("tcp:[::1]:1".parse(), tcp("[::1]:1"));
        for text in [
            "",
            "unix:",
            "/run/x",
            "tcp:",
            "tcp:0.0.0.0:1",
            "tcp:10.0.0.1:1",
            "tcp:127.0.0.1",
            "udp:127.0.0.1:1",
        ] {
            assert!(text.parse::<NbdAddress>().is_err(), "{text}");
        }
    }
}
