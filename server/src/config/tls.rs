//! The flags of TLS: certificates, keys, authorities, versions and suites, of both ports.

use std::path::PathBuf;

use trilith_tls::{Limits, Settings};

use super::parse::Given;
use super::url::Url;
use super::{flag_is_true, uint};

/// What a port is told about TLS.
#[derive(Debug, Clone, Default)]
pub struct Port {
    /// From the flags; with `auto` the certificate comes later.
    pub settings: Settings,
    /// Make a certificate that signs itself.
    pub auto: bool,
}

/// Both ports.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// That of clients.
    pub client: Port,
    /// That of peers.
    pub peer: Port,
    /// How long certificates that are made here are valid, in years.
    pub validity_years: u32,
}

impl Tls {
    pub(super) fn read(given: &Given, listen_client: &[Url], listen_peer: &[Url]) -> Result<Tls, String> {
        let suites = list(given, "cipher-suites");
        let limits = Limits::parse(given.text("tls-min-version"), given.text("tls-max-version"), &suites)?;
        let path = |name: &str| given.path(name).map(PathBuf::from).unwrap_or_default();
        let client = Settings {
            cert_file: path("cert-file"),
            key_file: path("key-file"),
            client_cert_file: path("client-cert-file"),
            client_key_file: path("client-key-file"),
            trusted_ca_file: path("trusted-ca-file"),
            crl_file: path("client-crl-file"),
            client_cert_auth: flag_is_true(given, "client-cert-auth"),
            allowed_cns: Vec::new(),
            allowed_hostnames: list(given, "client-cert-allowed-hostname"),
            insecure_skip_verify: false,
            limits: limits.clone(),
            // What a client gets that asks for HTTP/1.1 alone is up to the port.
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        let peer = Settings {
            cert_file: path("peer-cert-file"),
            key_file: path("peer-key-file"),
            client_cert_file: path("peer-client-cert-file"),
            client_key_file: path("peer-client-key-file"),
            trusted_ca_file: path("peer-trusted-ca-file"),
            crl_file: path("peer-crl-file"),
            client_cert_auth: flag_is_true(given, "peer-client-cert-auth"),
            allowed_cns: list(given, "peer-cert-allowed-cn"),
            allowed_hostnames: list(given, "peer-cert-allowed-hostname"),
            insecure_skip_verify: false,
            limits,
            alpn: vec![b"http/1.1".to_vec()],
        };
        let tls = Tls {
            client: Port { settings: client, auto: flag_is_true(given, "auto-tls") },
            peer: Port { settings: peer, auto: flag_is_true(given, "peer-auto-tls") },
            validity_years: uint(given, "self-signed-cert-validity")?,
        };
        let secure = |urls: &[Url]| urls.iter().find(|url| url.is_tls()).map(ToString::to_string);
        if let Some(url) = secure(listen_client).filter(|_| !tls.client.is_there()) {
            return Err(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            ));
        }
        if let Some(url) = secure(listen_peer).filter(|_| !tls.peer.is_there()) {
            return Err(format!("cannot listen on TLS for {url}: KeyFile and CertFile are not presented"));
        }
        Ok(tls)
    }
}

impl Port {
    /// Whether there is, or will be, a certificate to listen with.
    fn is_there(&self) -> bool {
        self.auto || !self.settings.is_empty()
    }
}

fn list(given: &Given, name: &str) -> Vec<String> {
    let texts = given.text(name).split(',').map(str::trim).filter(|text| !text.is_empty());
    texts.map(str::to_owned).collect()
}
