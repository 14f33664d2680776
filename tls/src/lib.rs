//! TLS as etcd's flags describe it: certificates, keys, authorities and revocations from files, made into rustls's
//! configurations.
//!
//! Promises: a [`Source`] that was opened once always has a configuration; files that change are read again, and what
//! cannot be used is logged and changes nothing. Sessions are never resumed, so that every connection is checked whole.
//! Nothing here knows a socket or a clock: the time of a look comes from outside.
#![forbid(unsafe_code)]

mod certificate;
mod direct;
mod files;
mod limits;
mod source;
mod verify;
mod words;

pub use certificate::Facts;
pub use limits::Limits;
pub use source::{Configs, Settings, Source};
pub use words::words;

use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read.
    #[error("open {}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that does not hold what it should.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// One of certificate and key alone.
    #[error("KeyFile and CertFile must both be present[key: {}, cert: {}]", key.display(), cert.display())]
    HalfPair {
        /// The key's file, or empty.
        key: PathBuf,
        /// The certificate's file, or empty.
        cert: PathBuf,
    },
    /// The same of what is shown to servers.
    #[error(
        "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
        key.display(), cert.display()
    )]
    HalfClientPair {
        /// The key's file, or empty.
        key: PathBuf,
        /// The certificate's file, or empty.
        cert: PathBuf,
    },
    /// Two rules of which only one may be given.
    #[error("AllowedCNs and AllowedHostnames are mutually exclusive (cns={cns:?}, hostnames={hostnames:?})")]
    TwoRules {
        /// Common names.
        cns: Vec<String>,
        /// Host names.
        hostnames: Vec<String>,
    },
    /// Certificates of clients are to be checked, and there is nothing to check them with.
    #[error("no certificate authority is trusted: no file is named, and this system has none")]
    NoAuthorities,
    /// What rustls says.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}
