//! Sockets that members listen on and dial: TCP, and those that have a place among the files.
//!
//! Promises: what an earlier process left at a unix socket's path is replaced and anything else there is not touched; the
//! file goes with its listener. How long a read may take depends on what is read, so whoever reads says so. A connection moves between runtimes as long as no task waits on it.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::url::Url;

/// A bound socket, on the runtime that bound it.
#[derive(Debug)]
pub struct Listener(Bound);

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: Unlinks },
}

/// Removes a socket's file.
#[derive(Debug)]
struct Unlinks(PathBuf);

impl Drop for Unlinks {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds the address of a URL, whatever is spoken there. Runs inside a runtime.
    ///
    /// # Errors
    /// The text names the address.
    pub fn bind(url: &Url) -> io::Result<Listener> {
        let named = |kind: &str, address: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("listen {kind} {address}: bind: {error}"))
        };
        if url.host_port().is_none() {
            let listener = bind_unix(Path::new(&url.address));
            return listener.map(Listener).map_err(|error| named("unix", &url.address, error));
        }
        let address = url.bind_address().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        let listener = StdTcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        match listener {
            Ok(listener) => Ok(Listener(Bound::Tcp(listener))),
            Err(error) => Err(named("tcp", &address.to_string(), error)),
        }
    }

    /// Waits for somebody who dials in.
    pub async fn accept(&self) -> io::Result<Socket> {
        match &self.0 {
            Bound::Tcp(listener) => listener.accept().await.map(|(socket, _)| {
                // Fails only on a socket that is gone already.
                let _ = socket.set_nodelay(true);
                Socket::from(socket)
            }),
            Bound::Unix { listener, .. } => listener.accept().await.map(|(socket, _)| Socket::from(socket)),
        }
    }

    /// With the port that the system chose for port 0; none for a unix socket.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match &self.0 {
            Bound::Tcp(listener) => listener.local_addr().map(Some),
            Bound::Unix { .. } => Ok(None),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Bound> {
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    Ok(Bound::Unix { listener: UnixListener::bind(path)?, _file: Unlinks(path.to_owned()) })
}

/// A connection. Its writes fail when the other end takes nothing for too long, if a limit was set.
#[derive(Debug)]
pub struct Socket {
    kind: Kind,
    stall_max: Option<Duration>,
    /// Since when a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection between two runtimes.
#[derive(Debug)]
pub struct Parked {
    kind: ParkedKind,
    stall_max: Option<Duration>,
}

#[derive(Debug)]
enum ParkedKind {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Socket {
        Socket::new(Kind::Tcp(socket), None)
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Socket {
        Socket::new(Kind::Unix(socket), None)
    }
}

impl Socket {
    fn new(kind: Kind, stall_max: Option<Duration>) -> Socket {
        Socket { kind, stall_max, stalled: None }
    }

    /// Dials the address of a URL, whatever is spoken there.
    pub async fn connect(url: &Url) -> io::Result<Socket> {
        match url.host_port() {
            None => UnixStream::connect(&url.address).await.map(Socket::from),
            Some(address) => {
                let socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                Ok(Socket::from(socket))
            }
        }
    }

    /// From now on writes fail when nothing goes on for so long.
    #[must_use]
    pub fn with_stall_limit(self, limit: Duration) -> Socket {
        Socket { stall_max: Some(limit), ..self }
    }

    /// Who dialed in, if that has an address.
    pub fn peer_addr(&self) -> io::Result<Option<SocketAddr>> {
        match &self.kind {
            Kind::Tcp(socket) => socket.peer_addr().map(Some),
            Kind::Unix(_) => Ok(None),
        }
    }

    /// Takes the connection off its runtime.
    pub fn park(self) -> io::Result<Parked> {
        let kind = match self.kind {
            Kind::Tcp(socket) => ParkedKind::Tcp(socket.into_std()?),
            Kind::Unix(socket) => ParkedKind::Unix(socket.into_std()?),
        };
        Ok(Parked { kind, stall_max: self.stall_max })
    }

    /// Waits for the first bytes and looks at some of them; they are read again later. None at the end of the stream.
    pub async fn peek(&self, first: &mut [u8]) -> io::Result<usize> {
        match &self.kind {
            Kind::Tcp(socket) => socket.peek(first).await,
            Kind::Unix(socket) => {
                let look = || {
                    let seen = rustix::net::recv(socket, &mut *first, RecvFlags::PEEK | RecvFlags::DONTWAIT);
                    seen.map(|(n, _)| n).map_err(io::Error::from)
                };
                socket.async_io(Interest::READABLE, look).await
            }
        }
    }

    /// Passes on what a write came to, and turns waiting for too long into an error.
    fn limit<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(stall_max) = self.stall_max else { return outcome };
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let until = Instant::now() + stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(until)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Parked {
    /// Puts the connection on the runtime that runs this.
    pub fn adopt(self) -> io::Result<Socket> {
        let kind = match self.kind {
            ParkedKind::Tcp(socket) => Kind::Tcp(TcpStream::from_std(socket)?),
            ParkedKind::Unix(socket) => Kind::Unix(UnixStream::from_std(socket)?),
        };
        Ok(Socket::new(kind, self.stall_max))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Kind::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let outcome = match &mut own.kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Kind::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
        };
        own.limit(outcome, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let outcome = match &mut own.kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Kind::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        };
        own.limit(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Kind::Unix(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Kind::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
