//! `defrag`: each member in turn makes its store's file as short as it gets.

use tokio::time::Instant;
use trilith_proto::etcdserverpb::DefragmentRequest;

use super::{Session, endpoint};
use crate::client::Config;
use crate::exit::Failure;
use crate::gotext::duration;
use crate::terminal::{note, say};

pub(super) async fn defrag(session: &Session) -> Result<(), Failure> {
    let mut failed = false;
    for endpoint in endpoint::endpoints(session).await? {
        let started = Instant::now();
        let outcome = member(&session.config.only(&endpoint)).await;
        let took = duration(started.elapsed());
        match outcome {
            Ok(()) => {
                say(format!("Finished defragmenting etcd member[{endpoint}]. took {took}\n").as_bytes())?;
            }
            Err(reason) => {
                failed = true;
                note(format_args!("Failed to defragment etcd member[{endpoint}]. took {took}. ({reason})"));
            }
        }
    }
    if failed { Err(Failure::silent(1)) } else { Ok(()) }
}

async fn member(config: &Config) -> Result<(), String> {
    let client = config.connect(config.deadline()).await.map_err(|failure| failure.text)?;
    client.call(client.maintenance().defragment(DefragmentRequest {})).await.map(|_| ())
}
