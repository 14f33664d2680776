//! What hashes say of members: no clock, no network, no store.
//!
//! Hashes can be compared only when they leave out the same: two of one revision with one compact revision. Everything
//! else says nothing, and nobody is suspected for it. One pair can look comparable and is not: where no key is left at a
//! revision, the hash that a compaction to it keeps counts other entries than one that is computed before it.

use std::collections::BTreeMap;
use std::fmt;

/// A hash over what a member holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hashed {
    pub(super) hash: u32,
    /// The compaction that it takes into account.
    pub(super) compacted: i64,
    /// The member's newest revision.
    pub(super) newest: i64,
}

/// What the asking member holds at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sight {
    /// At its newest revision.
    pub(super) hashed: Hashed,
    /// Its last compaction.
    pub(super) compacted: i64,
    /// No key is left.
    pub(super) empty: bool,
}

/// What another member says, if it can be asked and has that revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) member: u64,
    pub(super) hashed: Option<Hashed>,
}

/// A comparison of all members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round<'a> {
    /// The leader.
    pub(super) own: u64,
    /// What the others were asked for.
    pub(super) before: Sight,
    /// After everything that they can have known when they answered.
    pub(super) after: Sight,
    pub(super) answers: &'a [Answer],
}

/// Why a member is said to be corrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The same member, the same revision, two hashes.
    Changed,
    /// It has revisions that the leader has not.
    Newer,
    /// It has compacted what the leader has not.
    CompactedMore,
    /// Its content is another.
    Differs,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Changed => "what the leader holds has changed without a new revision",
            Why::Newer => "a follower has a revision that the leader does not have",
            Why::CompactedMore => "a follower has compacted a revision that the leader has not compacted",
            Why::Differs => "hashes at one revision differ",
        })
    }
}

/// The others that hold something else.
pub(super) fn at_start(own: &Sight, answers: &[Answer]) -> Vec<u64> {
    // The others may have compacted what this member has not yet.
    if own.empty { Vec::new() } else { differing(&own.hashed, answers) }
}

fn differing(own: &Hashed, answers: &[Answer]) -> Vec<u64> {
    let differs = |said: Hashed| own.compacted == said.compacted && own.hash != said.hash;
    answers.iter().filter(|answer| answer.hashed.is_some_and(differs)).map(|answer| answer.member).collect()
}

/// Who is corrupt, and why. Where hashes differ it is whoever is not of the majority; without one the leader is believed.
pub(super) fn at_a_revision(round: &Round<'_>) -> Vec<(u64, Why)> {
    let Round { own, before, after, answers } = *round;
    let comparable = !(before.empty && after.compacted == before.hashed.newest);
    let same_state =
        before.hashed.newest == after.hashed.newest && before.hashed.compacted == after.hashed.compacted;
    if comparable && same_state && before.hashed.hash != after.hashed.hash {
        return vec![(own, Why::Changed)];
    }
    let differing = match groups(own, &before.hashed, answers).majority(answers.len() + 1) {
        _ if !comparable => Vec::new(),
        Some(sound) => sound.others,
        None => differing(&before.hashed, answers),
    };
    let mut found = Vec::new();
    if differing.contains(&own) {
        found.push((own, Why::Differs));
    }
    for Answer { member, hashed } in answers {
        let Some(said) = hashed else { continue };
        if said.newest > after.hashed.newest {
            found.push((*member, Why::Newer));
        } else if said.compacted > after.compacted {
            found.push((*member, Why::CompactedMore));
        } else if differing.contains(member) {
            found.push((*member, Why::Differs));
        }
    }
    found
}

/// What came of a comparison at a compaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Who is corrupt; 0 when there is somebody, and nobody can tell who.
    pub(super) corrupt: Vec<u64>,
    /// There is nothing to be learnt from an older compaction.
    pub(super) complete: bool,
}

/// Whoever is not of the majority.
pub(super) fn at_a_compaction(own: u64, hashed: &Hashed, answers: &[Answer]) -> Outcome {
    let groups = groups(own, hashed, answers);
    if groups.0.len() == 1 {
        let compared = groups.0.values().map(Vec::len).sum::<usize>();
        return Outcome { corrupt: Vec::new(), complete: compared == answers.len() + 1 };
    }
    let corrupt = groups.majority(answers.len() + 1).map_or_else(|| vec![0], |sound| sound.others);
    Outcome { corrupt, complete: true }
}

/// The members that can be compared, by hash.
struct Groups(BTreeMap<u32, Vec<u64>>);

/// A majority of all members agrees.
struct Majority {
    /// Who differs from it.
    others: Vec<u64>,
}

fn groups(own: u64, hashed: &Hashed, answers: &[Answer]) -> Groups {
    let mut groups = BTreeMap::from([(hashed.hash, vec![own])]);
    for Answer { member, hashed: said } in answers {
        if let Some(said) = said.filter(|said| said.compacted == hashed.compacted) {
            groups.entry(said.hash).or_default().push(*member);
        }
    }
    Groups(groups)
}

impl Groups {
    fn majority(&self, members: usize) -> Option<Majority> {
        let (sound, _) = self.0.iter().find(|(_, group)| group.len() > members / 2)?;
        let others = self.0.iter().filter(|(hash, _)| *hash != sound);
        let mut others: Vec<u64> = others.flat_map(|(_, group)| group).copied().collect();
        others.sort_unstable();
        Some(Majority { others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: u64 = 1;

    fn hashed(hash: u32) -> Hashed {
        Hashed { hash, compacted: 5, newest: 10 }
    }

    fn sight(hash: u32) -> Sight {
        Sight { hashed: hashed(hash), compacted: 5, empty: false }
    }

    fn says(member: u64, hash: u32) -> Answer {
        Answer { member, hashed: Some(hashed(hash)) }
    }

    fn silent(member: u64) -> Answer {
        Answer { member, hashed: None }
    }

    fn with(member: u64, change: impl FnOnce(&mut Hashed)) -> Answer {
        let mut said = hashed(7);
        change(&mut said);
        Answer { member, hashed: Some(said) }
    }

    fn round(answers: &[Answer]) -> Vec<(u64, Why)> {
        at_a_revision(&Round { own: LEADER, before: sight(7), after: sight(7), answers })
    }

    #[test]
    fn a_member_that_starts_differs_from_those_that_can_be_compared() {
        let own = sight(7);
        assert!(at_start(&own, &[says(2, 7), silent(3)]).is_empty());
        assert_eq!(at_start(&own, &[says(2, 8), says(3, 9)]), [2, 3]);
        let compacted = with(2, |said| *said = Hashed { hash: 8, compacted: 4, ..*said });
        assert!(at_start(&own, &[compacted]).is_empty());
        assert!(at_start(&Sight { empty: true, ..own }, &[says(2, 8)]).is_empty());
    }

    #[test]
    fn a_round_names_whoever_is_not_of_the_majority() {
        assert!(round(&[says(2, 7), says(3, 7)]).is_empty());
        assert!(round(&[silent(2), silent(3)]).is_empty());
        assert_eq!(round(&[says(2, 7), says(3, 8)]), [(3, Why::Differs)]);
        assert_eq!(round(&[says(2, 8), says(3, 8)]), [(LEADER, Why::Differs)]);
        // Two of five agree, which says nothing; the leader is believed.
        let answers = [says(2, 8), says(3, 8), says(4, 9), silent(5)];
        assert_eq!(round(&answers), [(2, Why::Differs), (3, Why::Differs), (4, Why::Differs)]);
        assert_eq!(round(&[says(2, 8), silent(3)]), [(2, Why::Differs)]);
    }

    #[test]
    fn a_round_finds_what_cannot_be() {
        assert_eq!(round(&[with(2, |said| said.newest = 11)]), [(2, Why::Newer)]);
        assert!(round(&[with(2, |said| said.newest = 9)]).is_empty());
        assert_eq!(round(&[with(2, |said| said.compacted = 6)]), [(2, Why::CompactedMore)]);
        assert!(round(&[with(2, |said| *said = Hashed { hash: 8, compacted: 4, ..*said })]).is_empty());
        let changed = Round { own: LEADER, before: sight(7), after: sight(8), answers: &[says(2, 7)] };
        assert_eq!(at_a_revision(&changed), [(LEADER, Why::Changed)]);
        let mut after = sight(8);
        after.hashed.newest += 1;
        assert!(at_a_revision(&Round { after, ..changed }).is_empty());
        // A hash that a compaction kept is of the one before it; that is not how far the leader has compacted.
        let mut kept = sight(7);
        kept.compacted = 10;
        let answers = [with(2, |said| *said = Hashed { hash: 9, compacted: 10, ..*said })];
        assert!(
            at_a_revision(&Round { own: LEADER, before: kept, after: kept, answers: &answers }).is_empty()
        );
    }

    #[test]
    fn without_keys_a_hash_that_a_compaction_kept_is_not_compared() {
        let before = Sight { empty: true, ..sight(7) };
        let answers = [says(2, 8), says(3, 8)];
        let found = |after| at_a_revision(&Round { own: LEADER, before, after, answers: &answers });
        assert!(found(Sight { compacted: 10, ..before }).is_empty());
        assert!(found(Sight { compacted: 10, ..sight(9) }).is_empty());
        assert_eq!(found(before), [(LEADER, Why::Differs)]);
    }

    #[test]
    fn a_compaction_names_the_minority_or_nobody() {
        let own = hashed(7);
        let check = |answers: &[Answer]| {
            let Outcome { corrupt, complete } = at_a_compaction(LEADER, &own, answers);
            (corrupt, complete)
        };
        assert_eq!(check(&[says(2, 7), says(3, 7)]), (vec![], true));
        assert_eq!(check(&[says(2, 7), silent(3)]), (vec![], false));
        let other = with(3, |said| said.compacted = 4);
        assert_eq!(check(&[says(2, 7), other]), (vec![], false));
        assert_eq!(check(&[says(2, 7), says(3, 8)]), (vec![3], true));
        assert_eq!(check(&[says(2, 8), says(3, 8)]), (vec![LEADER], true));
        assert_eq!(check(&[says(2, 8), silent(3)]), (vec![0], true));
        assert_eq!(check(&[says(2, 8), says(3, 9)]), (vec![0], true));
        assert_eq!(check(&[says(2, 8)]), (vec![0], true));
        assert_eq!(check(&[says(2, 7), says(3, 7), says(4, 9), says(5, 8)]), (vec![4, 5], true));
    }
}
