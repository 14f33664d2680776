//! Connections between members: TCP or a unix socket, with a limit on how long a write may make no progress.
//!
//! How long a read may take depends on what is read, so whoever reads says so.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::PeerError;
use crate::config::url::Url;

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection whose writes fail when the other end takes nothing for too long.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    stall_max: Duration,
    /// Since when a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// Connects to a peer URL.
pub(super) async fn connect(url: &str, limit: Duration, stall_max: Duration) -> Result<Wire, PeerError> {
    let parsed = Url::parse(url).map_err(PeerError::Url)?;
    let connecting = async {
        match (&*parsed.scheme, parsed.host_port()) {
            ("http", Some(address)) => TcpStream::connect(address).await.and_then(|socket| {
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            }),
            ("unix", _) => UnixStream::connect(&parsed.address).await.map(Socket::Unix),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "TLS is not supported yet between members")),
        }
    };
    let socket = match timeout(limit, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    match socket {
        Ok(socket) => Ok(Wire { socket, stall_max, stalled: None }),
        Err(error) => Err(PeerError::Connect { url: url.to_owned(), error }),
    }
}

impl Wire {
    /// An accepted connection.
    pub(super) fn tcp(socket: TcpStream, stall_max: Duration) -> Wire {
        // A connection that is gone already says so at its first use.
        let _ = socket.set_nodelay(true);
        Wire { socket: Socket::Tcp(socket), stall_max, stalled: None }
    }

    /// An accepted connection.
    pub(super) fn unix(socket: UnixStream, stall_max: Duration) -> Wire {
        Wire { socket: Socket::Unix(socket), stall_max, stalled: None }
    }

    /// Passes on what a write came to, and turns waiting for too long into an error.
    fn limit<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let until = Instant::now() + self.stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(until)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(socket) => pin!(socket).poll_read(context, buffer),
            Socket::Unix(socket) => pin!(socket).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = match &mut self.socket {
            Socket::Tcp(socket) => pin!(socket).poll_write(context, bytes),
            Socket::Unix(socket) => pin!(socket).poll_write(context, bytes),
        };
        self.limit(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = match &mut self.socket {
            Socket::Tcp(socket) => pin!(socket).poll_write_vectored(context, parts),
            Socket::Unix(socket) => pin!(socket).poll_write_vectored(context, parts),
        };
        self.limit(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(socket) => pin!(socket).poll_flush(context),
            Socket::Unix(socket) => pin!(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(socket) => pin!(socket).poll_shutdown(context),
            Socket::Unix(socket) => pin!(socket).poll_shutdown(context),
        }
    }
}
