//! Transports on loopback whose cores only note what they hear, and a proxy between them that misbehaves.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use trilith_disk::Disk;
use trilith_disk::sim::SimDisk;
use trilith_engine::{Options as StoreOptions, Store, TreeId};
use trilith_proto::etcdserverpb::{HashKvResponse, LeaseTimeToLiveResponse, ResponseHeader};
use trilith_proto::raftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use trilith_server::apply::members::Member;
use trilith_server::config::url::Url;
use trilith_server::core::{Overflow, PeerEvent};
use trilith_server::peer::{Later, Listener, Options, Remote, Sink, Transport, Versions};
use trilith_server::status::{self, Status};

pub const CLUSTER: u64 = 0xc1;
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(4 * PATIENCE, test).await.expect("the test ends") })
}

/// A folder that goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("trilith-peer-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A core that notes what it hears.
#[derive(Clone)]
pub struct Core {
    heard: mpsc::UnboundedSender<PeerEvent>,
    pub full: Arc<AtomicBool>,
    pub members: Arc<Mutex<Vec<Member>>>,
}

impl Sink for Core {
    fn event(&self, event: PeerEvent) -> Result<(), Overflow> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Overflow);
        }
        let _ = self.heard.send(event);
        Ok(())
    }

    fn members(&self) -> Result<Vec<Member>, Status> {
        Ok(self.members.lock().unwrap().clone())
    }

    fn versions(&self) -> Result<Versions, Status> {
        Ok(Versions { etcdserver: "3.7.1".into(), etcdcluster: "3.7.0".into(), storage: "3.7.0".into() })
    }

    /// Lease 7 is there, 8 is not, 9 asks for the leader, 10 never answers.
    fn renew(&self, lease: i64) -> Later<Result<i64, Status>> {
        Box::pin(async move {
            match lease {
                7 => Ok(60),
                9 => Err(status::NOT_PRIMARY),
                10 => std::future::pending().await,
                _ => Ok(0),
            }
        })
    }

    fn lease(&self, id: i64, keys: bool) -> Later<Result<Option<LeaseTimeToLiveResponse>, Status>> {
        Box::pin(async move {
            let keys = if keys { vec![Bytes::from_static(b"k")] } else { vec![] };
            match id {
                7 => Ok(Some(LeaseTimeToLiveResponse {
                    header: Some(ResponseHeader::default()),
                    id,
                    ttl: 33,
                    granted_ttl: 60,
                    keys,
                })),
                9 => Err(status::NOT_PRIMARY),
                10 => std::future::pending().await,
                _ => Ok(None),
            }
        })
    }

    fn hash_kv(&self, revision: i64) -> Later<Result<HashKvResponse, Status>> {
        let header = Some(ResponseHeader { revision: 12, ..ResponseHeader::default() });
        Box::pin(std::future::ready(match revision {
            3 => Err(status::COMPACTED),
            13.. => Err(status::FUTURE_REV),
            _ => Ok(HashKvResponse { header, hash: 77, compact_revision: 4, hash_revision: 12 }),
        }))
    }

    /// 5 can be promoted with the right token.
    fn promote(&self, id: u64, token: Option<String>) -> Later<Result<Vec<Member>, Status>> {
        let members = self.members.lock().unwrap().clone();
        Box::pin(std::future::ready(match id {
            5 if token.as_deref() == Some("secret") => Ok(members),
            6 => Err(status::MEMBER_NOT_LEARNER),
            7 => Err(status::LEARNER_NOT_READY),
            8 => Err(status::TIMEOUT),
            _ => Err(status::MEMBER_NOT_FOUND),
        }))
    }

    fn downgrade_enabled(&self) -> Later<Result<bool, Status>> {
        Box::pin(std::future::ready(Ok(true)))
    }
}

/// A member of the tests.
pub struct Node {
    pub id: u64,
    pub transport: Transport,
    pub address: SocketAddr,
    pub core: Core,
    pub heard: mpsc::UnboundedReceiver<PeerEvent>,
    pub folder: Folder,
}

/// A node to be, whose address is known.
pub struct Bound {
    id: u64,
    listener: Listener,
    pub address: SocketAddr,
}

pub fn url_of(address: SocketAddr) -> String {
    format!("http://{address}")
}

impl Bound {
    pub fn new(id: u64) -> Bound {
        let listener = Listener::bind(&[Url::parse("http://127.0.0.1:0").unwrap()], None).unwrap();
        let address = listener.local_addrs().unwrap()[0];
        Bound { id, listener, address }
    }

    pub fn start(self) -> Node {
        self.start_in(CLUSTER)
    }

    pub fn start_in(self, cluster: u64) -> Node {
        let folder = Folder::new();
        let (heard, hears) = mpsc::unbounded_channel();
        let core = Core { heard, full: Arc::default(), members: Arc::default() };
        let urls = vec![url_of(self.address)];
        let options = Options::new(self.id, cluster, urls, folder.0.clone());
        let transport = Transport::start(options, self.listener, core.clone());
        Node { id: self.id, transport, address: self.address, core, heard: hears, folder }
    }
}

impl Node {
    pub fn new(id: u64) -> Node {
        Bound::new(id).start()
    }

    pub fn remote(&self) -> Remote {
        Remote { id: self.id, urls: vec![url_of(self.address)] }
    }

    /// The next thing that the core hears.
    pub async fn hears(&mut self) -> PeerEvent {
        timeout(PATIENCE, self.heard.recv()).await.expect("something is heard in time").unwrap()
    }

    /// The next message; what else is heard until then is passed over.
    pub async fn message(&mut self) -> Message {
        loop {
            if let PeerEvent::Message(message) = self.hears().await
                && message.context() != PROBE
            {
                return message;
            }
        }
    }

    /// Waits for an event.
    pub async fn hears_of(&mut self, event: PeerEvent) {
        while self.hears().await != event {}
    }

    /// Waits until a peer reads both streams from this member: what is sent from now on goes there.
    pub async fn is_read_by(&mut self, other: &mut Node) {
        let probe = Message {
            context: Some(Bytes::from_static(PROBE)),
            ..message(MessageType::MsgHeartbeat, self.id, other.id)
        };
        while !self.transport.is_read_by(other.id) {
            self.transport.send(vec![probe.clone()]);
            // It may get lost while nobody is connected.
            let _ = timeout(Duration::from_millis(50), other.heard.recv()).await;
        }
    }
}

const PROBE: &[u8] = b"probe";

/// Makes these members of one cluster, and waits until every one has streams to every other.
pub async fn connect(nodes: &mut [Node]) {
    let all: Vec<Remote> = nodes.iter().map(Node::remote).collect();
    for node in nodes.iter() {
        node.transport.set_members(all.clone(), []);
    }
    for i in 0..nodes.len() {
        for j in 0..nodes.len() {
            if i != j {
                let [a, b] = nodes.get_disjoint_mut([i, j]).unwrap();
                a.is_read_by(b).await;
            }
        }
    }
}

pub fn message(kind: MessageType, from: u64, to: u64) -> Message {
    Message { r#type: Some(kind.into()), from: Some(from), to: Some(to), term: Some(1), ..Message::default() }
}

/// An append with one entry of so many bytes.
pub fn append(from: u64, to: u64, index: u64, bytes: usize) -> Message {
    let entry = Entry {
        term: Some(1),
        index: Some(index + 1),
        data: Some(vec![index as u8; bytes].into()),
        r#type: None,
    };
    Message {
        index: Some(index),
        log_term: Some(1),
        entries: vec![entry],
        commit: Some(0),
        ..message(MessageType::MsgApp, from, to)
    }
}

/// What a proxy does with the connections whose request begins with a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mood {
    /// `GET /raft/stream/msgapp`, say; empty for all.
    pub head: &'static str,
    /// Passes nothing on, and reads nothing.
    pub stalls: bool,
    /// Waits before each piece.
    pub delay: Duration,
    /// Passes on so many bytes of each direction of a connection and closes it.
    pub cut_after: Option<usize>,
    /// Passes on pieces of so many bytes.
    pub piece: Option<usize>,
    /// Closes what is open; a new number closes anew.
    pub closes: u64,
}

/// Stands between a dialer and a port.
pub struct Proxy {
    pub address: SocketAddr,
    pub mood: watch::Sender<Mood>,
    pub connections: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn new(to: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, moods) = watch::channel(Mood::default());
        let connections = Arc::new(AtomicU64::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(pass(socket, to, moods.clone()));
            }
        });
        Proxy { address, mood, connections }
    }

    pub fn remote(&self, id: u64) -> Remote {
        Remote { id, urls: vec![url_of(self.address)] }
    }
}

async fn pass(client: TcpStream, to: SocketAddr, moods: watch::Receiver<Mood>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut client_in, client_out) = client.into_split();
    let (server_in, mut server_out) = server.into_split();
    let mut head = vec![0; 24];
    if client_in.read_exact(&mut head).await.is_err() || server_out.write_all(&head).await.is_err() {
        return;
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let open = moods.borrow().closes;
    let up = pump(client_in, server_out, head.clone(), moods.clone());
    let down = pump(server_in, client_out, head.clone(), moods.clone());
    let mut closing = moods;
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = closing.wait_for(|mood| mood.closes != open && head.starts_with(mood.head)) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    head: String,
    mut moods: watch::Receiver<Mood>,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0;
    loop {
        if moods.wait_for(|mood| !(mood.stalls && head.starts_with(mood.head))).await.is_err() {
            return;
        }
        let Some(mut len) = from.read(&mut buffer).await.ok().filter(|len| *len > 0) else { return };
        // What was read while the mood changed waits as well.
        let stalls = |mood: &Mood| mood.stalls && head.starts_with(mood.head);
        if moods.wait_for(|mood| !stalls(mood)).await.is_err() {
            return;
        }
        let mood = moods.borrow().clone();
        let concerned = head.starts_with(mood.head);
        if concerned && !mood.delay.is_zero() {
            tokio::time::sleep(mood.delay).await;
        }
        let mut cut = false;
        if let Some(most) = mood.cut_after.filter(|_| concerned)
            && passed + len >= most
        {
            len = most.saturating_sub(passed);
            cut = true;
        }
        let piece = mood.piece.filter(|_| concerned).unwrap_or(len).max(1);
        for piece in buffer[..len].chunks(piece) {
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
        passed += len;
        if cut {
            return;
        }
    }
}

/// Sends bytes to a port and reads until it closes, or begins a stream, which has no end; what came.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // A port that refuses early may close before it has read all.
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let mut read = Vec::new();
    while !read.windows(9).any(|nine| nine == b": chunked") {
        let more = timeout(PATIENCE, socket.read_buf(&mut read)).await.expect("the port closes");
        if !more.is_ok_and(|more| more > 0) {
            break;
        }
    }
    read
}

/// An answer that is complete.
pub struct Answer {
    pub code: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks a port on a connection of its own.
pub async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut bytes = request.into_bytes();
    bytes.extend_from_slice(body);
    let mut socket = TcpStream::connect(address).await.unwrap();
    let _ = socket.write_all(&bytes).await;
    let mut read = Vec::new();
    let _ = timeout(PATIENCE, socket.read_to_end(&mut read)).await.expect("an answer comes");
    parse(&read)
}

pub fn parse(read: &[u8]) -> Answer {
    let at = read.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&read[..at]).into_owned();
    let mut lines = head.split("\r\n");
    let code = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
    Answer { code, headers: lines.filter_map(pair).collect(), body: read[at + 4..].to_vec() }
}

/// The files of a folder, by name.
pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The length of each value of [`store`].
const VALUE: usize = 20_000;

/// A store of so many values of 20 KB that do not compress, on a disk of its own, as of entry 0x1f of term 3.
pub fn store(values: u32) -> Store {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("d")).unwrap();
    let options = StoreOptions {
        path: "d/db".into(),
        disk: Arc::new(disk),
        map: false,
        dirty_bytes_max: 1 << 30,
        compress: false,
    };
    let mut store = Store::open(options).unwrap();
    let mut rng = trilith_fuzz::Rng::new(u64::from(values));
    for i in 0..values {
        store.insert(TreeId::Cluster, &i.to_be_bytes(), &rng.bytes(VALUE)).unwrap();
    }
    store.set_applied(0x1f, 3);
    store.publish();
    store
}

pub fn snapshot(from: u64, to: u64, index: u64) -> Message {
    let metadata = SnapshotMetadata { index: Some(index), term: Some(3), ..SnapshotMetadata::default() };
    let snapshot = Snapshot { data: Some(Bytes::from_static(b"{}")), metadata: Some(metadata) };
    Message { snapshot: Some(snapshot), ..message(MessageType::MsgSnap, from, to) }
}
