//! The certificates by which server and clients know each other.
//!
//! They are files of one directory, under the names that QEMU, libnbd and nbdkit have for them:
//!
//! ```text
//! ca-cert.pem      whose certificates are believed: every client must have one signed by it
//! ca-crl.pem       which of them are revoked; need not be there
//! server-cert.pem  our certificate, with those between it and the CA, if there are any
//! server-key.pem   its private key, which not everybody may read
//! ```
//!
//! They are read anew when one was changed and a client asks for TLS. If that fails, what was read before stays in
//! force. Sessions are not resumed: a client shows its certificate on every connection, so that one that is no
//! longer believed is of no use from then on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::error::Error;

const CA: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";
const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";

/// What tells one content of a file from another: inode, size, and the time of the last change.
type Stamp = Option<(u64, u64, i64, i64)>;

/// A directory of certificates, and what was read from it.
pub(crate) struct Certificates {
    directory: PathBuf,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    /// What the files were when they were last read, or tried to be.
    stamps: [Stamp; 4],
}

impl Certificates {
    pub(crate) fn read(directory: &Path) -> Result<Self, Error> {
        let stamps = stamps(directory);
        let config = read_config(directory)?;
        Ok(Certificates {
            directory: directory.to_owned(),
            state: Mutex::new(State { config, stamps }),
        })
    }

    /// What TLS is to be begun with now.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock();
        let stamps = stamps(&self.directory);
        if stamps != state.stamps {
            state.stamps = stamps;
            match read_config(&self.directory) {
                Ok(config) => {
                    tracing::info!("{}: read again", self.directory.display());
                    state.config = config;
                }
                Err(cause) => tracing::warn!("{cause}; what was read before stays in force"),
            }
        }
        Arc::clone(&state.config)
    }
}

fn stamps(directory: &Path) -> [Stamp; 4] {
    [CA, REVOKED, CERTIFICATE, KEY].map(|name| {
        let metadata = fs::metadata(directory.join(name)).ok()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Some((metadata.ino(), metadata.size(), changed.0, changed.1))
    })
}

fn read_config(directory: &Path) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let chain: Vec<CertificateDer<'static>> = read_all(&directory.join(CERTIFICATE))?;
    let key = read_key(&directory.join(KEY))?;
    let in_directory = |cause: rustls::Error| Error::Certificates {
        path: directory.to_owned(),
        reason: format!("{CERTIFICATE} and {KEY}: {cause}"),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(in_directory)?
        .with_client_cert_verifier(read_verifier(directory, provider)?)
        .with_single_cert(chain, key)
        .map_err(in_directory)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What clients' certificates are judged by.
fn read_verifier(
    directory: &Path,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let path = directory.join(CA);
    let bad = |cause: &dyn std::fmt::Display| Error::Certificates {
        path: path.clone(),
        reason: cause.to_string(),
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_all(&path)? {
        roots.add(certificate).map_err(|cause| bad(&cause))?;
    }
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let revoked = directory.join(REVOKED);
    if revoked.exists() {
        verifier = verifier
            .with_crls(read_all::<CertificateRevocationListDer<'static>>(&revoked)?)
            .enforce_revocation_expiration();
    }
    verifier.build().map_err(|cause| match cause {
        VerifierBuilderError::InvalidCrl(_) => Error::Certificates {
            path: revoked,
            reason: format!("{cause}: expected version 2, with a number"),
        },
        cause => bad(&cause),
    })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let metadata = fs::metadata(path).map_err(Error::io(path.display().to_string()))?;
    if metadata.mode() & 0o007 != 0 {
        return Err(Error::Certificates {
            path: path.to_owned(),
            reason: "everybody may use this private key: chmod o-rwx it".to_owned(),
        });
    }
    PrivateKeyDer::from_pem_file(path).map_err(|cause| unreadable(path, cause))
}

/// All objects of one kind in a file; there must be one.
fn read_all<T: PemObject>(path: &Path) -> Result<Vec<T>, Error> {
    let objects = T::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<T>, _>>)
        .map_err(|cause| unreadable(path, cause))?;
    if objects.is_empty() {
        return Err(unreadable(path, pem::Error::NoItemsFound));
    }
    Ok(objects)
}

fn unreadable(path: &Path, cause: pem::Error) -> Error {
    match cause {
        pem::Error::Io(cause) => Error::io(path.display().to_string())(cause),
        pem::Error::NoItemsFound => Error::Certificates {
            path: path.to_owned(),
            reason: "what is expected in it is not there, in PEM form".to_owned(),
        },
        cause => Error::Certificates {
            path: path.to_owned(),
            reason: cause.to_string(),
        },
    }
}
