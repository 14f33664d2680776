//! TLS for both ports and for dialing peers: handshakes, and the streams that come of them.
//!
//! Promises: handshakes run on a thread of their own, so that their cryptography and the files that they look at keep
//! nobody else waiting; each has [`HANDSHAKE_TIMEOUT`], and of those that dial in at most [`HANDSHAKES_MAX`] are under
//! way at a port: one more ends the one that has been waiting longest. What is refused is logged and closed. A stream
//! moves to the runtime that serves it when it is ready.
//!
//! What certificates must be is `trilith_tls`'s affair.

mod origin;
mod ports;
mod self_signed;
mod stream;

pub use ports::Ports;
pub use self_signed::self_signed;
pub use stream::{Parked, Stream};

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::Acceptor as Hello;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
use trilith_tls::{Configs, Facts, Settings, Source, words};

use stream::Below;

use crate::config::url::Url;
use crate::socket::Socket;

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes of those that dial in, at a port at a time.
pub const HANDSHAKES_MAX: usize = 512;

/// The thread where handshakes run. Clones share it; it begins with the first of them, and ends with the last clone.
#[derive(Debug, Clone, Default)]
pub struct Handshakes(Arc<Mutex<Option<Thread>>>);

#[derive(Debug)]
struct Thread {
    runtime: runtime::Handle,
    /// Going away, it ends the thread.
    _alive: oneshot::Sender<()>,
}

impl Thread {
    fn start() -> io::Result<Thread> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("tls".to_owned()).spawn(move || {
            // An error is the end that is waited for.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Thread { runtime: handle, _alive: alive })
    }
}

impl Handshakes {
    fn spawn<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let mut thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = match &mut *thread {
            Some(thread) => thread,
            none => none.insert(Thread::start()?),
        };
        Ok(thread.runtime.spawn(handshake))
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
    pub async fn accept(&self, socket: impl Into<Socket>) -> Option<Stream> {
        let socket = socket.into();
        let from = Origin(socket.peer_addr().ok()?);
        let socket = socket.park().ok()?;
        let own = self.0.clone();
        let handshake = self.0.handshakes.spawn(async move {
            let mut server_name = String::new();
            let answer = own.answer(socket.adopt()?, from, &mut server_name);
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
        let handshake = match handshake {
            Ok(handshake) => handshake,
            Err(error) => {
                self.0.log(from, "", &Refusal::from(error));
                return None;
            }
        };
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

/// The address of one that dialed in; at a unix socket there is none.
#[derive(Debug, Clone, Copy)]
struct Origin(Option<SocketAddr>);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("@"),
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
        socket: Socket,
        from: Origin,
        server_name: &mut String,
    ) -> Result<Parked, Refusal> {
        let hello = LazyConfigAcceptor::new(Hello::default(), Below::Live(socket)).await?;
        hello.client_hello().server_name().unwrap_or_default().clone_into(server_name);
        let Configs { server: Some(config), .. } = self.source.current(Instant::now()) else {
            unreachable!("a listener is opened with a certificate");
        };
        let tls = hello.into_stream(config).await?;
        let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(Facts::of);
        let shown = shown.transpose().map_err(|error| io::Error::other(format!("{error:?}")))?;
        if let Some(facts) = &shown
            && let Err(error) = origin::check(facts, from.0.map(|from| from.ip())).await
        {
            return Err(Refusal { error: io::Error::other(error), shown });
        }
        let shown = shown.filter(|_| self.source.settings().client_cert_auth);
        let common_name = shown.map(|facts| facts.common_name).filter(|name| !name.is_empty());
        Ok(Stream::tls(tls.into(), common_name.map(Arc::from)).park()?)
    }

    fn log(&self, from: Origin, server_name: &str, refusal: &Refusal) {
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

/// Dials peers, over TLS where a URL says so. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Connector(Arc<Dialing>);

#[derive(Debug, Default)]
struct Dialing {
    settings: Settings,
    /// Opened before the first handshake.
    source: OnceLock<Source>,
    handshakes: Handshakes,
}

impl Dialing {
    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let source = match self.source.get() {
            Some(source) => source,
            None => {
                let source = Source::open(self.settings.clone()).map_err(io::Error::other)?;
                self.source.get_or_init(|| source)
            }
        };
        Ok(source.current(Instant::now()).client)
    }
}

impl Connector {
    /// With what the settings name, which is read when it is needed for the first time.
    pub fn new(settings: Settings, handshakes: Handshakes) -> Connector {
        Connector(Arc::new(Dialing { settings, source: OnceLock::new(), handshakes }))
    }

    /// Reads the files now.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn check(&self) -> io::Result<()> {
        self.0.config().map(drop)
    }

    /// Dials a URL within a time; a handshake has its own. Writes fail when nothing goes on for `stall_max`.
    ///
    /// # Errors
    /// Nobody is there, or no handshake came about.
    pub async fn dial(&self, url: &Url, limit: Duration, stall_max: Duration) -> io::Result<Stream> {
        let socket = match tokio::time::timeout(limit, Socket::connect(url)).await {
            Ok(socket) => socket?.with_stall_limit(stall_max),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if url.is_tls() { self.connect(url.host(), socket).await } else { Ok(socket.into()) }
    }

    /// Shakes hands with the server at the other end, which must have a certificate for `host`: a name, or an address
    /// with or without brackets.
    ///
    /// # Errors
    /// In the words of Go's library. Who drops the future ends the handshake.
    pub async fn connect(&self, host: &str, socket: impl Into<Socket>) -> io::Result<Stream> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let socket = socket.into().park()?;
        let own = self.0.clone();
        let handshake = self.0.handshakes.spawn(async move {
            let connector = TlsConnector::from(own.config()?);
            let shaking = connector.connect(name, Below::Live(socket.adopt()?));
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await {
                Ok(Ok(tls)) => Stream::tls(tls.into(), None).park(),
                Ok(Err(error)) => Err(io::Error::new(error.kind(), words(&error))),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })?;
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
