//! The core as the peer port needs it.

use trilith_proto::etcdserverpb::{HashKvResponse, LeaseTimeToLiveResponse, ResponseHeader};

use super::{Later, Sink, Versions};
use crate::apply::downgrade;
use crate::apply::members::{self, Member};
use crate::blocking;
use crate::core::{Handle, Overflow, PeerEvent, SERVER_VERSION};
use crate::service::cluster;
use crate::status::Status;

impl Sink for Handle {
    fn event(&self, event: PeerEvent) -> Result<(), Overflow> {
        self.peer_event(event)
    }

    fn members(&self) -> Result<Vec<Member>, Status> {
        Ok(members::list(self.root().view())?)
    }

    fn versions(&self) -> Result<Versions, Status> {
        let root = self.root();
        let known = |version: Option<String>, unknown: &str| version.unwrap_or_else(|| unknown.to_owned());
        Ok(Versions {
            etcdserver: SERVER_VERSION.to_owned(),
            etcdcluster: known(members::cluster_version(root.view())?, "not_decided"),
            storage: known(members::storage_version(root.view())?, "unknown"),
        })
    }

    fn renew(&self, lease: i64) -> Later<Result<i64, Status>> {
        let handle = self.clone();
        // Not the call that asks the leader in turn: two members that take each other for it would ask for ever.
        Box::pin(async move { handle.keep_alive_here(lease).await })
    }

    fn lease(&self, id: i64, keys: bool) -> Later<Result<Option<LeaseTimeToLiveResponse>, Status>> {
        let handle = self.clone();
        Box::pin(async move {
            let left = handle.lease_left_here(id, keys).await?;
            Ok(left.map(|left| LeaseTimeToLiveResponse { header: Some(ResponseHeader::default()), ..left }))
        })
    }

    fn hash_kv(&self, revision: i64) -> Later<Result<HashKvResponse, Status>> {
        let root = self.root();
        let header = Some(self.header(root.view().revision(), root.applied().1));
        Box::pin(blocking::run(move || {
            let (hash, compact_revision, hash_revision) = root.view().hash_kv(revision)?;
            Ok(HashKvResponse { header, hash, compact_revision, hash_revision })
        }))
    }

    fn promote(&self, id: u64, _: Option<String>) -> Later<Result<Vec<Member>, Status>> {
        let handle = self.clone();
        Box::pin(async move { cluster::promote_here(&handle, id).await })
    }

    fn downgrade_enabled(&self) -> Later<Result<bool, Status>> {
        let handle = self.clone();
        Box::pin(async move {
            handle.read_point().await?;
            Ok(downgrade::get(handle.root().view())?.enabled)
        })
    }
}
