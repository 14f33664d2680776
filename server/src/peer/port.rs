//! The peer port: accepts connections and serves HTTP/1.1 on them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::client::STALL;
use super::route;
use super::transport::Shared;
use super::wire::Wire;
use crate::config::url::Url;

/// What is buffered of a connection, in bytes: also the most that a request's head may have.
const BUFFER: usize = 64 << 10;
/// After a failure to accept, such as having no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The peer port, bound before the core opens, so that a wrong address is told at once.
#[derive(Debug)]
pub struct Listener {
    bound: Vec<Bound>,
}

impl Listener {
    /// Binds all URLs. Runs inside a runtime.
    ///
    /// # Errors
    /// The text names the address.
    pub fn bind(urls: &[Url]) -> io::Result<Listener> {
        let bound = urls.iter().map(|url| {
            bind(url).map_err(|error| io::Error::new(error.kind(), format!("listen on {url}: {error}")))
        });
        Ok(Listener { bound: bound.collect::<io::Result<_>>()? })
    }

    /// The bound TCP addresses, with the port that the system chose for port 0.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        let tcp = self.bound.iter().filter_map(|bound| match bound {
            Bound::Tcp(listener) => Some(listener.local_addr()),
            Bound::Unix(_) => None,
        });
        tcp.collect()
    }
}

fn bind(url: &Url) -> io::Result<Bound> {
    match &*url.scheme {
        "http" => {
            let address =
                url.bind_address().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener).map(Bound::Tcp)
        }
        "unix" => {
            // What an earlier process left; a file of another kind is not ours to remove.
            if std::fs::metadata(&url.address).is_ok_and(|found| found.file_type().is_socket()) {
                std::fs::remove_file(&url.address)?;
            }
            UnixListener::bind(&url.address).map(Bound::Unix)
        }
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "TLS is not supported yet between members")),
    }
}

async fn accept(bound: &Bound) -> io::Result<Wire> {
    match bound {
        Bound::Tcp(listener) => listener.accept().await.map(|(socket, _)| Wire::tcp(socket, STALL)),
        Bound::Unix(listener) => listener.accept().await.map(|(socket, _)| Wire::unix(socket, STALL)),
    }
}

/// Serves until it is dropped, and all connections with it.
pub(super) async fn serve(listener: Listener, shared: Arc<Shared>) {
    let mut ports = JoinSet::new();
    for bound in listener.bound {
        ports.spawn(serve_one(bound, shared.clone()));
    }
    while ports.join_next().await.is_some() {}
}

async fn serve_one(bound: Bound, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        match accept(&bound).await {
            Ok(wire) => {
                connections.spawn(connection(wire, shared.clone()));
            }
            Err(error) => {
                log::warn!(error:% = error; "failed to accept a peer's connection");
                sleep_until(Instant::now() + PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(wire: Wire, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(route::answer(shared, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(STALL)
        .max_buf_size(BUFFER)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(wire), service);
    if let Err(error) = serving.await {
        log::debug!(error:% = error; "a peer's connection ends");
    }
}
