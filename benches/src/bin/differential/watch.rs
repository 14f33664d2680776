//! Watches on both servers: the events of a whole run, and catch-up from random revisions, must be equal.

use trilith_benches::Result;
use trilith_benches::client::{Client, Stream, path};
use trilith_benches::rng::Rng;
use trilith_proto::etcdserverpb::watch_request::RequestUnion;
use trilith_proto::etcdserverpb::*;
use trilith_proto::mvccpb::Event;
use trilith_proto::mvccpb::event::EventType;

use crate::compare::explain;
use crate::run::Pair;

/// What a watcher got: its events in order, and how it was cancelled if it was.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Seen {
    events: Vec<Event>,
    canceled: Option<(i64, String)>,
}

/// The key of which a delete ends every run.
const MARKER: &[u8] = b"a-marker";

/// A watcher on one server.
#[derive(Debug)]
pub(crate) struct Watcher {
    stream: Stream,
}

impl Watcher {
    /// Creates a watcher and waits until the server says so.
    pub(crate) async fn create(client: &Client, request: &WatchCreateRequest) -> Result<Watcher> {
        let mut stream = client.clone().stream(path::WATCH).await?;
        stream.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(request.clone())) })?;
        let created: WatchResponse = match stream.next().await? {
            Ok(Some(response)) => response,
            other => return Err(format!("a watch stream ended at its start: {other:?}").into()),
        };
        if !created.created {
            return Err(format!("the first answer to a watch is not its creation: {created:?}").into());
        }
        Ok(Watcher { stream })
    }

    /// Collects until the marker is deleted, or until the watcher is cancelled.
    pub(crate) async fn collect(mut self) -> Result<Seen> {
        let mut seen = Seen::default();
        loop {
            let response: WatchResponse = match self.stream.next().await? {
                Ok(Some(response)) => response,
                other => return Err(format!("a watch stream ended: {other:?}").into()),
            };
            if response.canceled {
                seen.canceled = Some((response.compact_revision, response.cancel_reason));
                return Ok(seen);
            }
            check_whole_revisions(&seen, &response)?;
            seen.events.extend(response.events);
            let ends = |event: &Event| {
                event.r#type == EventType::Delete as i32
                    && event.kv.as_ref().is_some_and(|kv| kv.key == MARKER)
            };
            if seen.events.last().is_some_and(ends) {
                return Ok(seen);
            }
        }
    }
}

/// All events of a revision come in one response (W11).
fn check_whole_revisions(seen: &Seen, response: &WatchResponse) -> Result<()> {
    let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    match (seen.events.last(), response.events.first()) {
        (Some(before), Some(next)) if revision(next) <= revision(before) => {
            Err(format!("revision {} after {} in a later response", revision(next), revision(before)).into())
        }
        _ => Ok(()),
    }
}

/// A request for all keys from a revision on.
pub(crate) fn everything_from(revision: i64, prev_kv: bool) -> WatchCreateRequest {
    WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: revision,
        prev_kv,
        ..Default::default()
    }
}

/// Writes and deletes the marker on both; the revision of the deletion.
pub(crate) async fn mark_end(pair: &mut Pair) -> Result<i64> {
    let mut revisions = Vec::new();
    for side in [&mut pair.etcd, &mut pair.ours] {
        let put = PutRequest { key: MARKER.into(), value: "end".into(), ..Default::default() };
        let _: PutResponse = side.client.call(path::PUT, &put).await?;
        let delete = DeleteRangeRequest { key: MARKER.into(), ..Default::default() };
        let deleted: DeleteRangeResponse = side.client.call(path::DELETE_RANGE, &delete).await?;
        revisions.push(deleted.header.map_or(0, |header| header.revision));
    }
    if revisions[0] != revisions[1] {
        return Err(format!("the runs end at revisions {} and {}", revisions[0], revisions[1]).into());
    }
    Ok(revisions[0])
}

/// Compares what two watchers saw. `compacted` is where the history begins.
fn compare(name: &str, etcd: &mut Seen, ours: &mut Seen, compacted: i64) -> Result<()> {
    // C4: since 3.4.34 a tombstone exactly at the compact revision is kept, so that a watch from there shows it.
    for seen in [&mut *etcd, &mut *ours] {
        let at_compaction = |event: &Event| {
            event.r#type == EventType::Delete as i32
                && event.kv.as_ref().is_some_and(|kv| kv.mod_revision == compacted)
        };
        seen.events.retain(|event| !at_compaction(event));
    }
    if etcd == ours {
        return Ok(());
    }
    let differing = etcd.events.iter().zip(&ours.events).find(|(l, r)| l != r);
    let text = match differing {
        Some((l, r)) => explain(l, r),
        None => format!(
            "{} events and {:?} from etcd, {} and {:?} from ours",
            etcd.events.len(),
            etcd.canceled,
            ours.events.len(),
            ours.canceled
        ),
    };
    Err(format!("the events of {name} differ: {text}").into())
}

/// A watcher on all keys that collects while the run goes on. Both stores are at revision 1: a watcher from 2 on is
/// synced at once (W4), where one from 1 on waits for etcd's next round and may lose against an early compaction.
pub(crate) async fn collect_live(client: &Client) -> Result<Live> {
    let watcher = Watcher::create(client, &everything_from(2, true)).await?;
    Ok(tokio::spawn(watcher.collect()))
}

/// What a watcher that runs along will have seen.
pub(crate) type Live = tokio::task::JoinHandle<Result<Seen>>;

/// Compares the watchers that ran along. `compacted` is the last compaction of the run.
pub(crate) async fn compare_live(etcd: Live, ours: Live, compacted: i64) -> Result<usize> {
    let (mut etcd, mut ours) = (etcd.await??, ours.await??);
    forgive_lost(&etcd, &mut ours, compacted);
    // No compaction was there before the watchers.
    compare("the watch over the whole run", &mut etcd, &mut ours, 0)?;
    Ok(etcd.events.len())
}

/// etcd looks the previous pair up when it sends an event (W14), so a compaction may come before that, and the event goes
/// without: more of them the slower its watcher is. Then ours need not have it. The other way round is an error.
fn forgive_lost(etcd: &Seen, ours: &mut Seen, compacted: i64) {
    let mut lost = 0;
    for (theirs, event) in etcd.events.iter().zip(&mut ours.events) {
        let compacted = theirs.kv.as_ref().is_some_and(|kv| kv.mod_revision <= compacted);
        if compacted && theirs.prev_kv.is_none() && event.prev_kv.take().is_some() {
            lost += 1;
        }
    }
    if lost > 0 {
        println!(
            "  the watch over the whole run: etcd left out {lost} previous pairs that were compacted meanwhile"
        );
    }
}

/// Watches from random revisions, below the compaction too, and compares; how many events were seen.
pub(crate) async fn compare_catch_up(
    pair: &Pair,
    rng: &mut Rng,
    count: usize,
    compacted: i64,
    last: i64,
) -> Result<usize> {
    let mut events = 0;
    for i in 0..count {
        let from = match i {
            0 => 1,
            1 => compacted.max(1),
            2 => compacted + 1,
            _ => rng.between(compacted, last),
        };
        let mut request = everything_from(from, rng.chance(50));
        match rng.below(4) {
            0 => request.filters = vec![watch_create_request::FilterType::Noput as i32],
            // The marker stands in this interval, and its end is a deletion.
            1 => (request.key, request.range_end) = ("a".into(), "b".into()),
            _ => {}
        }
        let etcd = Watcher::create(&pair.etcd.client, &request).await?.collect();
        let ours = Watcher::create(&pair.ours.client, &request).await?.collect();
        let (etcd, ours) = tokio::join!(etcd, ours);
        let (mut etcd, mut ours) = (etcd?, ours?);
        compare(&format!("{request:?}"), &mut etcd, &mut ours, compacted)?;
        events += etcd.events.len();
    }
    Ok(events)
}
