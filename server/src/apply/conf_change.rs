//! Changes of the membership: what a committed one does to the store, and which ones are rejected.
//!
//! Every member decides alike, from its store, whether a change is carried out (reference rafthttp L6, L7). One that is
//! rejected writes nothing. A removed id never returns. As in etcd, --max-learners counts here as well: all members must
//! be given the same, and it must not be lowered.
//!
//! Must never ask whether a change is wise: that is asked before it is proposed, by one member.

use serde::Deserialize;
use trilith_engine::Store;
use trilith_proto::raftpb::{ConfChange, ConfChangeType};

use super::ApplyError;
use super::members::{self, Member};
use crate::status::{self, Status};

/// What the context of a change says; see L6.
#[derive(Debug, Deserialize)]
struct Subject {
    #[serde(flatten)]
    member: Member,
    /// A learner gets a vote: there is nothing else in the context then.
    #[serde(rename = "isPromote", default)]
    is_promote: bool,
}

/// The context of a promotion.
pub fn promotion(id: u64) -> Vec<u8> {
    format!(r#"{{"id":{id},"peerURLs":null,"isPromote":true}}"#).into_bytes()
}

/// M8: carries out a committed change, or says why not. At most `max_learners` members may be learners.
///
/// # Errors
/// A change that no correct member proposes, or the store's own failure.
pub fn conf_change(
    store: &mut Store,
    change: &ConfChange,
    max_learners: usize,
) -> Result<Result<(), Status>, ApplyError> {
    let (kind, id) = (kind(change)?, change.node_id());
    if members::is_removed(store.view(), id)? {
        return Ok(Err(status::MEMBER_NOT_FOUND));
    }
    let present = members::list(store.view())?;
    let known = present.iter().find(|member| member.id == id);
    let decided = match kind {
        ConfChangeType::ConfChangeAddNode | ConfChangeType::ConfChangeAddLearnerNode => {
            let subject = subject(change)?;
            if subject.is_promote {
                promote(known)
            } else {
                add(&present, subject.member, kind, max_learners)
            }
        }
        ConfChangeType::ConfChangeUpdateNode => update(&present, known, subject(change)?.member),
        ConfChangeType::ConfChangeRemoveNode => {
            return match may_go(&present, known) {
                Ok(()) => members::remove(store, id).map(Ok).map_err(ApplyError::from),
                Err(refused) => Ok(Err(refused)),
            };
        }
    };
    match decided {
        Ok(member) => members::put(store, &member).map(Ok).map_err(ApplyError::from),
        Err(refused) => Ok(Err(refused)),
    }
}

fn kind(change: &ConfChange) -> Result<ConfChangeType, ApplyError> {
    let number = change.r#type.unwrap_or_default();
    ConfChangeType::try_from(number)
        .map_err(|_| ApplyError::Broken(format!("a conf change has the unknown type {number}")))
}

fn subject(change: &ConfChange) -> Result<Subject, ApplyError> {
    let context = change.context.as_deref().unwrap_or_default();
    let subject: Subject = serde_json::from_slice(context)
        .map_err(|e| ApplyError::Broken(format!("the context of a conf change is not a member: {e}")))?;
    let (named, id) = (subject.member.id, change.node_id());
    if named != id {
        return Err(ApplyError::Broken(format!("a conf change of member {id:x} names {named:x}")));
    }
    Ok(subject)
}

fn promote(known: Option<&Member>) -> Result<Member, Status> {
    match known {
        None => Err(status::MEMBER_NOT_FOUND),
        Some(member) if !member.is_learner => Err(status::MEMBER_NOT_LEARNER),
        Some(member) => Ok(Member { is_learner: false, ..member.clone() }),
    }
}

fn add(
    present: &[Member],
    member: Member,
    kind: ConfChangeType,
    max_learners: usize,
) -> Result<Member, Status> {
    if present.iter().any(|other| other.id == member.id) {
        return Err(status::MEMBER_EXIST);
    }
    if uses_url_of(&member, present) {
        return Err(status::PEER_URL_EXIST);
    }
    if member.is_learner
        && kind == ConfChangeType::ConfChangeAddLearnerNode
        && present.iter().filter(|other| other.is_learner).count() >= max_learners
    {
        return Err(status::TOO_MANY_LEARNERS);
    }
    Ok(member)
}

/// The change says where the member is, and leaves what it has published, and its vote, since raft does the same: whoever
/// asks may not know yet whether it has one. Its own URLs count as taken only by others.
fn update(present: &[Member], known: Option<&Member>, told: Member) -> Result<Member, Status> {
    let known = known.ok_or(status::MEMBER_NOT_FOUND)?;
    if uses_url_of(&told, present) {
        return Err(status::PEER_URL_EXIST);
    }
    Ok(Member { peer_urls: told.peer_urls, ..known.clone() })
}

/// The last voter stays, since nobody could ever elect anybody again: etcd's members all panic there.
fn may_go(present: &[Member], known: Option<&Member>) -> Result<(), Status> {
    let known = known.ok_or(status::MEMBER_NOT_FOUND)?;
    let others_vote = present.iter().any(|other| other.id != known.id && !other.is_learner);
    if others_vote || known.is_learner { Ok(()) } else { Err(status::MEMBER_NOT_ENOUGH_STARTED) }
}

fn uses_url_of(member: &Member, present: &[Member]) -> bool {
    let mut others = present.iter().filter(|other| other.id != member.id);
    others.any(|other| other.peer_urls.iter().any(|url| member.peer_urls.contains(url)))
}

#[cfg(test)]
mod tests {
    use ConfChangeType::{
        ConfChangeAddLearnerNode as AddLearner, ConfChangeAddNode as Add, ConfChangeRemoveNode as Remove,
        ConfChangeUpdateNode as Update,
    };
    use trilith_engine::TreeId;

    use super::*;

    /// A store with the voters 1 and 2; 2 has published itself.
    fn store() -> Store {
        let mut store = crate::apply::tests::store();
        for id in [1, 2] {
            assert_eq!(apply(&mut store, Add, id, &members::encode(&member(id))), Ok(()));
        }
        let published = Member { name: "two".into(), client_urls: vec!["http://2:2379".into()], ..member(2) };
        members::put(&mut store, &published).unwrap();
        store
    }

    fn member(id: u64) -> Member {
        Member { id, peer_urls: vec![format!("http://{id}:2380")], ..Member::default() }
    }

    fn learner(id: u64) -> Member {
        Member { is_learner: true, ..member(id) }
    }

    fn change(kind: ConfChangeType, id: u64, context: &[u8]) -> ConfChange {
        ConfChange {
            r#type: Some(kind.into()),
            node_id: Some(id),
            context: Some(context.to_vec().into()),
            ..ConfChange::default()
        }
    }

    fn apply(store: &mut Store, kind: ConfChangeType, id: u64, context: &[u8]) -> Result<(), Status> {
        conf_change(store, &change(kind, id, context), 1).unwrap()
    }

    fn with(store: &mut Store, kind: ConfChangeType, member: &Member) -> Result<(), Status> {
        apply(store, kind, member.id, &members::encode(member))
    }

    /// Everything that a change may touch.
    fn content(store: &Store) -> Vec<(TreeId, Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for tree in [TreeId::Members, TreeId::MembersRemoved, TreeId::Meta, TreeId::Cluster] {
            let mut cursor = store.view().seek(tree, b"").unwrap();
            while let Some(key) = cursor.key().map(<[u8]>::to_vec) {
                all.push((tree, key, cursor.value().unwrap().unwrap().to_vec()));
                cursor.next().unwrap();
            }
        }
        all
    }

    #[test]
    fn l6_each_kind_of_change_leaves_etcds_bytes() {
        let mut store = store();
        assert_eq!(with(&mut store, AddLearner, &learner(0xab)), Ok(()));
        let get = |store: &Store, tree, key: &str| {
            store
                .view()
                .get(tree, key.as_bytes())
                .unwrap()
                .map(|value| String::from_utf8(value.to_vec()).unwrap())
        };
        let learner = r#"{"id":171,"peerURLs":["http://171:2380"],"isLearner":true}"#;
        assert_eq!(get(&store, TreeId::Members, "ab").unwrap(), learner);
        assert_eq!(apply(&mut store, Add, 0xab, &promotion(0xab)), Ok(()));
        assert_eq!(
            get(&store, TreeId::Members, "ab").unwrap(),
            r#"{"id":171,"peerURLs":["http://171:2380"]}"#
        );
        let moved = Member { peer_urls: vec!["http://c:1".into(), "http://d:1".into()], ..member(2) };
        assert_eq!(with(&mut store, Update, &moved), Ok(()));
        assert_eq!(
            get(&store, TreeId::Members, "2").unwrap(),
            r#"{"id":2,"peerURLs":["http://c:1","http://d:1"],"name":"two","clientURLs":["http://2:2379"]}"#
        );
        assert_eq!(apply(&mut store, Remove, 0xab, b""), Ok(()));
        assert_eq!(get(&store, TreeId::Members, "ab"), None);
        assert_eq!(get(&store, TreeId::MembersRemoved, "ab").unwrap(), "removed");
        assert_eq!(members::removed(store.view()).unwrap(), [0xab]);
    }

    #[test]
    fn l6_a_promotion_says_so_and_a_plain_addition_may_deny_it() {
        let mut store = store();
        assert_eq!(
            apply(&mut store, Add, 9, br#"{"id":9,"peerURLs":["http://9:1"],"isPromote":false}"#),
            Ok(())
        );
        assert_eq!(members::get(store.view(), 9).unwrap().unwrap().peer_urls, ["http://9:1"]);
    }

    #[test]
    fn l7_what_is_rejected_writes_nothing() {
        let mut store = store();
        assert_eq!(with(&mut store, AddLearner, &learner(3)), Ok(()));
        assert_eq!(with(&mut store, Add, &member(4)), Ok(()));
        assert_eq!(apply(&mut store, Remove, 4, b""), Ok(()));
        let before = content(&store);
        let other = |id, url: &str| members::encode(&Member { peer_urls: vec![url.into()], ..member(id) });
        let cases: [(ConfChangeType, u64, Vec<u8>, Status); 16] = [
            (Add, 4, other(4, "http://free:1"), status::MEMBER_NOT_FOUND),
            (AddLearner, 4, members::encode(&learner(4)), status::MEMBER_NOT_FOUND),
            (Add, 4, promotion(4), status::MEMBER_NOT_FOUND),
            (Remove, 4, Vec::new(), status::MEMBER_NOT_FOUND),
            (Update, 4, other(4, "http://free:1"), status::MEMBER_NOT_FOUND),
            (Add, 1, other(1, "http://free:1"), status::MEMBER_EXIST),
            (AddLearner, 3, members::encode(&learner(3)), status::MEMBER_EXIST),
            (Add, 5, other(5, "http://2:2380"), status::PEER_URL_EXIST),
            (AddLearner, 5, other(5, "http://3:2380"), status::PEER_URL_EXIST),
            (Update, 1, other(1, "http://2:2380"), status::PEER_URL_EXIST),
            (Update, 5, other(5, "http://free:1"), status::MEMBER_NOT_FOUND),
            (Remove, 5, Vec::new(), status::MEMBER_NOT_FOUND),
            (Add, 5, promotion(5), status::MEMBER_NOT_FOUND),
            (Add, 1, promotion(1), status::MEMBER_NOT_LEARNER),
            (AddLearner, 5, members::encode(&learner(5)), status::TOO_MANY_LEARNERS),
            (AddLearner, 5, other(5, "http://1:2380"), status::PEER_URL_EXIST),
        ];
        for (kind, id, context, expected) in cases {
            let said = String::from_utf8_lossy(&context).into_owned();
            assert_eq!(apply(&mut store, kind, id, &context), Err(expected), "{kind:?} {id} {said}");
            assert_eq!(content(&store), before, "{kind:?} {id} {said}");
        }
    }

    #[test]
    fn l7_the_number_of_learners_is_a_flag() {
        let mut store = store();
        let add = |store: &mut Store, id, most| {
            conf_change(store, &change(AddLearner, id, &members::encode(&learner(id))), most).unwrap()
        };
        assert_eq!(add(&mut store, 3, 0), Err(status::TOO_MANY_LEARNERS));
        assert_eq!(add(&mut store, 3, 2), Ok(()));
        assert_eq!(add(&mut store, 4, 2), Ok(()));
        assert_eq!(add(&mut store, 5, 2), Err(status::TOO_MANY_LEARNERS));
        assert_eq!(with(&mut store, Add, &member(6)), Ok(()), "a voter is not counted");
    }

    #[test]
    fn the_last_voter_stays() {
        let mut store = store();
        assert_eq!(with(&mut store, AddLearner, &learner(3)), Ok(()));
        assert_eq!(apply(&mut store, Remove, 1, b""), Ok(()));
        let before = content(&store);
        assert_eq!(apply(&mut store, Remove, 2, b""), Err(status::MEMBER_NOT_ENOUGH_STARTED));
        assert_eq!(content(&store), before);
        assert_eq!(apply(&mut store, Remove, 3, b""), Ok(()), "a learner may always go");
    }

    #[test]
    fn what_no_member_proposes_is_an_error_by_name() {
        let mut store = store();
        let before = content(&store);
        let mut unknown = change(Add, 5, &members::encode(&member(5)));
        unknown.r#type = Some(17);
        for (change, named) in [
            (change(Add, 5, &members::encode(&member(6))), "of member 5 names 6"),
            (change(Update, 1, &members::encode(&member(2))), "of member 1 names 2"),
            (change(Add, 5, b""), "is not a member"),
            (change(Update, 1, b"{"), "is not a member"),
            (unknown, "unknown type 17"),
        ] {
            let error = conf_change(&mut store, &change, 1).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert_eq!(content(&store), before);
        }
    }
}
