//! The peer port: accepts connections and serves HTTP/1.1 on them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::client::STALL;
use super::route;
use super::transport::Shared;
use crate::config::url::Url;
use crate::socket::{self, Socket};
use crate::tls::{Acceptor, Stream};

/// What is buffered of a connection, in bytes: also the most that a request's head may have.
const BUFFER: usize = 64 << 10;
/// After a failure to accept, such as having no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// The peer port, bound before the core opens, so that a wrong address is told at once.
#[derive(Debug)]
pub struct Listener {
    bound: Vec<(socket::Listener, Option<Acceptor>)>,
}

impl Listener {
    /// Binds all URLs; those of TLS shake hands with the acceptor. Runs inside a runtime.
    ///
    /// # Errors
    /// The text names the address.
    pub fn bind(urls: &[Url], acceptor: Option<&Acceptor>) -> io::Result<Listener> {
        let bound = urls.iter().map(|url| {
            let acceptor = match (url.is_tls(), acceptor) {
                (false, _) => None,
                (true, Some(acceptor)) => Some(acceptor.clone()),
                (true, None) => {
                    let text =
                        format!("cannot listen on TLS for {url}: KeyFile and CertFile are not presented");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
            };
            Ok((socket::Listener::bind(url)?, acceptor))
        });
        Ok(Listener { bound: bound.collect::<io::Result<_>>()? })
    }

    /// The bound TCP addresses, with the port that the system chose for port 0.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.bound.iter().filter_map(|(listener, _)| listener.local_addr().transpose()).collect()
    }
}

/// Serves until it is dropped, and all connections with it.
pub(super) async fn serve(listener: Listener, shared: Arc<Shared>) {
    let mut ports = JoinSet::new();
    for (bound, acceptor) in listener.bound {
        ports.spawn(serve_one(bound, acceptor, shared.clone()));
    }
    while ports.join_next().await.is_some() {}
}

async fn serve_one(bound: socket::Listener, acceptor: Option<Acceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        match bound.accept().await {
            Ok(socket) => {
                connections.spawn(connection(socket, acceptor.clone(), shared.clone()));
            }
            Err(error) => {
                log::warn!(error:% = error; "failed to accept a peer's connection");
                sleep_until(Instant::now() + PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(socket: Socket, acceptor: Option<Acceptor>, shared: Arc<Shared>) {
    let socket = socket.with_stall_limit(STALL);
    let stream = match &acceptor {
        None => Stream::from(socket),
        Some(acceptor) => match acceptor.accept(socket).await {
            Some(stream) => stream,
            None => return,
        },
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(route::answer(shared, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(STALL)
        .max_buf_size(BUFFER)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        log::debug!(error:% = error; "a peer's connection ends");
    }
}
