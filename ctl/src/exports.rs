//! Volumes and snapshots as NBD exports, of one pool or several.
//!
//! Names are looked up when a client asks, so exports come and go with their devices. With several
//! pools `POOL/VOL` names one for sure; `VOL` alone works as long as one pool has it.

use std::sync::Arc;

use nbd_server::{Config, Exports, Limits, Listen, Server, TcpClients};
use pool::{DeviceName, Error, ThinDevice};
use reactor::FileHost;

use crate::protocol::{CallError, CallErrorKind};
use crate::serve_args::NbdAddress;
use crate::service::FilePool;

/// The pools whose devices are exported, by the names of their directories.
#[derive(Clone)]
pub struct PoolExports {
    pools: Arc<Vec<(String, Arc<FilePool>)>>,
}

impl PoolExports {
    /// Exports all devices of these pools.
    pub fn new(pools: Vec<(String, Arc<FilePool>)>) -> Self {
        PoolExports {
            pools: Arc::new(pools),
        }
    }

    /// The pool and the device that `name` means, or none.
    fn find(&self, name: &str) -> Option<(&Arc<FilePool>, DeviceName)> {
        if let Some((label, device)) = name.split_once('/') {
            let (_, pool) = self.pools.iter().find(|(known, _)| known == label)?;
            return Some((pool, device.parse().ok()?));
        }
        let device: DeviceName = name.parse().ok()?;
        if let [(_, pool)] = self.pools.as_slice() {
            return Some((pool, device));
        }
        let mut having = self
            .pools
            .iter()
            .filter(|(_, pool)| pool.info(&device).is_ok());
        match (having.next(), having.next()) {
            (Some((_, pool)), None) => Some((pool, device)),
            _ => None,
        }
    }
}

impl Exports for PoolExports {
    type Host = FileHost;

    fn list(&self) -> Vec<String> {
        let one_pool = self.pools.len() == 1;
        let named = |label: &String, device: &DeviceName| {
            if one_pool {
                device.to_string()
            } else {
                format!("{label}/{device}")
            }
        };
        self.pools
            .iter()
            .flat_map(|(label, pool)| {
                pool.devices()
                    .into_iter()
                    .map(move |info| named(label, &info.name))
            })
            .collect()
    }

    fn open(&self, name: &str) -> Result<Option<ThinDevice<FileHost>>, Error> {
        let Some((pool, device)) = self.find(name) else {
            return Ok(None);
        };
        match pool.open_device(&device) {
            Ok(device) => Ok(Some(device)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(cause) => Err(cause),
        }
    }
}

/// Starts serving exports on an address.
///
/// # Errors
/// What stopped it: the address is taken, or is none to be served; certificates that cannot be used.
pub fn start_server(
    address: &NbdAddress,
    tcp_clients: TcpClients,
    connections_max: usize,
    exports: PoolExports,
) -> Result<Server, CallError> {
    let listen = match address {
        NbdAddress::Unix(path) => Listen::Unix(path.clone()),
        NbdAddress::Tcp(address) => Listen::Tcp(*address),
    };
    let config = Config {
        listen,
        tcp_clients,
        limits: Limits {
            connections_max,
            ..Limits::default()
        },
    };
    Server::start(config, exports).map_err(|cause| {
        let kind = match &cause {
            nbd_server::Error::NotLoopback(_)
            | nbd_server::Error::NotASocket(_)
            | nbd_server::Error::NotOurs { .. }
            | nbd_server::Error::Certificates { .. } => CallErrorKind::Invalid,
            nbd_server::Error::InUse(_) => CallErrorKind::Busy,
            nbd_server::Error::Io { source, .. } => CallError::io("", source).kind,
            _ => CallErrorKind::Other,
        };
        CallError::new(kind, format!("nbd: {address}: {cause}"))
    })
}

/// Where a server listens, with the port that was chosen.
pub fn address_of(server: &Server) -> NbdAddress {
    match server.address() {
        Listen::Unix(path) => NbdAddress::Unix(path.clone()),
        Listen::Tcp(address) => NbdAddress::Tcp(*address),
    }
}
