//! The network between members: a TCP proxy before each peer port, which can cut any two members off from each other, or
//! slow down what they say.
//!
//! A cut is silent, as a lost network is: connections stay, and what is sent waits until the cut is mended. Who a
//! connection is from stands in the header `X-Server-From` of its first request; connections without it are never cut.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Result;

/// No request of a member has a longer head.
const HEAD_BYTES_MAX: usize = 16 << 10;
const CHUNK_BYTES: usize = 64 << 10;

/// What is wrong with the network, by pairs of members.
#[derive(Debug, Default)]
struct Faults {
    cut: HashSet<(u64, u64)>,
    /// How much longer each piece takes.
    slow: HashMap<(u64, u64), Duration>,
}

/// Which members cannot reach each other, or not well. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Links(Rc<watch::Sender<Faults>>);

fn pair(a: u64, b: u64) -> (u64, u64) {
    (a.min(b), a.max(b))
}

impl Links {
    /// From now on nothing passes between the two members.
    pub fn cut(&self, a: u64, b: u64) {
        self.0.send_modify(|faults| {
            faults.cut.insert(pair(a, b));
        });
    }

    /// From now on each piece of what the two say takes so much longer.
    pub fn slow_down(&self, a: u64, b: u64, delay: Duration) {
        self.0.send_modify(|faults| {
            faults.slow.insert(pair(a, b), delay);
        });
    }

    /// Everything passes again as it should, also what has waited.
    pub fn mend(&self) {
        self.0.send_modify(|faults| *faults = Faults::default());
    }

    async fn open(&self, a: u64, b: u64) -> Result<()> {
        self.0.subscribe().wait_for(|faults| !faults.cut.contains(&pair(a, b))).await?;
        let delay = self.0.borrow().slow.get(&pair(a, b)).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }

    /// Passes on what comes to `listener` to the member `id` at `target`, until the runtime ends.
    pub async fn relay(self, listener: TcpListener, target: SocketAddr, id: u64) {
        while let Ok((from, _)) = listener.accept().await {
            let links = self.clone();
            // A connection that breaks has told both its ends.
            tokio::task::spawn_local(async move { drop(links.connection(from, target, id).await) });
        }
    }

    async fn connection(&self, from: TcpStream, target: SocketAddr, id: u64) -> Result<()> {
        let (mut from_read, from_write) = from.into_split();
        let head = read_head(&mut from_read).await?;
        let sender = sender_of(&head).unwrap_or(id);
        self.open(sender, id).await?;
        let to = TcpStream::connect(target).await?;
        to.set_nodelay(true)?;
        let (to_read, mut to_write) = to.into_split();
        to_write.write_all(&head).await?;
        tokio::select! {
            ended = self.pass(from_read, to_write, sender, id) => ended,
            ended = self.pass(to_read, from_write, sender, id) => ended,
        }
    }

    async fn pass(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, a: u64, b: u64) -> Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let len = from.read(&mut chunk).await?;
            if len == 0 {
                return Ok(());
            }
            self.open(a, b).await?;
            to.write_all(&chunk[..len]).await?;
        }
    }
}

/// Everything up to the end of the first request's head, and what came with it.
async fn read_head(from: &mut OwnedReadHalf) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || from.read_buf(&mut head).await? == 0 {
            return Err("a connection without a request".into());
        }
    }
    Ok(head)
}

fn sender_of(head: &[u8]) -> Option<u64> {
    let head = String::from_utf8_lossy(head);
    let named = head.lines().filter_map(|line| line.split_once(':'));
    let mut values = named.filter(|(name, _)| name.eq_ignore_ascii_case("x-server-from"));
    values.next().and_then(|(_, value)| u64::from_str_radix(value.trim(), 16).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_found_in_any_spelling() {
        let head =
            b"GET /raft/stream/message/1 HTTP/1.1\r\nhost: a\r\nx-server-from: 8e9e05c52164694d\r\n\r\n";
        assert_eq!(sender_of(head), Some(0x8e9e_05c5_2164_694d));
        assert_eq!(sender_of(b"GET /version HTTP/1.1\r\nX-Server-From: zz\r\n\r\n"), None);
        assert_eq!(sender_of(b"GET /version HTTP/1.1\r\n\r\n"), None);
    }
}
