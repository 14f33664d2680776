//! A cluster of servers as child processes on loopback, with a network between them that can be cut.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use trilith_proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberRemoveRequest, MemberRemoveResponse, StatusRequest,
    StatusResponse,
};
use trilith_proto::ids;

use crate::Result;
use crate::client::{Client, path};
use crate::member::{Launch, Member};
use crate::proxy::Links;

const TOKEN: &str = "trilith-cluster";
/// How long anything may take that ends in a cluster that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// Servers that form one cluster, by number from 0; those that were killed are None.
#[derive(Debug)]
pub struct Cluster {
    /// How each is started.
    pub launches: Vec<Launch>,
    /// Those that run.
    pub members: Vec<Option<Member>>,
    /// Their ids.
    pub ids: Vec<u64>,
    /// The network.
    pub links: Links,
}

impl Cluster {
    /// Prepares `count` members of this binary below `folder`. `cuttable` puts a proxy before each peer port.
    pub async fn new(
        binary: &Path,
        folder: &Path,
        count: usize,
        flags: &[&str],
        cuttable: bool,
    ) -> Result<Cluster> {
        let links = Links::default();
        let mut launches = Vec::new();
        let mut ids = Vec::new();
        let mut proxies = Vec::new();
        for at in 0..count {
            let mut launch = Launch::new(binary, folder.join(format!("m{at}")), flags)?;
            launch.name = format!("m{at}");
            if cuttable {
                let proxy = TcpListener::bind("127.0.0.1:0").await?;
                launch.peer_advertised = proxy.local_addr()?;
                proxies.push((proxy, launch.peer));
            }
            ids.push(ids::member_id(&[format!("http://{}", launch.peer_advertised)], TOKEN, None));
            launches.push(launch);
        }
        let parts =
            launches.iter().map(|launch| format!("{}=http://{}", launch.name, launch.peer_advertised));
        let all = parts.collect::<Vec<_>>().join(",");
        for launch in &mut launches {
            launch.initial_cluster.clone_from(&all);
            launch.flags.push(format!("--initial-cluster-token={TOKEN}"));
        }
        for ((proxy, target), id) in proxies.into_iter().zip(&ids) {
            tokio::task::spawn_local(links.clone().relay(proxy, target, *id));
        }
        Ok(Cluster { members: launches.iter().map(|_| None).collect(), launches, ids, links })
    }

    /// Starts whoever does not run, and waits until everybody answers linearizable reads.
    pub async fn ready(&mut self) -> Result<()> {
        for at in 0..self.launches.len() {
            self.start(at)?;
        }
        for member in self.members.iter_mut().flatten() {
            member.ready().await?;
        }
        Ok(())
    }

    /// Starts a member, if it does not run, and does not wait for it.
    pub fn start(&mut self, at: usize) -> Result<()> {
        if self.members[at].is_none() {
            self.members[at] = Some(self.launches[at].spawn()?);
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self, at: usize) -> Result<()> {
        self.members[at].take().map_or(Ok(()), Member::kill)
    }

    /// SIGKILL, and nothing is left of its data: it is removed from the cluster and added again, as etcd wants it, ready to be
    /// started. `by` carries that out.
    pub async fn replace(&mut self, at: usize, by: usize) -> Result<()> {
        self.kill(at)?;
        let launch = &mut self.launches[at];
        std::fs::remove_dir_all(&launch.folder)?;
        let mut client = Client::connect(self.members[by].as_ref().ok_or("nobody to ask")?.client).await?;
        let removal = MemberRemoveRequest { id: self.ids[at] };
        client.call::<_, MemberRemoveResponse>(path::MEMBER_REMOVE, &removal).await?;
        let url = format!("http://{}", launch.peer_advertised);
        let addition = MemberAddRequest { peer_ur_ls: vec![url], is_learner: false };
        let added: MemberAddResponse = client.call(path::MEMBER_ADD, &addition).await?;
        self.ids[at] = added.member.ok_or("an answer without a member")?.id;
        launch.flags.push("--initial-cluster-state=existing".to_owned());
        Ok(())
    }

    /// SIGTERM; waits for the end, which must be in order.
    pub async fn stop(&mut self, at: usize) -> Result<()> {
        let Some(mut member) = self.members[at].take() else { return Ok(()) };
        signal(&member, Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = member.try_wait()? {
                let text = || format!("m{at} ended with {status}: {}", member.log_tail());
                return if status.success() { Ok(()) } else { Err(text().into()) };
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err(format!("m{at} does not end: {}", member.log_tail()).into())
    }

    /// SIGSTOP.
    pub fn freeze(&self, at: usize) -> Result<()> {
        self.members[at].as_ref().map_or(Ok(()), |member| signal(member, Signal::STOP))
    }

    /// SIGCONT.
    pub fn thaw(&self, at: usize) -> Result<()> {
        self.members[at].as_ref().map_or(Ok(()), |member| signal(member, Signal::CONT))
    }

    /// Nobody reaches this member any more, nor does it reach anybody.
    pub fn isolate(&self, at: usize) {
        for other in self.ids.iter().filter(|id| **id != self.ids[at]) {
            self.links.cut(self.ids[at], *other);
        }
    }

    /// Whatever this member says and hears takes so much longer.
    pub fn slow_down(&self, at: usize, delay: Duration) {
        for other in self.ids.iter().filter(|id| **id != self.ids[at]) {
            self.links.slow_down(self.ids[at], *other, delay);
        }
    }

    /// What a member says of itself.
    pub async fn status(&self, at: usize) -> Result<StatusResponse> {
        let mut client = Client::connect(self.launches[at].client).await?;
        client.call(path::STATUS, &StatusRequest {}).await
    }

    /// Waits until somebody who runs knows a leader; the leader's number.
    pub async fn leader(&self) -> Result<usize> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for at in 0..self.members.len() {
                if self.members[at].is_none() {
                    continue;
                }
                let known = tokio::time::timeout(Duration::from_secs(1), self.status(at)).await;
                let Ok(Ok(status)) = known else { continue };
                if let Some(leader) = self.ids.iter().position(|id| *id == status.leader) {
                    return Ok(leader);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(format!("nobody leads after {PATIENCE:?}").into())
    }
}

fn signal(member: &Member, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(member.pid() as i32).ok_or("a process without an id")?;
    Ok(kill_process(pid, signal)?)
}
