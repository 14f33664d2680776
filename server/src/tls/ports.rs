//! What the flags make of TLS at both ports, and for dialing peers.

use std::path::Path;
use std::sync::Arc;

use trilith_tls::{Settings, Source};

use super::{Acceptor, Connector, Handshakes, self_signed};
use crate::config::Config;
use crate::config::tls::Port;
use crate::config::url::Url;

/// TLS of a member.
#[derive(Debug)]
pub struct Ports {
    /// For those who dial in at the client port; none when none of its URLs has TLS.
    pub client: Option<Acceptor>,
    /// The same for peers.
    pub peer: Option<Acceptor>,
    /// For dialing peers.
    pub dialer: Connector,
}

impl Ports {
    /// Reads all files, and makes the certificates of `--auto-tls` and `--peer-auto-tls`.
    ///
    /// # Errors
    /// A file cannot be read, written or used.
    pub fn open(config: &Config) -> Result<Ports, String> {
        let handshakes = Handshakes::default();
        let fixtures = config.data_dir.join("fixtures");
        let years = config.tls.validity_years;
        let source = |settings: &Settings, urls: &[Url]| match urls.iter().any(Url::is_tls) {
            true => Source::open(settings.clone()).map(Arc::new).map(Some).map_err(|error| error.to_string()),
            false => Ok(None),
        };

        let urls = &config.listen_client_urls;
        let client =
            with_own_certificate("client", &config.tls.client, urls, &fixtures.join("client"), years)?;
        let client = source(&client, urls)?.map(|source| Acceptor::for_clients(source, handshakes.clone()));

        let urls = &config.listen_peer_urls;
        let settings = with_own_certificate("peer", &config.tls.peer, urls, &fixtures.join("peer"), years)?;
        let peer = source(&settings, urls)?.map(|source| Acceptor::for_peers(source, handshakes.clone()));
        let dialer = Connector::new(settings, handshakes);
        let others = config.initial_cluster.iter().flat_map(|(_, urls)| urls);
        if others.chain(urls).any(Url::is_tls) {
            dialer.check().map_err(|error| error.to_string())?;
        }
        Ok(Ports { client, peer, dialer })
    }
}

/// The settings of a port, with a certificate that signs itself if one was asked for; says what has no effect.
fn with_own_certificate(
    name: &str,
    port: &Port,
    urls: &[Url],
    folder: &Path,
    years: u32,
) -> Result<Settings, String> {
    let settings = port.settings.clone();
    for url in urls.iter().filter(|url| !url.is_tls()) {
        let url = url.to_string();
        if !settings.is_empty() {
            log::warn!(port = name, url = url.as_str(); "scheme is http or unix while key and cert files are present; ignoring key and cert files");
        }
        if settings.client_cert_auth {
            log::warn!(port = name, url = url.as_str(); "scheme is http or unix while client cert auth is enabled; ignoring client cert auth for this URL");
        }
    }
    if !port.auto {
        return Ok(settings);
    }
    if !settings.is_empty() {
        log::warn!("ignoring {name} auto TLS since certs given");
        return Ok(settings);
    }
    self_signed(settings, folder, urls, years)
}
