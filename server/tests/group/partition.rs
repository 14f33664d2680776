//! A network between members that can be cut: before each peer port stands a proxy, on a thread of its own.
//!
//! A cut is silent, as a lost network is: connections stay, and what is sent waits until the cut is mended. Who a
//! connection is from stands in the header `X-Server-From` of its first request; one without it is from the client's side.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use trilith_proto::{etcdserverpb as pb, ids};

use crate::places::{Group, Place, TOKEN, ask, free_address, get, hash, listed, put, until};
use crate::support::block_on;

/// Which member is cut off from all others. Clones share it.
#[derive(Clone)]
struct Network(Arc<watch::Sender<Option<u64>>>);

impl Network {
    /// Puts a proxy before the peer port of each of these, which from then on listen elsewhere.
    fn before(places: &mut [Place]) -> Network {
        let network = Network(Arc::new(watch::Sender::new(None)));
        let mut proxies = Vec::new();
        for place in places {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            place.peer = listener.local_addr().unwrap();
            let target = free_address();
            place.listens = Some(target);
            proxies.push((listener, target, ids::member_id(&[place.peer_url()], TOKEN, None)));
        }
        let shared = network.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async move {
                let relays = proxies
                    .into_iter()
                    .map(|(listener, target, id)| spawn_local(shared.clone().relay(listener, target, id)));
                for relay in relays.collect::<Vec<_>>() {
                    let _ = relay.await;
                }
            });
        });
        network
    }

    fn cut_off(&self, id: u64) {
        self.0.send_replace(Some(id));
    }

    fn mend(&self) {
        self.0.send_replace(None);
    }

    async fn open(&self, from: Option<u64>, to: u64) {
        let is_open = |cut: &Option<u64>| cut.is_none_or(|id| id != to && from != Some(id));
        // The sender is this one's own.
        let _ = self.0.subscribe().wait_for(is_open).await;
    }

    async fn relay(self, listener: TcpListener, target: SocketAddr, id: u64) {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((from, _)) = listener.accept().await {
            let network = self.clone();
            // A connection that breaks has told both its ends.
            spawn_local(async move { drop(network.connection(from, target, id).await) });
        }
    }

    async fn connection(&self, from: TcpStream, target: SocketAddr, id: u64) -> std::io::Result<()> {
        let (mut from_read, from_write) = from.into_split();
        let mut head = Vec::new();
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            if from_read.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let sender = sender_of(&head);
        self.open(sender, id).await;
        let (to_read, mut to_write) = TcpStream::connect(target).await?.into_split();
        to_write.write_all(&head).await?;
        tokio::select! {
            ended = self.pass(from_read, to_write, sender, id) => ended,
            ended = self.pass(to_read, from_write, sender, id) => ended,
        }
    }

    async fn pass(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        sender: Option<u64>,
        id: u64,
    ) -> std::io::Result<()> {
        let mut chunk = vec![0; 64 << 10];
        loop {
            let len = from.read(&mut chunk).await?;
            if len == 0 {
                return Ok(());
            }
            self.open(sender, id).await;
            to.write_all(&chunk[..len]).await?;
        }
    }
}

fn sender_of(head: &[u8]) -> Option<u64> {
    let head = String::from_utf8_lossy(head);
    let mut named = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = named.find(|(name, _)| name.eq_ignore_ascii_case("x-server-from"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

#[test]
fn m6_only_the_majoritys_side_of_a_partition_writes() {
    let mut places: Vec<Place> = (0..3).map(|at| Place::new("m6cut", &format!("infra{at}"))).collect();
    let network = Network::before(&mut places);
    let cluster = listed(&places);
    let flags = ["--election-timeout=500", "--heartbeat-interval=50"];
    let members: Vec<_> = places.iter().map(|place| Some(place.spawn(&cluster, &flags))).collect();
    let group = Group { places, members, cluster };
    for member in group.members.iter().flatten() {
        member.wait_for("ready to serve client requests");
    }
    block_on(async {
        let leader = group.leader().await;
        let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
        put(group.client(leader), "key", "1").await.unwrap();
        let id = group.ids().await[leader].unwrap();
        network.cut_off(id);
        let (lost, kept) = tokio::join!(
            put(group.client(leader), "key", "lost"),
            until(async || put(group.client(other), "key", "2").await.ok()),
        );
        let lost = lost.unwrap_err();
        assert!(lost.starts_with("14 etcdserver: request timed out"), "{lost}");
        assert_eq!(get(group.client(third), "key").await.unwrap().as_deref(), Some("2"));
        let stale = get(group.client(leader), "key").await.unwrap_err();
        assert!(stale.starts_with("14 etcdserver: "), "{stale}");
        let local = pb::RangeRequest { key: "key".into(), serializable: true, ..pb::RangeRequest::default() };
        let answer: pb::RangeResponse =
            ask(group.client(leader), "/etcdserverpb.KV/Range", &local).await.unwrap();
        assert_eq!(answer.kvs[0].value, "1", "what it had, for those who take that");

        network.mend();
        let found = until(async || get(group.client(leader), "key").await.ok()).await;
        assert_eq!(found.as_deref(), Some("2"));
        let revision = put(group.client(leader), "key", "3").await.unwrap();
        assert_eq!(revision, kept + 1, "nothing of the lost one is there");
        let hashes = [hash(group.client(leader), revision).await, hash(group.client(other), revision).await];
        assert_eq!(hashes[0], hashes[1]);
    });
}
