//! The configurations that files and flags give, renewed when a file changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::{Resumption, danger::ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use crate::files::{self, Stamp};
use crate::verify::{Clients, Rules, Servers};
use crate::{Error, Limits};

/// Files are looked at no more often than this.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What an endpoint is told about TLS. Empty paths are not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The certificate that a listener shows, and a dialer that has no other.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// The certificate that a dialer shows.
    pub client_cert_file: PathBuf,
    /// Its key.
    pub client_key_file: PathBuf,
    /// Whose signatures count; those that the system trusts when it is not given.
    pub trusted_ca_file: PathBuf,
    /// Revoked certificates, as one DER or several PEM.
    pub crl_file: PathBuf,
    /// A listener wants certificates of its clients. A file of authorities alone says so as well.
    pub client_cert_auth: bool,
    /// Only these common names of the other side, if there are any.
    pub allowed_cns: Vec<String>,
    /// Only certificates of the other side that are good for one of these, if there are any.
    pub allowed_hostnames: Vec<String>,
    /// A dialer takes any certificate.
    pub insecure_skip_verify: bool,
    /// Versions and suites.
    pub limits: Limits,
    /// Names of protocols that are offered, the best one first.
    pub alpn: Vec<Vec<u8>>,
}

impl Settings {
    /// Neither certificate nor key is named: there is nothing to listen with.
    pub fn is_empty(&self) -> bool {
        self.cert_file.as_os_str().is_empty() && self.key_file.as_os_str().is_empty()
    }

    /// Whether a listener refuses clients without a certificate.
    pub fn wants_client_certificates(&self) -> bool {
        self.client_cert_auth || !self.trusted_ca_file.as_os_str().is_empty()
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let all = [
            &self.cert_file,
            &self.key_file,
            &self.client_cert_file,
            &self.client_key_file,
            &self.trusted_ca_file,
            &self.crl_file,
        ];
        all.into_iter().map(PathBuf::as_path).filter(|path| !path.as_os_str().is_empty())
    }

    fn stamps(&self) -> Vec<Stamp> {
        self.paths().map(Stamp::of).collect()
    }

    /// Reads everything.
    fn load(&self) -> Result<Configs, Error> {
        let is_there = |path: &PathBuf| !path.as_os_str().is_empty();
        if !self.is_empty() && (is_there(&self.cert_file) != is_there(&self.key_file)) {
            return Err(Error::HalfPair { key: self.key_file.clone(), cert: self.cert_file.clone() });
        }
        if is_there(&self.client_cert_file) != is_there(&self.client_key_file) {
            let (key, cert) = (self.client_key_file.clone(), self.client_cert_file.clone());
            return Err(Error::HalfClientPair { key, cert });
        }
        if !self.allowed_cns.is_empty() && !self.allowed_hostnames.is_empty() {
            let (cns, hostnames) = (self.allowed_cns.clone(), self.allowed_hostnames.clone());
            return Err(Error::TwoRules { cns, hostnames });
        }
        let provider = self.limits.provider();
        let pair = |cert: &PathBuf, key: &PathBuf| match is_there(cert) {
            true => files::key_pair(cert, key, &provider).map(|pair| Some(Arc::new(pair))),
            false => Ok(None),
        };
        let own = pair(&self.cert_file, &self.key_file)?;
        let shown = pair(&self.client_cert_file, &self.client_key_file)?.or_else(|| own.clone());
        let rules = Rules {
            common_names: self.allowed_cns.clone(),
            hostnames: self.allowed_hostnames.clone(),
            revoked: match is_there(&self.crl_file) {
                true => files::revoked(&self.crl_file)?,
                false => Default::default(),
            },
        };
        let authorities = match is_there(&self.trusted_ca_file) {
            true => files::authorities(&self.trusted_ca_file)?,
            false => files::system_authorities(),
        };
        let server = match own {
            Some(own) => Some(Arc::new(self.server(own, &authorities, &rules, provider.clone())?)),
            None => None,
        };
        let servers = Servers {
            authorities: (!self.insecure_skip_verify).then_some(authorities),
            rules,
            algorithms: provider.signature_verification_algorithms,
        };
        Ok(Configs { server, client: Arc::new(self.client(shown, Arc::new(servers), provider)?) })
    }

    fn server(
        &self,
        own: Arc<CertifiedKey>,
        authorities: &files::Authorities,
        rules: &Rules,
        provider: Arc<CryptoProvider>,
    ) -> Result<ServerConfig, Error> {
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&self.limits.versions())?;
        let builder = match self.wants_client_certificates() {
            true => builder.with_client_cert_verifier(Arc::new(Clients::new(
                authorities.clone(),
                rules.clone(),
                provider,
            )?)),
            false => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        config.alpn_protocols.clone_from(&self.alpn);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn client(
        &self,
        shown: Option<Arc<CertifiedKey>>,
        servers: Arc<dyn ServerCertVerifier>,
        provider: Arc<CryptoProvider>,
    ) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&self.limits.versions())?;
        let builder = builder.dangerous().with_custom_certificate_verifier(servers);
        let mut config = match shown {
            Some(shown) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// What a handshake needs.
#[derive(Debug, Clone)]
pub struct Configs {
    /// For those that dial in; none without a certificate.
    pub server: Option<Arc<ServerConfig>>,
    /// For dialing.
    pub client: Arc<ClientConfig>,
}

/// Configurations that follow their files.
#[derive(Debug)]
pub struct Source {
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    configs: Configs,
    stamps: Vec<Stamp>,
    looked: Option<Instant>,
    /// A file changed at the last look. It may have been half written, and the rest have come within the same tick of
    /// the file system's clock: the next look reads again.
    again: bool,
    /// What was said last about files that cannot be used.
    said: String,
}

impl Source {
    /// Reads everything for the first time.
    ///
    /// # Errors
    /// Something is missing or wrong; the file is named.
    pub fn open(settings: Settings) -> Result<Source, Error> {
        let stamps = settings.stamps();
        let configs = settings.load()?;
        let state = State { configs, stamps, looked: None, again: true, said: String::new() };
        Ok(Source { settings, state: Mutex::new(state) })
    }

    /// What it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The configurations of now; reads files that have changed, so it may block for as long as a file takes.
    pub fn current(&self, now: Instant) -> Configs {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = |looked: Instant| now.saturating_duration_since(looked) >= LOOK_INTERVAL;
        if state.looked.is_none_or(due) {
            state.looked = Some(now);
            self.look(&mut state);
        }
        state.configs.clone()
    }

    fn look(&self, state: &mut State) {
        let stamps = self.settings.stamps();
        let changed = stamps != state.stamps;
        if !changed && !state.again {
            return;
        }
        state.stamps = stamps;
        match self.settings.load() {
            Ok(configs) => {
                state.configs = configs;
                state.again = changed;
                state.said.clear();
                if changed {
                    log::info!("TLS files have changed; new connections use them");
                }
            }
            Err(error) => {
                state.again = true;
                let error = error.to_string();
                if changed || state.said != error {
                    log::warn!(error = error.as_str(); "TLS files have changed and cannot be used; those before stay in use");
                    state.said = error;
                }
            }
        }
    }
}
