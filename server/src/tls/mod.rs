//! TLS for both ports and for dialing peers: handshakes, and the streams that come of them.
//!
//! Promises: handshakes run on a thread of their own, so that their cryptography and the files that they look at keep
//! nobody else waiting; each has [`HANDSHAKE_TIMEOUT`], and of those that dial in at most [`HANDSHAKES_MAX`] are under
//! way at a port: one more ends the one that has been waiting longest. What is refused is logged and closed. A stream
//! moves to the runtime that serves it when it is ready.
//!
//! What certificates must be is `trilith_tls`'s affair.

mod origin;
mod self_signed;
mod stream;

pub use self_signed::self_signed;
pub use stream::{Parked, Stream};

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::Acceptor as Hello;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
use trilith_tls::{Configs, Facts, Source, words};

use stream::Socket;

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes of those that dial in, at a port at a time.
pub const HANDSHAKES_MAX: usize = 512;

/// The thread where handshakes run. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Handshakes {
    runtime: runtime::Handle,
    _alive: Arc<oneshot::Sender<()>>,
}

impl Handshakes {
    /// Starts the thread.
    pub fn start() -> io::Result<Handshakes> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("tls".to_owned()).spawn(move || {
            // An error is the end that is waited for.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Handshakes { runtime: handle, _alive: Arc::new(alive) })
    }
}

/// What a listener does with those that dial in.
#[derive(Debug, Clone)]
pub struct Acceptor(Arc<Listening>);

#[derive(Debug)]
struct Listening {
    source: Arc<Source>,
    handshakes: Handshakes,
    /// What is logged of one that is refused.
    refused: &'static str,
    /// Those under way, the oldest first.
    under_way: Mutex<VecDeque<AbortHandle>>,
}

impl Acceptor {
    /// For the port of clients.
    pub fn for_clients(source: Arc<Source>, handshakes: Handshakes) -> Acceptor {
        Acceptor::new(source, handshakes, "rejected connection on client endpoint")
    }

    /// For the port of peers.
    pub fn for_peers(source: Arc<Source>, handshakes: Handshakes) -> Acceptor {
        Acceptor::new(source, handshakes, "rejected connection on peer endpoint")
    }

    fn new(source: Arc<Source>, handshakes: Handshakes, refused: &'static str) -> Acceptor {
        Acceptor(Arc::new(Listening { source, handshakes, refused, under_way: Mutex::default() }))
    }

    /// Shakes hands; none when it came to nothing, which has been logged then.
    pub async fn accept(&self, socket: TcpStream) -> Option<Stream> {
        let from = socket.peer_addr().ok()?;
        let socket = socket.into_std().ok()?;
        let own = self.0.clone();
        let handshake = self.0.handshakes.runtime.spawn(async move {
            let mut server_name = String::new();
            let answer = own.answer(TcpStream::from_std(socket)?, from, &mut server_name);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, answer).await {
                Ok(Ok(parked)) => Ok(parked),
                Ok(Err(refusal)) => {
                    own.log(from, &server_name, &refusal);
                    Err(refusal.error)
                }
                Err(_) => {
                    let late = Refusal::from(io::Error::from(io::ErrorKind::TimedOut));
                    own.log(from, &server_name, &late);
                    Err(late.error)
                }
            }
        });
        self.0.make_room(handshake.abort_handle());
        match handshake.await {
            Ok(done) => done.and_then(Parked::adopt).ok(),
            Err(_) => {
                let ended = io::Error::other("too many handshakes are under way, and this was the oldest");
                self.0.log(from, "", &Refusal::from(ended));
                None
            }
        }
    }
}

/// Why one that dialed in is sent away.
struct Refusal {
    error: io::Error,
    /// The certificate that it showed, if it came so far.
    shown: Option<Facts>,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal { error, shown: None }
    }
}

impl Listening {
    /// Takes a handshake in, and ends the oldest when they are too many.
    fn make_room(&self, handshake: AbortHandle) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|other| !other.is_finished());
        under_way.push_back(handshake);
        if under_way.len() > HANDSHAKES_MAX
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.abort();
        }
    }

    async fn answer(
        &self,
        socket: TcpStream,
        from: SocketAddr,
        server_name: &mut String,
    ) -> Result<Parked, Refusal> {
        let hello = LazyConfigAcceptor::new(Hello::default(), Socket::Live(socket)).await?;
        hello.client_hello().server_name().unwrap_or_default().clone_into(server_name);
        let Configs { server: Some(config), .. } = self.source.current(Instant::now()) else {
            unreachable!("a listener is opened with a certificate");
        };
        let tls = hello.into_stream(config).await?;
        let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(Facts::of);
        let shown = shown.transpose().map_err(|error| io::Error::other(format!("{error:?}")))?;
        if let Some(facts) = &shown
            && let Err(error) = origin::check(facts, from.ip()).await
        {
            return Err(Refusal { error: io::Error::other(error), shown });
        }
        let shown = shown.filter(|_| self.source.settings().client_cert_auth);
        let common_name = shown.map(|facts| facts.common_name).filter(|name| !name.is_empty());
        Ok(Stream::tls(tls.into(), common_name.map(Arc::from)).park()?)
    }

    fn log(&self, from: SocketAddr, server_name: &str, refusal: &Refusal) {
        let (from, error) = (from.to_string(), words(&refusal.error));
        match &refusal.shown {
            Some(facts) => {
                let addresses: Vec<_> = facts.ip_addresses.iter().map(ToString::to_string).collect();
                let (addresses, names) = (addresses.join(","), facts.dns_names.join(","));
                log::warn!(
                    "remote-addr" = from.as_str(), "server-name" = server_name,
                    "ip-addresses" = addresses.as_str(), "dns-names" = names.as_str(), error = error.as_str();
                    "{}", self.refused
                );
            }
            None => log::warn!(
                "remote-addr" = from.as_str(), "server-name" = server_name, error = error.as_str();
                "{}", self.refused
            ),
        }
    }
}

/// Dials peers.
#[derive(Debug, Clone)]
pub struct Connector {
    source: Arc<Source>,
    handshakes: Handshakes,
}

impl Connector {
    /// With the certificate and the authorities of a source.
    pub fn new(source: Arc<Source>, handshakes: Handshakes) -> Connector {
        Connector { source, handshakes }
    }

    /// Shakes hands with the server at the other end, which must have a certificate for `host`: a name, or an address
    /// with or without brackets.
    ///
    /// # Errors
    /// In the words of Go's library. Who drops the future ends the handshake.
    pub async fn connect(&self, host: &str, socket: TcpStream) -> io::Result<Stream> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let socket = socket.into_std()?;
        let source = self.source.clone();
        let handshake = self.handshakes.runtime.spawn(async move {
            let connector = TlsConnector::from(source.current(Instant::now()).client);
            let shaking = connector.connect(name, Socket::Live(TcpStream::from_std(socket)?));
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await {
                Ok(Ok(tls)) => Stream::tls(tls.into(), None).park(),
                Ok(Err(error)) => Err(io::Error::new(error.kind(), words(&error))),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        });
        let _guard = EndsWithMe(handshake.abort_handle());
        handshake.await.map_err(io::Error::other)??.adopt()
    }
}

/// Ends a task that nobody waits for any more.
struct EndsWithMe(AbortHandle);

impl Drop for EndsWithMe {
    fn drop(&mut self) {
        self.0.abort();
    }
}
