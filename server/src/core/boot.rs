//! The start of a core: a new member, or one that was here before.
//!
//! The store comes first and the log second, so a folder with a log always has a store. Which of the two starts it
//! is, the log decides: a member without one, or with one in which nothing was ever committed or voted for, is new.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use trilith_engine::Store;
use trilith_proto::ids;
use trilith_raft::Node;
use trilith_wal::{Metadata, Replay, Wal, WalError};

use super::adopt::adopt;
use super::shared::{Handle, Shared};
use super::{Config, Core, Fatal};
use crate::apply::members::{self, Member};
use crate::apply::restore_leases;
use crate::lease::Lessor;

/// Bytes of the log's tail that raft keeps in memory for followers.
const RAFT_TAIL_BYTES: usize = 16 << 20;

/// Who this member is.
#[derive(Debug, Clone, Copy)]
struct Identity {
    member_id: u64,
    cluster_id: u64,
}

impl Core {
    /// Opens or makes a member. Blocks for as long as it takes to read the log.
    pub fn open(config: Config) -> Result<(Core, Handle), Fatal> {
        let snap_dir = config.data_dir.join("member").join("snap");
        let wal_dir = config.wal_dir.clone().unwrap_or_else(|| config.data_dir.join("member").join("wal"));
        config
            .disk
            .create_dir_all(&snap_dir)
            .map_err(|error| Fatal::Boot(format!("{}: {error}", snap_dir.display())))?;
        let path = snap_dir.join("db");
        adopt(&config, &path, &wal_dir)?;
        let store = Store::open(trilith_engine::Options {
            path: path.clone(),
            disk: Arc::clone(&config.disk),
            map: config.map,
            dirty_bytes_max: config.memory_budget / 4,
            compress: config.compress_values,
        })?;
        let (node, identity) = open_node(&config, &store, &path, wal_dir)?;
        let mut lessor = Lessor::new(config.min_lease_ttl());
        restore_leases(&store, &mut lessor)
            .map_err(|error| Fatal::Boot(format!("{}: {error}", path.display())))?;
        let shared = Shared::new(&config, identity.member_id, identity.cluster_id, store.reader(), lessor);
        let shared = Arc::new(shared);
        let core = Core::new(node, store, Arc::clone(&shared), config, identity.member_id)?;
        Ok((core, Handle::new(shared)))
    }
}

pub(super) fn log_options(config: &Config, dir: PathBuf) -> trilith_wal::Options {
    trilith_wal::Options {
        dir,
        disk: Arc::clone(&config.disk),
        io: config.wal_io,
        segment_bytes: config.wal_segment_bytes,
        fsync: config.fsync,
        max_segments: config.max_wals,
    }
}

fn open_node(config: &Config, store: &Store, path: &Path, dir: PathBuf) -> Result<(Node, Identity), Fatal> {
    let (applied, applied_term) = store.applied();
    let options = log_options(config, dir);
    if !Wal::exists(config.disk.as_ref(), &options.dir) {
        if applied > 0 {
            let (path, dir) = (path.display(), options.dir.display());
            return Err(Fatal::Boot(format!(
                "{path} holds entry {applied} of a log, but there is none in {dir}"
            )));
        }
        let (identity, member) = first_identity(config)?;
        let metadata = Metadata { node_id: identity.member_id, cluster_id: identity.cluster_id };
        let wal = Wal::create(options, metadata)?;
        return Ok((bootstrap(config, wal, identity, &member)?, identity));
    }
    let dir = options.dir.clone();
    let (wal, replay) = open_log(options, applied)?;
    let identity = Identity { member_id: replay.metadata.node_id, cluster_id: replay.metadata.cluster_id };
    if applied == 0 && was_never_used(&replay) {
        let (expected, member) = first_identity(config)?;
        if expected.member_id != identity.member_id {
            let (log, flags) = (identity.member_id, expected.member_id);
            let dir = dir.display();
            return Err(Fatal::Boot(format!(
                "the log in {dir} is of member {log:x}, the initial cluster names {flags:x}"
            )));
        }
        return Ok((bootstrap(config, wal, identity, &member)?, identity));
    }
    let conf_state = members::conf_state(store.view())?;
    let count = conf_state.voters.len() + conf_state.learners.len();
    if count > 1 {
        let path = path.display();
        return Err(Fatal::Boot(format!(
            "{path} is of a cluster of {count} members; this version serves one"
        )));
    }
    let raft = raft_config(config, identity.member_id);
    Ok((Node::restart(raft, wal, replay, applied, applied_term, conf_state)?, identity))
}

/// Opens the log so that it shows the entry that was applied last, if it is still there: that proves that nothing
/// is missing between store and log, even when the machine went down before the log got the checkpoint's mark.
pub(super) fn open_log(options: trilith_wal::Options, applied: u64) -> Result<(Wal, Replay), WalError> {
    match Wal::open(options.clone(), applied.saturating_sub(1)) {
        Err(WalError::Missing { .. }) if applied > 0 => Wal::open(options, applied),
        opened => opened,
    }
}

/// The machine went down between making the log and its first batch.
fn was_never_used(replay: &Replay) -> bool {
    let state = &replay.hard_state;
    state.commit.unwrap_or(0) == 0 && state.vote.unwrap_or(0) == 0
}

fn bootstrap(config: &Config, wal: Wal, identity: Identity, member: &Member) -> Result<Node, Fatal> {
    let peers = [(identity.member_id, Bytes::from(members::encode(member)))];
    Ok(Node::bootstrap(raft_config(config, identity.member_id), wal, &peers)?)
}

fn raft_config(config: &Config, id: u64) -> trilith_raft::Config {
    trilith_raft::Config {
        id,
        election_ticks: config.election_ticks(),
        heartbeat_ticks: 1,
        pre_vote: config.pre_vote,
        seed: config.seed,
        tail_bytes: RAFT_TAIL_BYTES,
    }
}

/// Ids from the initial cluster (M1, M2), and the member as its bootstrap entry names it.
fn first_identity(config: &Config) -> Result<(Identity, Member), Fatal> {
    let token = &config.initial_cluster_token;
    let [peer] = config.initial_cluster.as_slice() else {
        let count = config.initial_cluster.len();
        return Err(Fatal::Boot(format!("--initial-cluster names {count} members; this version serves one")));
    };
    if peer.name != config.name {
        let name = &config.name;
        return Err(Fatal::Boot(format!(
            "couldn't find local name \"{name}\" in the initial cluster configuration"
        )));
    }
    let mut peer_urls = peer.peer_urls.clone();
    peer_urls.sort();
    let member_id = ids::member_id(&peer_urls, token, None);
    let member = Member { id: member_id, peer_urls, name: peer.name.clone(), ..Default::default() };
    Ok((Identity { member_id, cluster_id: ids::cluster_id(&[member_id]) }, member))
}
