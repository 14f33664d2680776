//! A connection that is served, with or without TLS, and on its way from one runtime to another.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::socket::{self, Socket};

/// A socket below TLS. It lives on one runtime, and parks while it moves to another.
#[derive(Debug)]
pub(super) enum Below {
    Live(Socket),
    Parked(socket::Parked),
    /// Only while it moves, and after a move that failed.
    Lost,
}

impl Below {
    fn live(&mut self) -> io::Result<&mut Socket> {
        match self {
            Below::Live(socket) => Ok(socket),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn park(&mut self) -> io::Result<()> {
        if let Below::Live(socket) = std::mem::replace(self, Below::Lost) {
            *self = Below::Parked(socket.park()?);
        }
        Ok(())
    }

    fn adopt(&mut self) -> io::Result<()> {
        if let Below::Parked(socket) = std::mem::replace(self, Below::Lost) {
            *self = Below::Live(socket.adopt()?);
        }
        Ok(())
    }
}

impl AsyncRead for Below {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().live()?).poll_read(cx, buf)
    }
}

impl AsyncWrite for Below {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().live()?).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().live()?).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().live()?).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().live()?).poll_shutdown(cx)
    }
}

/// A connection whose handshake, if it has one, is over.
#[derive(Debug)]
pub struct Stream {
    io: Io,
    common_name: Option<Arc<str>>,
}

#[derive(Debug)]
enum Io {
    Plain(Socket),
    Tls(Box<TlsStream<Below>>),
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Stream {
        Stream { io: Io::Plain(socket), common_name: None }
    }
}

impl Stream {
    pub(super) fn tls(stream: TlsStream<Below>, common_name: Option<Arc<str>>) -> Stream {
        Stream { io: Io::Tls(Box::new(stream)), common_name }
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// The common name of the certificate with which a client came, if it had to have one (`--client-cert-auth`, for
    /// which a file of authorities alone does not stand).
    pub fn common_name(&self) -> Option<&Arc<str>> {
        self.common_name.as_ref()
    }

    /// Waits for the first bytes and looks at some of them; they are read again later. None at the end of the stream.
    pub async fn peek<'a>(&mut self, first: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let n = match &mut self.io {
            Io::Plain(socket) => socket.peek(first).await?,
            Io::Tls(tls) => {
                let there = tls.fill_buf().await?;
                let n = there.len().min(first.len());
                first[..n].copy_from_slice(&there[..n]);
                n
            }
        };
        Ok(&first[..n])
    }

    /// Takes the connection off its runtime. It must not have been waited on by a task that still does.
    pub fn park(mut self) -> io::Result<Parked> {
        match self.io {
            Io::Plain(socket) => Ok(Parked(ParkedIo::Plain(socket.park()?))),
            Io::Tls(ref mut tls) => {
                tls.get_mut().0.park()?;
                Ok(Parked(ParkedIo::Tls(self)))
            }
        }
    }
}

/// A connection between two runtimes.
#[derive(Debug)]
pub struct Parked(ParkedIo);

#[derive(Debug)]
enum ParkedIo {
    Plain(socket::Parked),
    Tls(Stream),
}

impl Parked {
    /// Puts the connection on the runtime that runs this.
    pub fn adopt(self) -> io::Result<Stream> {
        match self.0 {
            ParkedIo::Plain(socket) => socket.adopt().map(Stream::from),
            ParkedIo::Tls(mut stream) => {
                if let Io::Tls(tls) = &mut stream.io {
                    tls.get_mut().0.adopt()?;
                }
                Ok(stream)
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}
