//! What the daemon is told on the command line, as `thinpoold` and as `thinctl serve`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser};
use nbd_server::TcpClients;
use pool::MemoryBudget;

use crate::exit;
use crate::protocol::CallError;
use crate::size::{format_size, parse_size};

/// What users of the daemon rely on, as its help tells it.
pub const HELP: &str = "\
When everything listens, one line is printed on standard output, with the port that was chosen where \
port 0 was asked for:

  ready: pools=DIR[,DIR...] nbd=ADDRESS[,ADDRESS...]|none metrics=ADDRESS|none http=ADDRESS|none \
control=PATH[,PATH...]

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
    /// Serve NBD here, unix:PATH or tcp:ADDRESS:PORT; may be given more than once
    ///
    /// Who may open a Unix socket, its owner and group, uses every export. A TCP address is 127.0.0.1 or [::1] unless
    /// --tls-certificates or --nbd-unencrypted says who may connect from elsewhere.
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Vec<NbdAddress>,
    /// On TCP addresses take only clients that show a certificate, through TLS
    ///
    /// DIR has, in PEM form, server-cert.pem and server-key.pem, which this server shows, and ca-cert.pem, which must have
    /// signed the certificate of every client; if there is a ca-crl.pem, those revoked in it are refused. These are
    /// the names that QEMU and libnbd use. Files that are replaced count for the next client. Each client has the use of every
    /// export. TLS is 1.2 or 1.3; there are no pre-shared keys.
    #[arg(long, value_name = "DIR", requires = "nbd")]
    pub tls_certificates: Option<PathBuf>,
    /// On TCP addresses take any client, unencrypted
    ///
    /// Whoever reaches the port reads and writes every volume, and whoever sees the traffic reads it: for networks
    /// that are protected otherwise.
    #[arg(long, requires = "nbd", conflicts_with = "tls_certificates")]
    pub nbd_unencrypted: bool,
    /// Turn NBD clients away when so many are connected to the same address
    ///
    /// A client takes 0.4 MiB at most as long as it asks for nothing; what the requests of all clients of an address
    /// take is bounded besides, at 1 GiB.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    pub nbd_connections: u16,
    /// How much memory the pools may take for mappings and metadata, in equal shares of at least 32M
    ///
    /// Mappings that requests look up are held in memory, 8 bytes for each 64K block, as long as there is room; others are
    /// read from the metadata store first. 256M hold those of 1.3T of data. Not counted: one bit for each data block,
    /// 6K for each volume and snapshot, and what clients have under way (see --nbd-connections).
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub memory: u64,
    /// Serve Prometheus metrics here, at /metrics
    #[arg(long, value_name = "127.0.0.1:PORT", value_parser = parse_loopback)]
    pub metrics: Option<SocketAddr>,
    /// Serve a page for browsers here: usage, lineage, requests, latencies and events, live
    ///
    /// It shows a day of usage, as far as this daemon was there, and changes nothing. Every user of this
    /// machine can see it, names of volumes included. From another machine: ssh -L 8080:127.0.0.1:PORT HOST,
    /// then http://localhost:8080. Requests by any name but localhost and loopback addresses are refused.
    #[arg(long, value_name = "127.0.0.1:PORT", value_parser = parse_loopback)]
    pub http: Option<SocketAddr>,
    /// End when nothing is attached any more, and leave the caller's terminal
    #[arg(long)]
    pub while_attached: bool,
}

impl ServeArgs {
    /// What each pool may take of the memory.
    ///
    /// # Errors
    /// `Invalid` when that is too little.
    pub fn memory_of_each(&self) -> Result<MemoryBudget, CallError> {
        let pools = self.pools.len().max(1) as u64;
        MemoryBudget::new(self.memory / pools).ok_or_else(|| {
            let needed = MemoryBudget::MIN.bytes() * pools;
            CallError::invalid(format!(
                "--memory {}: {pools} pools need {} at least",
                format_size(self.memory),
                format_size(needed)
            ))
        })
    }

    /// Whom the TCP addresses are for.
    ///
    /// # Errors
    /// `Invalid` when an address and the options about its clients do not go together.
    pub fn tcp_clients(&self) -> Result<TcpClients, CallError> {
        let mut tcp = self.nbd.iter().filter_map(|address| match address {
            NbdAddress::Tcp(address) => Some(address),
            NbdAddress::Unix(_) => None,
        });
        let clients = match &self.tls_certificates {
            Some(directory) => TcpClients::WithCertificate(directory.clone()),
            None if self.nbd_unencrypted => TcpClients::Anybody,
            None => {
                return match tcp.find(|address| !address.ip().is_loopback()) {
                    None => Ok(TcpClients::Local),
                    Some(address) => Err(CallError::invalid(format!(
                        "nbd: tcp:{address}: other machines may connect there: give --tls-certificates, or \
                         --nbd-unencrypted if nobody else can"
                    ))),
                };
            }
        };
        if tcp.next().is_none() {
            return Err(CallError::invalid(
                "--tls-certificates and --nbd-unencrypted are about TCP, and no --nbd names a tcp: address",
            ));
        }
        Ok(clients)
    }
}

/// Where NBD is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// An address and a port.
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
            Some(("tcp", address)) => parse_address(address).map(NbdAddress::Tcp),
            _ => Err("expected unix:PATH or tcp:ADDRESS:PORT".to_owned()),
        }
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = text
        .strip_prefix("localhost:")
        .map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    text.parse()
        .map_err(|_| "expected an address and a port, as in 127.0.0.1:10809".to_owned())
}

/// Only loopback addresses: nothing is encrypted there, and nobody is asked who he is.
fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address = parse_address(text)?;
    if !address.ip().is_loopback() {
        return Err("only loopback addresses are served: 127.0.0.1 or [::1]".to_owned());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::CallErrorKind;

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
            "tcp:example.org:1",
            "tcp:127.0.0.1",
            "udp:127.0.0.1:1",
        ] {
            assert!(text.parse::<NbdAddress>().is_err(), "{text}");
        }
    }

    fn tcp_clients(options: &[&str]) -> Result<TcpClients, CallError> {
        let args = ["thinpoold", "p"].iter().chain(options);
        DaemonCli::try_parse_from(args).unwrap().serve.tcp_clients()
    }

    #[test]
    fn memory_is_shared_by_the_pools() {
        let memory = |words: &[&str]| DaemonCli::try_parse_from(words).unwrap().serve;
        let one = memory(&["thinpoold", "p"]).memory_of_each().unwrap();
        assert_eq!(one, MemoryBudget::default());
        let three = ["thinpoold", "p", "q", "r", "--memory"];
        let each = |size| memory(&[&three[..], &[size]].concat()).memory_of_each();
        assert_eq!(each("96M"), Ok(MemoryBudget::MIN));
        let refused = each("95M").unwrap_err();
        assert_eq!(refused.kind, CallErrorKind::Invalid);
        assert!(refused.message.contains("96.0 MiB"), "{refused}");
    }

    #[test]
    fn other_machines_are_served_as_somebody_decided() {
        let everywhere = ["--nbd", "unix:x", "--nbd", "tcp:0.0.0.0:1"];
        let refused = tcp_clients(&everywhere).unwrap_err();
        assert_eq!(refused.kind, CallErrorKind::Invalid);
        assert!(refused.message.contains("--tls-certificates"), "{refused}");
        let with = |option: &[&'static str]| tcp_clients(&[&everywhere[..], option].concat());
        assert!(matches!(
            with(&["--tls-certificates", "d"]),
            Ok(TcpClients::WithCertificate(_))
        ));
        assert!(matches!(
            with(&["--nbd-unencrypted"]),
            Ok(TcpClients::Anybody)
        ));
        let local = ["--nbd", "tcp:127.0.0.1:1"];
        assert!(matches!(tcp_clients(&local), Ok(TcpClients::Local)));
        assert!(tcp_clients(&["--nbd", "unix:x", "--nbd-unencrypted"]).is_err());
    }
}
