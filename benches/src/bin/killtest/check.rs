//! The check after a restart: the history since the last round is read as events, and each revision of it must be one
//! write that was sent; each acknowledged write must be there, whole, at its revision.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use trilith_benches::Result;
use trilith_benches::client::{Client, path};
use trilith_proto::etcdserverpb::watch_request::RequestUnion;
use trilith_proto::etcdserverpb::*;
use trilith_proto::mvccpb::event::EventType;
use trilith_proto::mvccpb::{Event, KeyValue};

use crate::writes::{Acknowledged, Change, Read, Write, is_put};

/// Reads under way at once in the check.
const READS_IN_FLIGHT: usize = 64;

/// What the store must hold: followed from event to event over all rounds.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) revision: i64,
    keys: BTreeMap<Bytes, KeyValue>,
}

/// What a round's check saw.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) acknowledged: usize,
    pub(crate) unanswered_found: usize,
    pub(crate) unanswered_lost: usize,
}

impl Model {
    pub(crate) fn new() -> Model {
        Model { revision: 1, keys: BTreeMap::new() }
    }

    /// Checks a round and takes its history over.
    pub(crate) async fn check(
        &mut self,
        clients: &[Client],
        writes: &[Write],
        reads: &[Read],
        shown: i64,
    ) -> Result<Tally> {
        let mut client = clients[0].clone();
        let everything =
            RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let stored: RangeResponse = client.call(path::RANGE, &everything).await?;
        let revision = stored.header.map_or(0, |header| header.revision);
        if revision < shown {
            return Err(format!("the revision is {revision}, and {shown} had been shown to a client").into());
        }
        let history = history(&mut client, self.revision + 1, revision).await?;
        let tally = match_writes(&history, writes, self.revision)?;
        let before: HashMap<Bytes, Bytes> =
            self.keys.iter().map(|(key, kv)| (key.clone(), kv.value.clone())).collect();
        for (main, events) in &history {
            self.apply(*main, events)?;
        }
        self.revision = revision;
        if !stored.kvs.iter().eq(self.keys.values()) {
            return Err(first_difference(&stored.kvs, &self.keys).into());
        }
        check_reads(&before, &history, reads)?;
        read_back(clients, writes).await?;
        Ok(tally)
    }

    fn apply(&mut self, main: i64, events: &[Event]) -> Result<()> {
        for event in events {
            let Some(kv) = &event.kv else { return Err(format!("an event without a pair at {main}").into()) };
            if event.r#type == EventType::Delete as i32 {
                if self.keys.remove(&kv.key).is_none() {
                    return Err(format!("revision {main} deletes {:?}, which is not there", kv.key).into());
                }
                continue;
            }
            let (create_revision, version) = match self.keys.get(&kv.key) {
                Some(old) => (old.create_revision, old.version + 1),
                None => (main, 1),
            };
            let expected = KeyValue { create_revision, version, mod_revision: main, ..kv.clone() };
            if expected != *kv {
                return Err(
                    format!("revision {main} holds {}, expected {}", brief(kv), brief(&expected)).into()
                );
            }
            self.keys.insert(kv.key.clone(), expected);
        }
        Ok(())
    }
}

fn brief(kv: &KeyValue) -> String {
    let value: String = String::from_utf8_lossy(&kv.value).chars().take_while(|c| *c != ' ').collect();
    format!(
        "{:?} = {value} (created {}, modified {}, version {})",
        kv.key, kv.create_revision, kv.mod_revision, kv.version
    )
}

fn first_difference(stored: &[KeyValue], model: &BTreeMap<Bytes, KeyValue>) -> String {
    let stored: BTreeMap<&Bytes, &KeyValue> = stored.iter().map(|kv| (&kv.key, kv)).collect();
    let keys = stored.keys().copied().chain(model.keys());
    let differs = |key: &&Bytes| stored.get(*key).copied() != model.get(*key);
    match keys.into_iter().find(differs) {
        Some(key) => format!(
            "the store holds {:?}, its events say {:?}",
            stored.get(key).map(|kv| brief(kv)),
            model.get(key).map(brief)
        ),
        None => "the store answers its keys out of order".into(),
    }
}

/// Every event with a main revision from `from` to `to`, by revision.
async fn history(client: &mut Client, from: i64, to: i64) -> Result<BTreeMap<i64, Vec<Event>>> {
    let mut history: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    if from > to {
        return Ok(history);
    }
    let mut stream = client.stream(path::WATCH).await?;
    let create = WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: from,
        ..Default::default()
    };
    stream.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })?;
    while history.last_key_value().is_none_or(|(last, _)| *last < to) {
        let response: WatchResponse = match stream.next::<WatchResponse>().await? {
            Ok(Some(response)) if !response.canceled => response,
            other => return Err(format!("the watch from revision {from} ended: {other:?}").into()),
        };
        for event in response.events {
            let main = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            history.entry(main).or_default().push(event);
        }
    }
    Ok(history)
}

/// Each revision is one write that was sent, and no write is there twice.
fn match_writes(history: &BTreeMap<i64, Vec<Event>>, writes: &[Write], before: i64) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut owner: HashMap<i64, usize> = HashMap::new();
    for (at, write) in writes.iter().enumerate() {
        let Some(answer) = &write.answer else { continue };
        tally.acknowledged += 1;
        if !changed(write, answer) {
            continue;
        }
        let events = history.get(&answer.revision).map_or(&[][..], Vec::as_slice);
        let branch = &write.branches[answer.branch];
        if !made_by(events, branch) || !deleted_as_told(events, branch, answer) {
            return Err(
                format!("an acknowledged write {write:?} is not what revision holds: {events:?}").into()
            );
        }
        if let Some(other) = owner.insert(answer.revision, at) {
            let other = &writes[other];
            return Err(format!("two writes were acknowledged at one revision: {write:?}, {other:?}").into());
        }
    }
    let unanswered: Vec<&Write> = writes.iter().filter(|write| write.answer.is_none()).collect();
    let mut senders = Senders { choices: Vec::new(), taken: vec![None; unanswered.len()] };
    let mut expected = before;
    for (main, events) in history {
        expected += 1;
        if *main != expected {
            return Err(format!("after revision {} comes {main}", expected - 1).into());
        }
        if owner.contains_key(main) {
            continue;
        }
        let may_have_sent = |write: &Write| write.branches.iter().any(|branch| made_by(events, branch));
        let choices = (0..unanswered.len()).filter(|at| may_have_sent(unanswered[*at])).collect();
        if !senders.assign(choices) {
            return Err(format!("revision {main} holds what nobody wrote: {events:?}").into());
        }
    }
    tally.unanswered_found = senders.choices.len();
    tally.unanswered_lost = unanswered.len() - tally.unanswered_found;
    Ok(tally)
}

/// Revisions and the unanswered writes that may have made them, each write one revision at most: deletions of the same
/// keys look alike, so an earlier choice may have to give way.
struct Senders {
    /// For each revision so far, the writes that may have made it.
    choices: Vec<Vec<usize>>,
    /// For each write, the revision that it is taken for.
    taken: Vec<Option<usize>>,
}

impl Senders {
    /// Adds a revision; false when no assignment is left that gives every revision a write of its own.
    fn assign(&mut self, choices: Vec<usize>) -> bool {
        self.choices.push(choices);
        let mut tried = vec![false; self.taken.len()];
        self.place(self.choices.len() - 1, &mut tried)
    }

    fn place(&mut self, revision: usize, tried: &mut [bool]) -> bool {
        for choice in self.choices[revision].clone() {
            if std::mem::replace(&mut tried[choice], true) {
                continue;
            }
            let free = match self.taken[choice] {
                None => true,
                Some(other) => self.place(other, tried),
            };
            if free {
                self.taken[choice] = Some(revision);
                return true;
            }
        }
        false
    }
}

fn changed(write: &Write, answer: &Acknowledged) -> bool {
    write.branches[answer.branch].iter().any(is_put) || answer.deleted.iter().any(|n| *n > 0)
}

/// Whether the events of one revision are what these changes, in their order, can make.
fn made_by(events: &[Event], changes: &[Change]) -> bool {
    let mut rest = events;
    for change in changes {
        match change {
            Change::Put { key, value } => match rest.split_first() {
                Some((event, tail)) if is_put_of(event, key, value) => rest = tail,
                _ => return false,
            },
            Change::Delete { key, end } => {
                let count = rest.iter().take_while(|event| is_delete_within(event, key, end)).count();
                rest = &rest[count..];
            }
        }
    }
    rest.is_empty() && !events.is_empty()
}

fn deleted_as_told(events: &[Event], changes: &[Change], answer: &Acknowledged) -> bool {
    let deletes = changes.iter().filter(|change| !is_put(change)).count();
    let found = events.iter().filter(|event| event.r#type == EventType::Delete as i32).count() as i64;
    deletes == answer.deleted.len() && found == answer.deleted.iter().sum::<i64>()
}

fn is_put_of(event: &Event, key: &Bytes, value: &Bytes) -> bool {
    let pair = event.kv.as_ref();
    event.r#type == EventType::Put as i32 && pair.is_some_and(|kv| kv.key == *key && kv.value == *value)
}

fn is_delete_within(event: &Event, key: &Bytes, end: &Bytes) -> bool {
    let pair = event.kv.as_ref();
    event.r#type == EventType::Delete as i32 && pair.is_some_and(|kv| *key <= kv.key && kv.key < *end)
}

/// What a client read before the kill is what the history says of that revision: nothing was shown that was lost.
fn check_reads(
    before: &HashMap<Bytes, Bytes>,
    history: &BTreeMap<i64, Vec<Event>>,
    reads: &[Read],
) -> Result<()> {
    let mut ordered: Vec<&Read> = reads.iter().collect();
    ordered.sort_by_key(|read| read.revision);
    let mut state = before.clone();
    let mut events = history.iter().peekable();
    for read in ordered {
        while let Some((_, events)) = events.next_if(|(main, _)| **main <= read.revision) {
            for event in events {
                let Some(kv) = &event.kv else { continue };
                match event.r#type == EventType::Delete as i32 {
                    true => state.remove(&kv.key),
                    false => state.insert(kv.key.clone(), kv.value.clone()),
                };
            }
        }
        if state.get(&read.key) != read.value.as_ref() {
            return Err(
                format!("{read:?} was answered, and the history says {:?}", state.get(&read.key)).into()
            );
        }
    }
    Ok(())
}

/// Reads every acknowledged change at its revision.
async fn read_back(clients: &[Client], writes: &[Write]) -> Result<()> {
    let mut wanted = Vec::new();
    for write in writes {
        let Some(answer) = &write.answer else { continue };
        for change in &write.branches[answer.branch] {
            let (key, value) = match change {
                Change::Put { key, value } => (key.clone(), Some(value.clone())),
                Change::Delete { key, .. } => (key.clone(), None),
            };
            wanted.push((key, answer.revision, value));
        }
    }
    let wanted = std::rc::Rc::new(wanted);
    let mut loops = Vec::new();
    for lane in 0..READS_IN_FLIGHT {
        let (mut client, wanted) = (clients[lane % clients.len()].clone(), wanted.clone());
        loops.push(tokio::task::spawn_local(async move {
            for (key, revision, value) in wanted.iter().skip(lane).step_by(READS_IN_FLIGHT) {
                let request = RangeRequest { key: key.clone(), revision: *revision, ..Default::default() };
                let response: RangeResponse = client.call(path::RANGE, &request).await?;
                let found = response.kvs.first().map(|kv| kv.value.clone());
                if found != *value {
                    return Err(format!("{key:?} at revision {revision}: {found:?} for {value:?}").into());
                }
            }
            Ok::<(), trilith_benches::Error>(())
        }));
    }
    for one in loops {
        one.await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> Change {
        Change::Put { key: key.into(), value: value.into() }
    }

    fn delete(key: &'static str, end: &'static str) -> Change {
        Change::Delete { key: key.into(), end: end.into() }
    }

    fn event(kind: EventType, key: &'static str, value: &'static str, main: i64) -> Event {
        let kv = KeyValue { key: key.into(), value: value.into(), mod_revision: main, ..Default::default() };
        Event { r#type: kind as i32, kv: Some(kv), prev_kv: None }
    }

    fn write(changes: &[Change], answer: Option<(i64, &[i64])>) -> Write {
        Write {
            branches: [changes.to_vec(), changes.to_vec()],
            answer: answer.map(|(revision, deleted)| Acknowledged {
                revision,
                branch: 0,
                deleted: deleted.to_vec(),
            }),
        }
    }

    fn history(events: Vec<Event>) -> BTreeMap<i64, Vec<Event>> {
        let mut history: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        for event in events {
            let main = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            history.entry(main).or_default().push(event);
        }
        history
    }

    /// Two acknowledged writes, one without an answer that was done, and one that was not.
    fn good() -> (Vec<Event>, Vec<Write>) {
        let events = vec![
            event(EventType::Put, "a", "1", 2),
            event(EventType::Put, "b", "2", 3),
            event(EventType::Delete, "a", "", 3),
            event(EventType::Put, "c", "3", 4),
        ];
        let writes = vec![
            write(&[put("a", "1")], Some((2, &[]))),
            write(&[put("b", "2"), delete("a", "b")], Some((3, &[1]))),
            write(&[put("c", "3")], None),
            write(&[put("c", "4")], None),
        ];
        (events, writes)
    }

    fn outcome(events: Vec<Event>, writes: &[Write]) -> Result<Tally> {
        match_writes(&history(events), writes, 1)
    }

    #[test]
    fn what_was_written_is_found() {
        let (events, writes) = good();
        let tally = outcome(events, &writes).unwrap();
        assert_eq!((tally.acknowledged, tally.unanswered_found, tally.unanswered_lost), (2, 1, 1));
    }

    #[test]
    fn a_lost_write_is_noticed() {
        let (mut events, writes) = good();
        events.remove(0);
        assert!(outcome(events, &writes).is_err());
    }

    #[test]
    fn a_half_transaction_is_noticed() {
        let (mut events, writes) = good();
        events.remove(2);
        assert!(outcome(events, &writes).is_err());
    }

    #[test]
    fn a_value_that_nobody_wrote_is_noticed() {
        let (mut events, writes) = good();
        events[3] = event(EventType::Put, "c", "5", 4);
        assert!(outcome(events, &writes).is_err());
    }

    #[test]
    fn a_write_that_is_there_twice_is_noticed() {
        let (mut events, writes) = good();
        events.push(event(EventType::Put, "c", "3", 5));
        assert!(outcome(events, &writes).is_err());
    }

    #[test]
    fn a_revision_left_out_is_noticed() {
        let (mut events, writes) = good();
        events[3] = event(EventType::Put, "c", "3", 5);
        assert!(outcome(events, &writes).is_err());
    }

    #[test]
    fn a_deletion_that_may_be_of_two_writers_goes_to_the_one_that_fits() {
        let events = vec![
            event(EventType::Delete, "a", "", 2),
            event(EventType::Delete, "a", "", 3),
            event(EventType::Delete, "b", "", 3),
        ];
        let wide = write(&[delete("a", "c")], None);
        let narrow = write(&[delete("a", "b")], None);
        assert_eq!(outcome(events.clone(), &[wide, narrow]).unwrap().unanswered_found, 2);
        assert!(
            outcome(events, &[write(&[delete("a", "b")], None), write(&[delete("b", "c")], None)]).is_err()
        );
    }

    #[test]
    fn a_read_that_was_taken_back_is_noticed() {
        let (events, _) = good();
        let history = history(events);
        let before = HashMap::from([("z".into(), "0".into())]);
        let read = |key: &'static str, revision, value: Option<&'static str>| {
            check_reads(
                &before,
                &history,
                &[Read { key: key.into(), revision, value: value.map(Bytes::from) }],
            )
        };
        assert!(read("a", 2, Some("1")).is_ok());
        assert!(read("a", 3, None).is_ok());
        assert!(read("z", 4, Some("0")).is_ok());
        assert!(read("c", 4, Some("4")).is_err());
        assert!(read("a", 3, Some("1")).is_err());
    }

    #[test]
    fn versions_are_followed() {
        let mut model = Model::new();
        let stored = |create_revision, version, mod_revision| Event {
            kv: Some(KeyValue {
                key: "a".into(),
                create_revision,
                version,
                mod_revision,
                ..Default::default()
            }),
            ..Default::default()
        };
        model.apply(2, &[stored(2, 1, 2)]).unwrap();
        model.apply(3, &[stored(2, 2, 3)]).unwrap();
        assert!(model.apply(4, &[stored(2, 2, 4)]).is_err());
        model.apply(5, &[event(EventType::Delete, "a", "", 5)]).unwrap();
        assert!(model.apply(6, &[event(EventType::Delete, "a", "", 6)]).is_err());
        assert!(model.apply(7, &[stored(2, 3, 7)]).is_err());
    }
}
