//! `snapshot save`: a member's store, streamed into a file.
//!
//! The file has its name when it is whole and on the disk. Lines about the progress go to standard error in the shape
//! that etcd's tool gives them; on a terminal a bar stands below.

use std::future::pending;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget};
use tonic::Streaming;
use trilith_proto::etcdserverpb as pb;

use super::Session;
use crate::client::{DEADLINE_EXCEEDED, status_text};
use crate::exit::Failure;
use crate::gotext::human_bytes;
use crate::terminal::{info, say};

/// A file whose length leaves this rest has a hash at its end.
const SECTOR: u64 = 512;
const HASH: u64 = 32;
/// Where etcd's lines about a snapshot come from.
const CALLER: &str = "snapshot/v3_snapshot.go";

pub(super) async fn save(session: &Session) -> Result<(), Failure> {
    if session.args().len() != 1 {
        return Err(Failure::bad_args("snapshot save expects one argument"));
    }
    let name = session.text(0);
    // Without the flag there is no limit: a snapshot may be large.
    let limit = session.flags.changed("command-timeout").then(|| session.deadline());
    let limit = async {
        match limit {
            Some(limit) => tokio::time::sleep_until(limit).await,
            None => pending().await,
        }
    };
    let version = tokio::select! {
        saved = fetch(session, &name) => saved?,
        () = limit => return Err(Failure::interrupted(DEADLINE_EXCEEDED)),
        _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted("context canceled")),
    };
    say(format!("Snapshot saved at {name}\n").as_bytes())?;
    if version.is_empty() { Ok(()) } else { say(format!("Server version {version}\n").as_bytes()) }
}

/// The file under its other name; removed if it is not renamed.
struct Part {
    path: PathBuf,
    file: std::fs::File,
}

impl Part {
    fn create(name: &str) -> Result<Part, Failure> {
        let path = PathBuf::from(format!("{name}.part"));
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).map_err(|error| {
            Failure::interrupted(format_args!(
                "could not open {0} (open {0}: {1})",
                path.display(),
                reason(&error)
            ))
        })?;
        Ok(Part { path, file })
    }

    /// Makes it durable and gives it its name.
    fn finish(self, name: &str) -> Result<(), Failure> {
        let failed = |what: &str, error: std::io::Error| {
            let (part, error) = (self.path.display(), reason(&error));
            Failure::interrupted(format_args!("could not {what} {part} to {name} ({error})"))
        };
        self.file.sync_all().map_err(|error| failed("sync", error))?;
        std::fs::rename(&self.path, name).map_err(|error| failed("rename", error))?;
        let folder = Path::new(name).parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = std::fs::File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|folder| folder.sync_all()).map_err(|error| failed("sync the rename of", error))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It is gone after the rename.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The text of a system's error, as Go writes it.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text[..1].to_lowercase() + &text[1..]
}

async fn fetch(session: &Session, name: &str) -> Result<String, Failure> {
    let [endpoint] = session.config.endpoints.as_slice() else {
        let all = session.config.endpoints.join(" ");
        return Err(Failure::interrupted(format_args!(
            "snapshot must be requested to one selected node, not multiple [{all}]"
        )));
    };
    let mut part = Part::create(name)?;
    let path = part.path.display().to_string();
    info(CALLER, "created temporary db file", |line| line.text("path", &path));
    let interrupted = |failure: Failure| Failure::interrupted(failure.text);
    let client = session.config.connect(session.deadline()).await.map_err(interrupted)?;
    let started = tokio::time::Instant::now();
    let answer = client.maintenance().snapshot(pb::SnapshotRequest {}).await;
    let mut stream = answer.map_err(|status| Failure::interrupted(status_text(&status)))?.into_inner();
    info(CALLER, "fetching snapshot", |line| line.text("endpoint", endpoint));
    let (size, version) = receive(&mut stream, &mut part).await?;
    if size % SECTOR != HASH {
        return Err(Failure::interrupted(format_args!("sha256 checksum not found [bytes: {size}]")));
    }
    info(CALLER, "fetched snapshot", |line| {
        line.text("endpoint", endpoint);
        line.text("size", &human_bytes(size));
        line.plain("took", started.elapsed().as_secs_f64());
        line.text("etcd-version", &version);
    });
    part.finish(name)?;
    info(CALLER, "saved", |line| line.text("path", name));
    Ok(version)
}

/// Writes what comes; bytes, and the version that the messages carry.
async fn receive(
    stream: &mut Streaming<pb::SnapshotResponse>,
    part: &mut Part,
) -> Result<(u64, String), Failure> {
    let bar = ProgressBar::new(0);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let (mut size, mut version) = (0, String::new());
    let received = loop {
        match stream.message().await {
            Ok(Some(message)) => {
                if let Err(error) = part.file.write_all(&message.blob) {
                    let (path, error) = (part.path.display(), reason(&error));
                    break Err(Failure::interrupted(format_args!("write {path}: {error}")));
                }
                size += message.blob.len() as u64;
                bar.set_length(size + message.remaining_bytes);
                bar.set_position(size);
                version = message.version;
            }
            Ok(None) => break Ok((size, version)),
            Err(status) => break Err(Failure::interrupted(status_text(&status))),
        }
    };
    bar.finish_and_clear();
    received
}
