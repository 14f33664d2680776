//! Read-index rounds: many readers, one question.
//!
//! Readers gather until the core's next step; one context then asks for all of them. A reader is let through when
//! its round's index is known and applied (G1, G2). When the leader changes, those who asked the old one are told
//! so (G3).

use std::collections::VecDeque;
use std::time::Duration;

use super::shared::Reading;
use crate::status::{self, Status};

/// G1: an unanswered round is asked again after this time.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Round {
    context: u64,
    asked: Duration,
    index: Option<u64>,
    readers: Vec<Reading>,
}

/// The rounds of this member, oldest first.
#[derive(Debug, Default)]
pub(super) struct Reads {
    gathering: Vec<Reading>,
    rounds: VecDeque<Round>,
}

impl Reads {
    /// Takes in readers that came since the last step.
    pub(super) fn gather(&mut self, readers: &mut Vec<Reading>) {
        self.gathering.append(readers);
    }

    /// Begins a round if anybody waits for one; the context to ask with.
    pub(super) fn begin(&mut self, now: Duration, context: impl FnOnce() -> u64) -> Option<u64> {
        self.gathering.retain(|reader| !reader.answer.is_closed());
        if self.gathering.is_empty() {
            return None;
        }
        let context = context();
        let readers = std::mem::take(&mut self.gathering);
        self.rounds.push_back(Round { context, asked: now, index: None, readers });
        Some(context)
    }

    /// Contexts to ask with again.
    pub(super) fn retry(&mut self, now: Duration, mut ask: impl FnMut(u64)) {
        for round in &mut self.rounds {
            if round.index.is_none() && round.asked + RETRY_INTERVAL <= now {
                round.asked = now;
                ask(round.context);
            }
        }
    }

    /// A round is answered; so are those that began before it, since a later question saw a later state.
    pub(super) fn confirm(&mut self, context: u64, index: u64) {
        let Some(at) = self.rounds.iter().position(|round| round.context == context) else { return };
        for round in self.rounds.iter_mut().take(at + 1) {
            round.index.get_or_insert(index);
        }
    }

    /// Lets through whoever waits for an index up to here.
    pub(super) fn release(&mut self, applied: u64) {
        while self.rounds.front().and_then(|round| round.index).is_some_and(|index| index <= applied) {
            self.answer_first(&Ok(()));
        }
    }

    /// G3.
    pub(super) fn leader_changed(&mut self) {
        while !self.rounds.is_empty() {
            self.answer_first(&Err(status::LEADER_CHANGED));
        }
    }

    /// Answers those that began at or before `until`.
    pub(super) fn expire(&mut self, until: Duration) {
        let all = self.rounds.iter_mut().map(|round| &mut round.readers).chain([&mut self.gathering]);
        for readers in all {
            for reader in readers.extract_if(.., |reader| reader.started <= until) {
                // Whoever has gone away meanwhile does not mind.
                let _ = reader.answer.send(Err(status::TIMEOUT));
            }
        }
        self.rounds.retain(|round| !round.readers.is_empty());
    }

    fn answer_first(&mut self, answer: &Result<(), Status>) {
        for reader in self.rounds.pop_front().into_iter().flat_map(|round| round.readers) {
            // Whoever has gone away meanwhile does not mind.
            let _ = reader.answer.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    type Answered = oneshot::Receiver<Result<(), Status>>;

    fn reader(reads: &mut Reads, at_ms: u64) -> Answered {
        let (answer, answered) = oneshot::channel();
        reads.gather(&mut vec![Reading { started: Duration::from_millis(at_ms), answer }]);
        answered
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn g1_g2_one_round_serves_all_who_came_before_it() {
        let mut reads = Reads::default();
        assert_eq!(reads.begin(ms(0), || 1), None, "nobody waits");
        let mut first = [reader(&mut reads, 0), reader(&mut reads, 0)];
        assert_eq!(reads.begin(ms(0), || 1), Some(1));
        let mut late = reader(&mut reads, 1);
        assert_eq!(reads.begin(ms(1), || 2), Some(2));
        reads.confirm(1, 10);
        reads.release(9);
        assert!(first[0].try_recv().is_err(), "not applied yet");
        reads.release(10);
        assert!(first.iter_mut().all(|reader| reader.try_recv() == Ok(Ok(()))));
        assert!(late.try_recv().is_err(), "its round is not answered");
        reads.confirm(2, 10);
        reads.release(10);
        assert_eq!(late.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn a_later_answer_serves_earlier_rounds() {
        let mut reads = Reads::default();
        let mut early = reader(&mut reads, 0);
        reads.begin(ms(0), || 1);
        let _late = reader(&mut reads, 0);
        reads.begin(ms(0), || 2);
        reads.confirm(2, 5);
        reads.release(5);
        assert_eq!(early.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn g1_g3_rounds_are_retried_and_end() {
        let mut reads = Reads::default();
        let mut one = reader(&mut reads, 0);
        reads.begin(ms(0), || 1);
        let mut asked = Vec::new();
        reads.retry(ms(499), |context| asked.push(context));
        assert_eq!(asked, [0_u64; 0]);
        reads.retry(ms(500), |context| asked.push(context));
        reads.retry(ms(501), |context| asked.push(context));
        assert_eq!(asked, [1]);
        let mut two = reader(&mut reads, 600);
        reads.leader_changed();
        assert_eq!(one.try_recv(), Ok(Err(status::LEADER_CHANGED)));
        assert!(two.try_recv().is_err(), "it has asked nobody yet");
        reads.expire(ms(599));
        assert!(two.try_recv().is_err());
        reads.expire(ms(600));
        assert_eq!(two.try_recv(), Ok(Err(status::TIMEOUT)));
    }
}
