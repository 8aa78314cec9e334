//! Encryption of TCP, and client certificates.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::ServeError;

/// A client that does not get through by then never will.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What TLS is served with. All files are PEM.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// The certificate, with those that lead to the root behind it.
    pub certificate: PathBuf,
    /// Its key, which nobody else may be able to read.
    pub key: PathBuf,
    /// Who signs the certificates of clients.
    pub client_ca: Option<PathBuf>,
    /// Names (DNS or URI) in certificates of clients, each with the user that it acts as.
    pub certificates: BTreeMap<String, u32>,
}

/// With tokens, a client may come without a certificate.
pub(super) fn config(
    options: &TlsOptions,
    has_tokens: bool,
) -> Result<ServerTlsConfig, ServeError> {
    let certificate = read(&options.certificate)?;
    let key = read(&options.key)?;
    let key_mode = options.key.metadata().map_err(|source| failed(&options.key, source))?.mode();
    if key_mode & 0o077 != 0 {
        return Err(ServeError::KeyNotSecret { path: options.key.clone() });
    }
    let mut config = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .timeout(HANDSHAKE_TIMEOUT);
    if let Some(path) = &options.client_ca {
        config = config
            .client_ca_root(Certificate::from_pem(read(path)?))
            .client_auth_optional(has_tokens);
    }
    Ok(config)
}

fn failed(path: &Path, source: std::io::Error) -> ServeError {
    ServeError::ReadTls { path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Vec<u8>, ServeError> {
    std::fs::read(path).map_err(|source| failed(path, source))
}
