//! A member as a process, and a small client for it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use trilith_proto::etcdserverpb::{PutRequest, PutResponse};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("trilith-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Member {
    child: Child,
    pub address: SocketAddr,
    lines: Receiver<String>,
}

/// Starts a process in a folder, without waiting for anything.
pub fn spawn(folder: &Folder, flags: &[&str]) -> Member {
    spawn_with(folder, flags, &[])
}

/// The same with variables.
pub fn spawn_with(folder: &Folder, flags: &[&str], env: &[(&str, &str)]) -> Member {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_etcd"));
    command
        .env_clear()
        .envs(env.iter().copied())
        .arg(format!("--data-dir={}", folder.0.display()))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .arg("--listen-peer-urls=http://127.0.0.1:0")
        .args(flags);
    spawn_command(command, address)
}

/// Starts a process that serves clients there.
pub fn spawn_command(mut command: Command, address: SocketAddr) -> Member {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        use std::io::BufRead;
        for line in std::io::BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    Member { child, address, lines }
}

/// Starts a member and waits until it serves.
pub fn start(folder: &Folder, flags: &[&str]) -> Member {
    let member = spawn(folder, flags);
    member.wait_for("ready to serve client requests");
    member
}

impl Member {
    /// Waits for a log line; the lines up to it.
    pub fn wait_for(&self, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line with {text:?} after {seen:#?}"));
            let found = line.contains(text);
            seen.push(line);
            if found {
                return seen;
            }
        }
    }

    /// Memory of the process that no file stands behind, in bytes.
    pub fn anonymous_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end: exit code (None after a signal) and the lines that were not read yet.
    pub fn wait(mut self) -> (Option<i32>, Vec<String>) {
        let status = self.child.wait().unwrap();
        (status.code(), self.lines.iter().collect())
    }

    /// Ends the member in order.
    pub fn stop(self) {
        self.signal(rustix::process::Signal::TERM);
        let (code, lines) = self.wait();
        assert_eq!(code, Some(0), "{lines:#?}");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a test's client side.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new()
        .block_on(&runtime, async { tokio::time::timeout(PATIENCE, test).await.unwrap() })
}

#[derive(Clone)]
pub struct Client(SendRequest<Bytes>);

/// A call in progress.
pub struct Stream {
    pub send: SendStream<Bytes>,
    receive: RecvStream,
    buffer: BytesMut,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).await.unwrap()).await.unwrap()
    }

    /// Over a connection that stands.
    pub async fn over(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Client, h2::Error> {
        let (send, connection) = h2::client::handshake(io).await?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Client(send))
    }

    /// Whether the connection still takes a put.
    pub async fn try_put(&self, key: &str) -> Result<(), h2::Error> {
        let request = PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..PutRequest::default() };
        let head = Request::post("http://h/etcdserverpb.KV/Put").header("content-type", "application/grpc");
        let mut ready = self.0.clone().ready().await?;
        let (response, mut send) = ready.send_request(head.body(()).unwrap(), false)?;
        send.send_data(frame(&request), true)?;
        let response = response.await?;
        assert_eq!(response.headers().get("grpc-status"), None);
        Ok(())
    }

    pub async fn try_connect(address: SocketAddr) -> Result<Client, String> {
        let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (send, connection) = h2::client::handshake(socket).await.map_err(|error| error.to_string())?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Client(send))
    }

    /// A call that may fail: code and text, or what broke.
    pub async fn try_call<M: Message, R: Message + Default>(
        &self,
        path: &str,
        request: &M,
    ) -> Result<R, String> {
        let text = |error: h2::Error| error.to_string();
        let post = Request::post(format!("http://h{path}")).header("content-type", "application/grpc");
        let mut ready = self.0.clone().ready().await.map_err(text)?;
        let (response, mut send) = ready.send_request(post.body(()).unwrap(), false).map_err(text)?;
        send.send_data(frame(request), true).map_err(text)?;
        let response = response.await.map_err(text)?;
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        if let Some(status) = header("grpc-status") {
            return Err(format!("{status} {}", header("grpc-message").unwrap_or_default()));
        }
        Stream { send, receive: response.into_body(), buffer: BytesMut::new() }.next().await
    }

    /// Opens a call and sends its first message.
    pub async fn open<M: Message>(&self, path: &str, first: &M, last: bool) -> Stream {
        let request = Request::post(format!("http://h{path}")).header("content-type", "application/grpc");
        let mut ready = self.0.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(request.body(()).unwrap(), false).unwrap();
        send.send_data(frame(first), last).unwrap();
        let response = response.await.unwrap();
        if let Some(status) = response.headers().get("grpc-status") {
            let message = response.headers().get("grpc-message");
            panic!("{path}: {status:?} {message:?}");
        }
        Stream { send, receive: response.into_body(), buffer: BytesMut::new() }
    }

    pub async fn call<M: Message, R: Message + Default>(&self, path: &str, request: &M) -> R {
        let mut stream = self.open(path, request, true).await;
        let reply = stream.next().await.unwrap();
        assert_eq!(stream.next::<R>().await.err().as_deref(), Some("0 "));
        reply
    }

    /// Puts; the revision.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> i64 {
        let request = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: value.into(),
            ..PutRequest::default()
        };
        let response: PutResponse = self.call("/etcdserverpb.KV/Put", &request).await;
        response.header.unwrap().revision
    }
}

impl Stream {
    pub fn send<M: Message>(&mut self, message: &M) {
        self.send.send_data(frame(message), false).unwrap();
    }

    /// The next message, or status and text at the end.
    pub async fn next<R: Message + Default>(&mut self) -> Result<R, String> {
        loop {
            if self.buffer.len() >= 5 {
                let len = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + len {
                    self.buffer.advance(5);
                    return Ok(R::decode(self.buffer.split_to(len)).unwrap());
                }
            }
            match self.receive.data().await {
                Some(chunk) => {
                    let chunk = chunk.map_err(|error| error.to_string())?;
                    self.receive.flow_control().release_capacity(chunk.len()).unwrap();
                    self.buffer.extend_from_slice(&chunk);
                }
                None => {
                    let trailers = self.receive.trailers().await.map_err(|error| error.to_string())?;
                    let trailers = trailers.unwrap_or_default();
                    let text = |name| trailers.get(name).map_or("", |value| value.to_str().unwrap());
                    return Err(format!("{} {}", text("grpc-status"), text("grpc-message")));
                }
            }
        }
    }
}

fn frame<M: Message>(message: &M) -> Bytes {
    let mut bytes = vec![0; 5];
    message.encode(&mut bytes).unwrap();
    let len = (bytes.len() - 5) as u32;
    bytes[1..5].copy_from_slice(&len.to_be_bytes());
    bytes.into()
}
