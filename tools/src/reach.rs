//! The way to an endpoint: TCP or a unix socket, with TLS or without.
//!
//! An endpoint that says `https` or `unixs` has TLS, one that says `http` has not, and any other has it when a flag speaks
//! of it. The tools' own check of certificates is the one of the server: rustls's usual one takes fewer of them than
//! etcd does.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint, Uri};
use trilith_tls::{Settings, Source, words};

use crate::exit::Failure;
use crate::flags::Flags;

/// What the flags say of TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    settings: Settings,
    /// Also for endpoints that do not say so.
    by_default: bool,
    /// For what certificates must be good, instead of the host that was dialed. Empty: nothing else.
    server_name: String,
    /// Read once, when the first endpoint needs it.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Reads `--cacert`, `--cert` and `--key`, and what the tool has beside them.
    ///
    /// # Errors
    /// Code 128: a file cannot be used.
    pub(crate) fn from_flags(flags: &Flags) -> Result<Tls, Failure> {
        let path = |name: &str| PathBuf::from(flags.text(name));
        let is_true = |name: &str| flags.has(name) && flags.bool(name);
        let settings = Settings {
            cert_file: path("cert"),
            key_file: path("key"),
            trusted_ca_file: path("cacert"),
            insecure_skip_verify: is_true("insecure-skip-tls-verify"),
            alpn: vec![b"h2".to_vec()],
            ..Settings::default()
        };
        let named = !settings.is_empty() || !settings.trusted_ca_file.as_os_str().is_empty();
        let wanted = flags.has("insecure-transport") && !flags.bool("insecure-transport");
        // Names that DNS gave stand for the domain that was asked, unless any answer will do.
        let asked = flags.has("discovery-srv") && !flags.bool("insecure-discovery");
        let server_name = if asked { flags.text("discovery-srv").to_owned() } else { String::new() };
        let by_default = named || wanted || settings.insecure_skip_verify || !server_name.is_empty();
        let tls = Tls { settings, by_default, server_name, config: OnceLock::new() };
        if by_default {
            tls.config()?;
        }
        Ok(tls)
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Failure> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let source = Source::open(self.settings.clone()).map_err(Failure::bad_args)?;
        Ok(self.config.get_or_init(|| source.current(Instant::now()).client).clone())
    }

    /// The way to an endpoint, as it stands on a command line. `tune` sets what the connection is like.
    ///
    /// # Errors
    /// Code 128: what stands there is no endpoint, or a file cannot be used.
    pub(crate) fn target(
        &self,
        endpoint: &str,
        tune: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Target, Failure> {
        let refuse = |why: &str| Failure::bad_args(format_args!("endpoint {endpoint:?}: {why}"));
        let (secure, place) = match endpoint.split_once("://") {
            Some(("http", rest)) => (false, Place::tcp(rest)),
            Some(("https", rest)) => (true, Place::tcp(rest)),
            // A path that begins with a slash is an absolute one.
            Some(("unix", path)) => (self.by_default, Place::unix(path)),
            Some(("unixs", path)) => (true, Place::unix(path)),
            Some((scheme, _)) => return Err(refuse(&format!("the scheme {scheme} is not supported"))),
            None => match endpoint.split_once(':') {
                Some(("unix", path)) => (self.by_default, Place::unix(path)),
                Some(("unixs", path)) => (true, Place::unix(path)),
                _ => (self.by_default, Place::tcp(endpoint)),
            },
        };
        let scheme = if secure { "https" } else { "http" };
        let authority = match &place {
            Place::Tcp(authority) => authority,
            Place::Unix(_) => "localhost",
        };
        let inner = Endpoint::from_shared(format!("{scheme}://{authority}"));
        let inner = inner.map_err(|error| refuse(&error.to_string()))?;
        let Some(host) = inner.uri().host().filter(|host| !host.is_empty()) else {
            return Err(refuse("no host"));
        };
        let tls = match secure {
            true => {
                let name = match self.server_name.as_str() {
                    "" => place.server_name(host),
                    name => name,
                };
                let name = ServerName::try_from(name.to_owned());
                let name = name.map_err(|error| refuse(&error.to_string()))?;
                Some((name, self.config()?))
            }
            false => None,
        };
        Ok(Target { dial: Dial { place, tls }, endpoint: tune(inner) })
    }
}

#[derive(Clone, Debug)]
enum Place {
    /// A host with its port, perhaps with a path behind it that means nothing.
    Tcp(String),
    Unix(PathBuf),
}

impl Place {
    fn tcp(text: &str) -> Place {
        Place::Tcp(text.to_owned())
    }

    fn unix(path: &str) -> Place {
        Place::Unix(PathBuf::from(path))
    }

    /// For what the certificate at the other end must be good: the host, or, as in etcd, the last part of a path up to a
    /// colon.
    fn server_name<'a>(&'a self, host: &'a str) -> &'a str {
        match self {
            Place::Tcp(_) => host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host),
            Place::Unix(path) => {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.split_once(':').map_or(name, |(name, _)| name)
            }
        }
    }
}

/// An endpoint, and how to get there.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    endpoint: Endpoint,
    dial: Dial,
}

impl Target {
    #[cfg(test)]
    pub(crate) fn shown(&self) -> String {
        match &self.dial.place {
            Place::Tcp(_) => self.endpoint.uri().to_string(),
            Place::Unix(path) => format!("{}{}", self.endpoint.uri(), path.display()),
        }
    }

    /// Connects once. The text says why it came to nothing.
    pub(crate) async fn connect(&self) -> Result<Channel, String> {
        let connected = match &self.dial {
            Dial { place: Place::Tcp(_), tls: None } => self.endpoint.connect().await,
            dial => {
                let dial = dial.clone();
                let connector = tower::service_fn(move |uri: Uri| {
                    let dial = dial.clone();
                    async move { dial.connect(&uri).await.map(TokioIo::new) }
                });
                self.endpoint.connect_with_connector(connector).await
            }
        };
        connected.map_err(|error| {
            // The outer ones say no more than that there was no connection.
            let mut inner: &dyn std::error::Error = &error;
            while let Some(source) = inner.source() {
                inner = source;
            }
            inner.to_string()
        })
    }
}

#[derive(Clone, Debug)]
struct Dial {
    place: Place,
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
}

impl Dial {
    async fn connect(self, uri: &Uri) -> io::Result<Box<dyn Stream>> {
        match self.place {
            Place::Tcp(_) => {
                let host = uri.host().unwrap_or_default();
                let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
                let socket = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
                socket.set_nodelay(true)?;
                shake(self.tls, socket).await
            }
            Place::Unix(path) => shake(self.tls, UnixStream::connect(path).await?).await,
        }
    }
}

async fn shake(
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    socket: impl Stream + 'static,
) -> io::Result<Box<dyn Stream>> {
    let Some((name, config)) = tls else { return Ok(Box::new(socket)) };
    let shaken = TlsConnector::from(config).connect(name, socket).await;
    let stream = shaken.map_err(|error| {
        io::Error::new(error.kind(), format!("authentication handshake failed: {}", words(&error)))
    })?;
    Ok(Box::new(stream))
}

/// A connection of whatever kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
