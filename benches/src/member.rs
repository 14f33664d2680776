//! A server as a child process: started on free ports and a folder of its own, watched until it answers, killed.
//!
//! The same flags go to a real etcd and to ours: whoever measures or compares treats both alike.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use trilith_proto::etcdserverpb::{RangeRequest, RangeResponse};

use crate::client::{Client, path};
use crate::{Error, Result};

/// A server that does not answer by then never will.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How to start a server; may be started again and again on the same folder and ports.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The etcd binary.
    pub binary: PathBuf,
    /// The folder that holds the data directory and the log.
    pub folder: PathBuf,
    /// Flags beside the addresses and the data directory.
    pub flags: Vec<String>,
    /// Its name in the cluster.
    pub name: String,
    /// Where clients connect.
    pub client: SocketAddr,
    /// Where it listens for other members.
    pub peer: SocketAddr,
    /// Where other members are told to connect.
    pub peer_advertised: SocketAddr,
    /// The value of --initial-cluster; empty for a member alone.
    pub initial_cluster: String,
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Member {
    child: Child,
    /// Where clients connect.
    pub client: SocketAddr,
    log: PathBuf,
    started: Instant,
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Launch {
    /// A server of this binary on free ports, with its data under `folder`.
    pub fn new(binary: &Path, folder: PathBuf, flags: &[&str]) -> Result<Launch> {
        if !binary.is_file() {
            return Err(format!("{}: there is no such server binary", binary.display()).into());
        }
        let peer = free_address()?;
        Ok(Launch {
            binary: binary.to_owned(),
            folder,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            name: "default".to_owned(),
            client: free_address()?,
            peer,
            peer_advertised: peer,
            initial_cluster: String::new(),
        })
    }

    /// Where the log of all its starts goes.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Starts the process and does not wait for it.
    pub fn spawn(&self) -> Result<Member> {
        std::fs::create_dir_all(&self.folder)?;
        let log = std::fs::File::options().create(true).append(true).open(self.log_path())?;
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let advertised = format!("http://{}", self.peer_advertised);
        let cluster = match self.initial_cluster.as_str() {
            "" => format!("{}={advertised}", self.name),
            cluster => cluster.to_owned(),
        };
        let started = Instant::now();
        let child = Command::new(&self.binary)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.folder.join("data").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={advertised}"))
            .arg(format!("--initial-cluster={cluster}"))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", self.binary.display()))?;
        Ok(Member { child, client: self.client, log: self.log_path(), started })
    }

    /// Starts the process and waits until it answers a linearizable read.
    pub async fn start(&self) -> Result<Member> {
        let mut member = self.spawn()?;
        member.ready().await?;
        Ok(member)
    }
}

impl Member {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it has.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until a linearizable read is answered; the time since the start of the process.
    pub async fn ready(&mut self) -> Result<Duration> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the server ended with {status}: {}", self.log_tail()).into());
            }
            if self.read_once().await.is_ok() {
                return Ok(self.started.elapsed());
            }
            if self.started.elapsed() > START_TIMEOUT {
                let tail = self.log_tail();
                return Err(format!("the server did not answer in {START_TIMEOUT:?}: {tail}").into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn read_once(&self) -> Result<RangeResponse> {
        let mut client = Client::connect(self.client).await?;
        let request = RangeRequest { key: "probe".into(), ..Default::default() };
        client.call(path::RANGE, &request).await
    }

    /// Kills with SIGKILL and waits for the end. An error when it had ended by itself.
    pub fn kill(mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        self.child.kill()?;
        self.child.wait()?;
        match ended {
            Some(status) => Err(format!("the server ended with {status}: {}", self.log_tail()).into()),
            None => Ok(()),
        }
    }

    /// The end of the log: what a failing server said last.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("{}:\n{tail}", self.log.display())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already, and nobody is left to tell.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The path of a folder below `parent`, which is not there yet, or not any more.
pub fn unused(parent: &Path, name: &str) -> Result<PathBuf> {
    let path = parent.join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path)?;
    }
    Ok(path)
}

/// A folder that is removed at the end, unless it is kept for a look at what went wrong.
#[derive(Debug)]
pub struct Scratch {
    /// The folder.
    pub path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// A new folder under `parent`.
    pub fn new(parent: &Path, name: &str) -> Result<Scratch> {
        let path = unused(parent, &format!("trilith-{name}-{}", std::process::id()))?;
        std::fs::create_dir_all(&path).map_err(|e| Error::from(format!("{}: {e}", path.display())))?;
        Ok(Scratch { path, keep: false })
    }

    /// Leaves the folder where it is.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // What is left of a scratch folder harms nobody.
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}

/// Our own binary: beside the harness's own, where cargo puts it.
pub fn our_binary() -> PathBuf {
    let harness = std::env::current_exe().unwrap_or_default();
    harness.parent().unwrap_or(Path::new(".")).join("etcd")
}
