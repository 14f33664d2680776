//! The start of a core: a new member, or one that was here before.
//!
//! The store comes first and the log second, so a folder with a log always has a store. Which of the two starts it
//! is, the log decides: a member without one, or with one in which nothing was ever committed or voted for, is new.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use trilith_engine::Store;
use trilith_proto::{ids, raftpb};
use trilith_raft::Node;
use trilith_wal::{Metadata, Replay, Wal, WalError};

use super::adopt::adopt;
use super::shared::{Handle, Shared};
use super::{Config, Core, Fatal, Peer, force_new, install};
use crate::apply::members::{self, Member};
use crate::apply::restore_leases;
use crate::lease::Lessor;

/// Who this member is.
#[derive(Debug, Clone, Copy)]
struct Identity {
    member_id: u64,
    cluster_id: u64,
}

impl Core {
    /// Opens or makes a member. Blocks for as long as it takes to read the log.
    pub fn open(config: Config) -> Result<(Core, Handle), Fatal> {
        let (snap_dir, path) = (config.snap_dir(), config.store_path());
        config
            .disk
            .create_dir_all(&snap_dir)
            .map_err(|error| Fatal::Boot(format!("{}: {error}", snap_dir.display())))?;
        adopt(&config, &path, &config.log_dir())?;
        let store = Store::open(store_options(&config, &path))?;
        let (node, store, identity) = open_node(&config, store)?;
        let mut lessor = match config.lease_checkpoints {
            true => Lessor::with_checkpoints(config.min_lease_ttl()),
            false => Lessor::new(config.min_lease_ttl()),
        };
        restore_leases(&store, &mut lessor)
            .map_err(|error| Fatal::Boot(format!("{}: {error}", path.display())))?;
        let shared = Shared::new(&config, identity.member_id, identity.cluster_id, store.reader(), lessor);
        let shared = Arc::new(shared);
        let core = Core::new(node, store, Arc::clone(&shared), config, identity.member_id)?;
        Ok((core, Handle::new(shared)))
    }
}

pub(super) fn store_options(config: &Config, path: &Path) -> trilith_engine::Options {
    trilith_engine::Options {
        path: path.to_owned(),
        disk: Arc::clone(&config.disk),
        map: config.map,
        dirty_bytes_max: config.memory_budget / 4,
        compress: config.compress_values,
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

fn open_node(config: &Config, store: Store) -> Result<(Node, Store, Identity), Fatal> {
    let options = log_options(config, config.log_dir());
    if !Wal::exists(config.disk.as_ref(), &options.dir) {
        let (applied, _) = store.applied();
        if applied > 0 {
            let (path, dir) = (config.store_path(), options.dir);
            let (path, dir) = (path.display(), dir.display());
            return Err(Fatal::Boot(format!(
                "{path} holds entry {applied} of a log, but there is none in {dir}"
            )));
        }
        let store = install::complete(config, store, None)?;
        let identity = first_identity(config)?;
        let metadata = Metadata { node_id: identity.member_id, cluster_id: identity.cluster_id };
        let wal = Wal::create(options, metadata)?;
        return Ok((begin(config, wal, Replay::default(), identity)?, store, identity));
    }
    let dir = options.dir.clone();
    // Others that lag behind a little must not need a snapshot because this member was started again.
    let group = members::conf_state(store.view())?;
    let alone = group.voters.len() + group.learners.len() <= 1;
    let history = if alone { 0 } else { config.catchup_entries };
    let (mut wal, mut replay) = open_log(options, store.applied().0, history)?;
    let store = install::complete(config, store, Some(&replay))?;
    let (applied, applied_term) = store.applied();
    let identity = Identity { member_id: replay.metadata.node_id, cluster_id: replay.metadata.cluster_id };
    if applied == 0 && was_never_used(&replay) {
        // Where a member joins, the others have said who it is, and need not say it again.
        let expected = if config.existing { identity } else { first_identity(config)? };
        if expected.member_id != identity.member_id {
            let (log, flags) = (identity.member_id, expected.member_id);
            let dir = dir.display();
            return Err(Fatal::Boot(format!(
                "the log in {dir} is of member {log:x}, the initial cluster names {flags:x}"
            )));
        }
        return Ok((begin(config, wal, replay, identity)?, store, identity));
    }
    if members::is_removed(store.view(), identity.member_id)? {
        return Err(Fatal::Boot("the member has been permanently removed from the cluster".to_owned()));
    }
    if config.force_new_cluster {
        force_new::leave_the_others(config, &mut wal, &mut replay, store.view(), applied)?;
    }
    let conf_state = members::conf_state(store.view())?;
    let raft = raft_config(config, identity.member_id);
    let node = Node::restart(raft, wal, replay, applied, applied_term, conf_state)?;
    Ok((node, store, identity))
}

/// Opens the log so that it shows the entry that was applied last, if it is still there: that proves that nothing
/// is missing between store and log, even when the machine went down before the log got the checkpoint's mark.
///
/// The segments of `history` entries before that stay in use.
pub(super) fn open_log(
    options: trilith_wal::Options,
    applied: u64,
    history: u64,
) -> Result<(Wal, Replay), WalError> {
    match Wal::open_with_history(options.clone(), applied.saturating_sub(1), history) {
        Err(WalError::Missing { .. }) if applied > 0 => Wal::open(options, applied),
        opened => opened,
    }
}

/// The machine went down between making the log and its first batch.
fn was_never_used(replay: &Replay) -> bool {
    let state = &replay.hard_state;
    state.commit.unwrap_or(0) == 0 && state.vote.unwrap_or(0) == 0
}

/// The first start: with the log that all members of a new cluster begin with (J8), or, where it joins one, with an
/// empty log and nobody in its group (J6).
fn begin(config: &Config, wal: Wal, replay: Replay, identity: Identity) -> Result<Node, Fatal> {
    let raft = raft_config(config, identity.member_id);
    if config.existing {
        return Ok(Node::restart(raft, wal, replay, 0, 0, raftpb::ConfState::default())?);
    }
    let members = initial_members(config);
    let peers: Vec<_> =
        members.iter().map(|member| (member.id, Bytes::from(members::encode(member)))).collect();
    Ok(Node::bootstrap(raft, wal, &peers)?)
}

fn raft_config(config: &Config, id: u64) -> trilith_raft::Config {
    trilith_raft::Config {
        id,
        election_ticks: config.election_ticks(),
        heartbeat_ticks: 1,
        pre_vote: config.pre_vote,
        seed: config.seed,
        tail_bytes: config.raft_tail_bytes,
    }
}

/// The initial cluster, each member as its bootstrap entry names it (M1).
fn initial_members(config: &Config) -> Vec<Member> {
    let member = |peer: &Peer| {
        let mut peer_urls = peer.peer_urls.clone();
        peer_urls.sort();
        let id = ids::member_id(&peer_urls, &config.initial_cluster_token, None);
        Member { id, peer_urls, name: peer.name.clone(), ..Default::default() }
    };
    config.initial_cluster.iter().map(member).collect()
}

/// Who this member is at its first start: as the initial cluster says (M1, M2), or the cluster that it joins.
fn first_identity(config: &Config) -> Result<Identity, Fatal> {
    if config.existing {
        let join = config
            .join
            .ok_or_else(|| Fatal::Boot("nobody of the cluster has said who this member is".to_owned()))?;
        return Ok(Identity { member_id: join.member_id, cluster_id: join.cluster_id });
    }
    let members = initial_members(config);
    let Some(own) = members.iter().find(|member| member.name == config.name) else {
        let name = &config.name;
        return Err(Fatal::Boot(format!(
            "couldn't find local name \"{name}\" in the initial cluster configuration"
        )));
    };
    let mut ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    Ok(Identity { member_id: own.id, cluster_id: ids::cluster_id(&ids) })
}
