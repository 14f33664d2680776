//! One client connection: looks at its first bytes, then drives HTTP/2 and starts a task for each call.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use h2::server::Builder;
use h2::{Ping, PingPong};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, Sleep, timeout};

use super::authority::Mended;
use super::server::{Options, Stop};
use super::{Call, Routes};
use crate::tls::Stream;

/// How long a client may take until its connection speaks HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(120);
/// Receive windows, in bytes: enough that a client with big requests in flight is not held up by round trips.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const HEADER_LIST_BYTES_MAX: u32 = 256 << 10;
/// What h2 holds per stream of what a handler sent and the socket did not take yet.
const SEND_BUFFER_BYTES_MAX: usize = 256 << 10;

/// Calls that were canceled before they were looked at. Clients whose deadlines pass while this thread is busy cancel
/// many at once, and are no attackers.
const RESETS_BEFORE_ACCEPT_MAX: usize = 4096;

/// What a client that speaks HTTP/1 gets.
const NOT_HTTP2: &str =
    "this port speaks gRPC over HTTP/2; HTTP/1.1 and the JSON gateway are not there yet\n";

/// Serves the connection until it ends, or, after `stop`, until its calls have ended.
pub(super) async fn serve<R: Routes>(mut stream: Stream, routes: R, options: Options, stop: Stop) {
    let common_name = stream.common_name().cloned();
    let open = async {
        if !speaks_http2(&mut stream).await? {
            refuse_http1(&mut stream).await?;
            return Ok(None);
        }
        builder(&options).handshake(Mended::new(stream)).await.map(Some).map_err(std::io::Error::other)
    };
    let mut connection = match timeout(HANDSHAKE_TIMEOUT, open).await {
        Ok(Ok(Some(connection))) => connection,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            return log::debug!(error:% = error; "client connection failed before its first call");
        }
    };
    let Some(ping) = connection.ping_pong() else {
        unreachable!("the handle of a new connection is taken once");
    };
    let mut keepalive = Keepalive::new(ping, &options);
    let mut stopped = std::pin::pin!(stop.clone_wait());
    let mut stopping = false;
    loop {
        let next = tokio::select! {
            biased;
            next = connection.accept() => next,
            () = &mut stopped, if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
                continue;
            }
            () = keepalive.lost() => {
                return log::debug!("client connection does not answer keepalive pings: closing it");
            }
        };
        match next {
            Some(Ok((request, respond))) => {
                let receive_limit = options.receive_limit;
                if let Some((path, call)) =
                    Call::accept(request, respond, receive_limit, stop.clone(), common_name.clone())
                {
                    routes.route(path.path(), call);
                }
            }
            Some(Err(error)) => return log::debug!(error:% = error; "client connection ended with an error"),
            None => return,
        }
    }
}

fn builder(options: &Options) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_BEFORE_ACCEPT_MAX);
    // The largest number stands for no limit, and is then not announced.
    if options.max_concurrent_streams != u32::MAX {
        builder.max_concurrent_streams(options.max_concurrent_streams);
    }
    builder
}

/// Peeks at the first bytes. Fewer than three that could still be HTTP/2's preface are left to h2 to judge.
async fn speaks_http2(stream: &mut Stream) -> std::io::Result<bool> {
    let mut first = [0; 3];
    Ok(b"PRI".starts_with(stream.peek(&mut first).await?))
}

/// Answers an HTTP/1 request; anything else is only closed.
async fn refuse_http1(socket: &mut Stream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let n = socket.read(&mut request).await?;
    if !request[..n].first().is_some_and(u8::is_ascii_uppercase) {
        return Ok(());
    }
    let answer = format!(
        "HTTP/1.1 501 Not Implemented\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{NOT_HTTP2}",
        NOT_HTTP2.len()
    );
    socket.write_all(answer.as_bytes()).await?;
    socket.shutdown().await?;
    // Closing a socket with unread bytes resets it, and the client might lose the answer: read on for a moment.
    let drain = async { while matches!(socket.read(&mut request).await, Ok(1..)) {} };
    let _ = timeout(Duration::from_secs(1), drain).await;
    Ok(())
}

/// Pings the client after each interval, and notices when no answer comes in time.
struct Keepalive {
    ping: PingPong,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    fn new(ping: PingPong, options: &Options) -> Keepalive {
        Keepalive {
            ping,
            timer: Box::pin(tokio::time::sleep(options.keepalive_interval)),
            waiting: false,
            interval: options.keepalive_interval,
            timeout: options.keepalive_timeout,
        }
    }

    /// Ends when a ping was not answered in time. May be dropped and called again.
    async fn lost(&mut self) {
        loop {
            if self.waiting {
                tokio::select! {
                    biased;
                    pong = poll_fn(|cx| self.ping.poll_pong(cx)) => match pong {
                        Ok(_) => self.waiting = false,
                        // The connection is over, which its own loop sees.
                        Err(_) => std::future::pending().await,
                    },
                    () = &mut self.timer => return,
                }
                self.timer.as_mut().reset(Instant::now() + self.interval);
            } else {
                self.timer.as_mut().await;
                if self.ping.send_ping(Ping::opaque()).is_err() {
                    std::future::pending().await
                }
                self.waiting = true;
                self.timer.as_mut().reset(Instant::now() + self.timeout);
            }
        }
    }
}
