//! The file with certificates that a queue's settings may name.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// As given.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It can be read, but no server would be trusted with it.
    #[error("{} holds no certificate in PEM form", path.display())]
    Empty {
        /// As given.
        path: PathBuf,
        /// What is wrong with the first certificate, if there is one.
        #[source]
        source: Option<pem::Error>,
    },
}

/// Returns the file's content, which holds a certificate. It is read at start, so that a wrong path is noticed before
/// the first push.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CaError> {
    let read = std::fs::read(path);
    let content = read.map_err(|source| CaError::Read { path: path.to_owned(), source })?;
    match CertificateDer::pem_slice_iter(&content).next() {
        Some(Ok(_)) => Ok(content),
        Some(Err(source)) => Err(CaError::Empty { path: path.to_owned(), source: Some(source) }),
        None => Err(CaError::Empty { path: path.to_owned(), source: None }),
    }
}
