//! Accepts connections and deals them out, in turn, over current-thread runtimes.
//!
//! The first share is served by the runtime that calls [`Server::run`]; each further one by a thread with a
//! runtime of its own. A connection stays where it was dealt to.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use super::{Routes, conn};
use crate::config::url::Url;
use crate::socket::Listener;
use crate::tls::{Acceptor, Parked, Stream};

/// How long calls in flight have to end once the server stops.
const GRACE: Duration = Duration::from_millis(900);

/// Limits of each connection.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Largest request message, in bytes.
    pub receive_limit: usize,
    /// Streams that a client may have open; `u32::MAX` for no limit.
    pub max_concurrent_streams: u32,
    /// Time between keepalive pings to the client.
    pub keepalive_interval: Duration,
    /// Time that a client has to answer a ping.
    pub keepalive_timeout: Duration,
    /// Runtimes that serve connections, the calling one included.
    pub io_threads: usize,
}

/// Tells tasks, on any thread, that the server stops.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// The sender stops everything by sending true, or by going away.
    pub fn new() -> (watch::Sender<bool>, Stop) {
        let (sender, receiver) = watch::channel(false);
        (sender, Stop(receiver))
    }

    /// Waits for the stop.
    pub async fn wait(&mut self) {
        // An error means that the sender is gone: that is a stop too.
        let _ = self.0.wait_for(|&stopped| stopped).await;
    }

    /// Waits for the stop, on a receiver of its own.
    pub(super) fn clone_wait(&self) -> impl Future<Output = ()> + use<> {
        let mut own = self.clone();
        async move { own.wait().await }
    }
}

/// Bound listeners, not yet served.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<(Listener, Option<Acceptor>, Url)>,
}

impl Server {
    /// Binds all addresses; those with an acceptor speak TLS. The error names the address.
    pub fn bind(urls: Vec<(Url, Option<Acceptor>)>) -> io::Result<Server> {
        let listeners = urls.into_iter().map(|(url, acceptor)| Ok((Listener::bind(&url)?, acceptor, url)));
        Ok(Server { listeners: listeners.collect::<io::Result<_>>()? })
    }

    /// The bound TCP addresses: with the port that the system chose for port 0.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().filter_map(|(listener, ..)| listener.local_addr().transpose()).collect()
    }

    /// The bound addresses as text, and whether they speak TLS.
    pub fn addresses(&self) -> io::Result<Vec<(String, bool)>> {
        let address = |(listener, acceptor, url): &(Listener, Option<Acceptor>, Url)| {
            let own = listener.local_addr()?.map_or_else(|| url.address.clone(), |own| own.to_string());
            Ok((own, acceptor.is_some()))
        };
        self.listeners.iter().map(address).collect()
    }

    /// Serves until `stop`, then until calls in flight have ended or the grace period is over. Runs inside a
    /// `LocalSet` of a current-thread runtime.
    pub async fn run<R: Routes>(self, routes: R, options: Options, stop: Stop) -> io::Result<()> {
        let mut workers = Vec::new();
        for number in 1..options.io_threads.max(1) {
            workers.push(Worker::start(number, routes.clone(), options, stop.clone())?);
        }
        let local = Connections::default();
        let (dealt, mut incoming) = mpsc::channel(64);
        for (listener, acceptor, _) in self.listeners {
            tokio::task::spawn_local(accept(listener, acceptor, dealt.clone(), stop.clone()));
        }
        drop(dealt);
        let mut turn = 0;
        while let Some(stream) = incoming.recv().await {
            let share = turn % (workers.len() + 1);
            turn = share + 1;
            match share.checked_sub(1) {
                None => local.start(stream, routes.clone(), options, stop.clone()),
                Some(worker) => workers[worker].hand_over(stream),
            }
        }
        // All shares end side by side. This thread may be the one that answers their calls: it must not block.
        let threads: Vec<_> = workers.into_iter().map(Worker::end).collect();
        local.ended().await;
        for thread in threads {
            if !matches!(tokio::task::spawn_blocking(|| thread.join()).await, Ok(Ok(()))) {
                log::warn!("a thread that serves client connections has panicked");
            }
        }
        Ok(())
    }
}

/// Accepts until the stop. Running out of descriptors is waited out, not fatal. Nobody waits for a handshake but the
/// connection that it belongs to.
async fn accept(listener: Listener, acceptor: Option<Acceptor>, dealt: mpsc::Sender<Stream>, stop: Stop) {
    let mut stopped = std::pin::pin!(stop.clone_wait());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => return,
        };
        match accepted {
            Ok(socket) => match &acceptor {
                None => {
                    if dealt.send(socket.into()).await.is_err() {
                        return;
                    }
                }
                Some(acceptor) => {
                    let (acceptor, dealt, stop) = (acceptor.clone(), dealt.clone(), stop.clone_wait());
                    tokio::task::spawn_local(async move {
                        tokio::select! {
                            stream = acceptor.accept(socket) => {
                                if let Some(stream) = stream {
                                    // Fails when the server has ended, and the connection with it.
                                    let _ = dealt.send(stream).await;
                                }
                            }
                            () = stop => {}
                        }
                    });
                }
            },
            Err(error) => {
                log::warn!(error:% = error; "failed to accept a client connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Connections of one runtime: their tasks hold a sender each, so that the end of all is noticed.
#[derive(Debug)]
struct Connections {
    alive: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl Default for Connections {
    fn default() -> Connections {
        let (alive, ended) = mpsc::channel(1);
        Connections { alive, ended }
    }
}

impl Connections {
    fn start<R: Routes>(&self, stream: Stream, routes: R, options: Options, stop: Stop) {
        let alive = self.alive.clone();
        tokio::task::spawn_local(async move {
            conn::serve(stream, routes, options, stop).await;
            drop(alive);
        });
    }

    /// Waits for the end of all, at most for the grace period.
    async fn ended(self) {
        let Connections { alive, mut ended } = self;
        drop(alive);
        let _ = tokio::time::timeout(GRACE, ended.recv()).await;
    }
}

/// A thread with a runtime that serves its share of the connections.
#[derive(Debug)]
struct Worker {
    dealt: mpsc::UnboundedSender<Parked>,
    thread: std::thread::JoinHandle<()>,
}

impl Worker {
    fn start<R: Routes>(number: usize, routes: R, options: Options, stop: Stop) -> io::Result<Worker> {
        let (dealt, mut incoming) = mpsc::unbounded_channel::<Parked>();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let serve = async move {
            let connections = Connections::default();
            while let Some(parked) = incoming.recv().await {
                match parked.adopt() {
                    Ok(stream) => connections.start(stream, routes.clone(), options, stop.clone()),
                    Err(error) => log::warn!(error:% = error; "failed to take over a client connection"),
                }
            }
            connections.ended().await;
        };
        let thread = std::thread::Builder::new()
            .name(format!("rpc-{number}"))
            .spawn(move || LocalSet::new().block_on(&runtime, serve))?;
        Ok(Worker { dealt, thread })
    }

    fn hand_over(&self, stream: Stream) {
        // Both fail only when the socket or the worker has just ended, and the connection with it.
        if let Ok(parked) = stream.park() {
            let _ = self.dealt.send(parked);
        }
    }

    /// Lets the thread end as soon as its connections have ended or the grace period is over.
    fn end(self) -> std::thread::JoinHandle<()> {
        drop(self.dealt);
        self.thread
    }
}
