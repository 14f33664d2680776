//! Versions and cipher suites, by the names that Go has for them.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, SupportedProtocolVersion, version};

/// Suites that Go knows and that are not there: they are broken, or give no forward secrecy.
const GO_ONLY: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// What may be negotiated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    tls13_only: bool,
    tls12_only: bool,
    /// Suites of TLS 1.2, as in Go; those of 1.3 are never left out. None: all.
    suites: Option<Vec<CipherSuite>>,
}

impl Limits {
    /// Reads `TLS1.2`, `TLS1.3` or nothing, twice, and Go's names of suites.
    ///
    /// # Errors
    /// etcd's texts; a suite of Go's that is not there is refused by name.
    pub fn parse(min: &str, max: &str, suites: &[String]) -> Result<Limits, String> {
        let (lowest, highest) = (version_of(min)?, version_of(max)?);
        if highest != 0 && lowest > highest {
            return Err(format!("min version ({min}) is greater than max version ({max})"));
        }
        if lowest == 13 && !suites.is_empty() {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
        }
        let suites = suites.iter().map(|name| suite_of(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(Limits {
            tls13_only: lowest == 13,
            tls12_only: highest == 12,
            suites: (!suites.is_empty()).then_some(suites),
        })
    }

    pub(crate) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        match (self.tls12_only, self.tls13_only) {
            (true, _) => vec![&version::TLS12],
            (_, true) => vec![&version::TLS13],
            _ => vec![&version::TLS13, &version::TLS12],
        }
    }

    /// The cryptography, with the suites that are left.
    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = rustls::crypto::ring::default_provider();
        if let Some(suites) = &self.suites {
            let is_tls13 =
                |suite: &rustls::SupportedCipherSuite| suite.version().version == version::TLS13.version;
            provider.cipher_suites.retain(|suite| is_tls13(suite) || suites.contains(&suite.suite()));
        }
        Arc::new(provider)
    }
}

fn version_of(text: &str) -> Result<u8, String> {
    match text {
        "" => Ok(0),
        "TLS1.2" => Ok(12),
        "TLS1.3" => Ok(13),
        _ => Err(format!("unexpected TLS version {text:?} (must be one of: TLS1.2, TLS1.3)")),
    }
}

fn suite_of(name: &str) -> Result<CipherSuite, String> {
    // Go has these two with and without the hash.
    let full = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => {
            format!("{name}_SHA256")
        }
        _ => name.to_owned(),
    };
    let all = rustls::crypto::ring::default_provider().cipher_suites;
    let go_name = |suite: CipherSuite| format!("{suite:?}").replace("TLS13_", "TLS_");
    match all.iter().map(rustls::SupportedCipherSuite::suite).find(|suite| go_name(*suite) == full) {
        Some(suite) => Ok(suite),
        None if GO_ONLY.contains(&name) => {
            Err(format!("TLS cipher suite {name:?} is not supported by Trilith"))
        }
        None => Err(format!("unexpected TLS cipher suite {name:?}")),
    }
}
