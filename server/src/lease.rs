//! The lessor: which leases there are and when they end, as a state machine that is told the time.
//!
//! The record of a lease stands in the store, and the keys attached to it are the store's business; the lessor
//! keeps what the store does not: the moment of expiry. Only the leader lets leases expire; everyone else holds
//! them as endless until it is promoted (reference L4, L5). It proposes nothing itself: it names the leases that
//! are due, and its owner revokes them through the log. So it does with checkpoints (L12): of leases that run for long it
//! names now and then what is left, and a new leader begins there.
//!
//! Times are durations since an arbitrary start that the owner keeps to.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::status::{self, Status};

/// The greatest TTL that is granted, in seconds (L2).
pub const TTL_MAX_SECONDS: i64 = 9_000_000_000;
/// How often the owner should look for leases that are due.
pub const SCAN_INTERVAL: Duration = Duration::from_millis(500);
/// Leases that one scan names at most.
const SCAN_MAX: usize = 500;
/// How long a lease runs from one checkpoint to the next.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// Leases that one entry of the log checkpoints at most.
const CHECKPOINT_MAX: usize = 1000;
/// After a promotion no more than this many leases end in any one second.
const EXPIRIES_PER_SECOND: usize = 750;
/// From this many leases on a promotion spreads their ends.
const SPREAD_FROM: usize = 1000;

#[derive(Debug)]
struct Lease {
    ttl: i64,
    /// Seconds left as of the last checkpoint; 0 for the whole TTL.
    remaining_ttl: i64,
    /// None: never, as long as this member is not the leader.
    expiry: Option<Duration>,
    /// When what is left is to be noted again.
    checkpoint_at: Option<Duration>,
}

/// What a renewal comes to.
#[derive(Debug)]
pub enum Renewal {
    /// Renewed to this TTL, in seconds.
    Renewed(i64),
    /// There is no such lease.
    Missing,
    /// It has expired: the receiver hears when it is revoked.
    Expired(oneshot::Receiver<()>),
}

/// All leases of the member.
#[derive(Debug)]
pub struct Lessor {
    leases: HashMap<i64, Lease>,
    /// Ends of leases that have one and are not being revoked.
    expiries: BTreeSet<(Duration, i64)>,
    /// Due, and not yet handed out.
    due: VecDeque<i64>,
    waiting: HashMap<i64, Vec<oneshot::Sender<()>>>,
    min_ttl: i64,
    is_primary: bool,
    /// None: no checkpoints.
    checkpoints: Option<BTreeSet<(Duration, i64)>>,
}

impl Lessor {
    /// `min_ttl`: seconds that every TTL is raised to (L1).
    pub fn new(min_ttl: i64) -> Lessor {
        Lessor {
            leases: HashMap::new(),
            expiries: BTreeSet::new(),
            due: VecDeque::new(),
            waiting: HashMap::new(),
            min_ttl,
            is_primary: false,
            checkpoints: None,
        }
    }

    /// The same, with checkpoints of leases.
    pub fn with_checkpoints(min_ttl: i64) -> Lessor {
        Lessor { checkpoints: Some(BTreeSet::new()), ..Lessor::new(min_ttl) }
    }

    /// Takes in a lease that the store holds.
    pub fn restore(&mut self, id: i64, ttl: i64, remaining_ttl: i64) {
        let ttl = ttl.max(self.min_ttl);
        self.leases.insert(id, Lease { ttl, remaining_ttl, expiry: None, checkpoint_at: None });
    }

    /// Forgets all leases: another store takes the place of theirs.
    pub fn clear(&mut self) {
        self.demote();
        self.leases.clear();
    }

    /// Grants a lease; its TTL, raised to the minimum.
    pub fn grant(&mut self, id: i64, ttl: i64, now: Duration) -> Result<i64, Status> {
        if id == 0 {
            return Err(status::LEASE_NOT_FOUND);
        }
        if ttl > TTL_MAX_SECONDS {
            return Err(status::LEASE_TTL_TOO_LARGE);
        }
        if self.leases.contains_key(&id) {
            return Err(status::LEASE_EXIST);
        }
        let ttl = ttl.max(self.min_ttl);
        let expiry = self.is_primary.then(|| now + seconds(ttl));
        self.leases.insert(id, Lease { ttl, remaining_ttl: 0, expiry, checkpoint_at: None });
        self.expiries.extend(expiry.map(|at| (at, id)));
        self.plan_checkpoint(id, now + CHECKPOINT_INTERVAL);
        Ok(ttl)
    }

    /// Forgets a revoked lease and tells those who wait for that.
    pub fn revoke(&mut self, id: i64) {
        if let Some(Lease { expiry: Some(at), checkpoint_at, .. }) = self.leases.remove(&id) {
            self.expiries.remove(&(at, id));
            if let (Some(at), Some(checkpoints)) = (checkpoint_at, &mut self.checkpoints) {
                checkpoints.remove(&(at, id));
            }
        }
        for waiter in self.waiting.remove(&id).into_iter().flatten() {
            // Whoever has gone away meanwhile does not mind.
            let _ = waiter.send(());
        }
    }

    /// Sets the seconds that a new leader gives a lease; 0 for the whole TTL. When it ends here stays as it is.
    pub fn checkpoint(&mut self, id: i64, remaining_ttl: i64, now: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.remaining_ttl = remaining_ttl;
        // One that was renewed while the checkpoint was under way must not lose the time that its client was told of.
        let outdated = remaining_ttl > 0 && lease.expiry.is_some_and(|at| at > now + seconds(remaining_ttl));
        self.plan_checkpoint(id, if outdated { now } else { now + CHECKPOINT_INTERVAL });
    }

    /// Whether a renewal has to go through the log first, as a checkpoint that gives the lease its whole TTL: else a new
    /// leader would give it less than its client was told.
    pub fn is_checkpointed(&self, id: i64, now: Duration) -> bool {
        let lives = |lease: &Lease| lease.expiry.is_some_and(|at| at > now);
        self.is_primary && self.leases.get(&id).is_some_and(|lease| lease.remaining_ttl > 0 && lives(lease))
    }

    /// Leases with the seconds that are left, as many as one entry of the log takes: those that are due.
    pub fn due_checkpoints(&mut self, now: Duration) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        while due.len() < CHECKPOINT_MAX
            && let Some(times) = &mut self.checkpoints
            && times.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, id)) = times.pop_first()
        {
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            lease.checkpoint_at = None;
            let left = lease.expiry.unwrap_or_default().saturating_sub(now);
            let seconds = left.as_secs() as i64 + i64::from(left.subsec_nanos() > 0);
            if seconds > 0 && (seconds < lease.ttl || lease.remaining_ttl > 0) {
                due.push((id, seconds));
            }
            // Also should this one be lost on its way.
            self.plan_checkpoint(id, now + CHECKPOINT_INTERVAL);
        }
        due
    }

    /// Plans a checkpoint for a lease that runs long enough.
    fn plan_checkpoint(&mut self, id: i64, at: Duration) {
        let (Some(times), Some(lease)) = (&mut self.checkpoints, self.leases.get_mut(&id)) else { return };
        if let Some(before) = lease.checkpoint_at.take() {
            times.remove(&(before, id));
        }
        if self.is_primary && seconds(lease.left()) > CHECKPOINT_INTERVAL {
            lease.checkpoint_at = Some(at);
            times.insert((at, id));
        }
    }

    /// Whether leases expire here.
    pub fn is_primary(&self) -> bool {
        self.is_primary
    }

    /// Starts the whole TTL anew. Fails unless this member leads.
    pub fn renew(&mut self, id: i64, now: Duration) -> Result<Renewal, Status> {
        if !self.is_primary {
            return Err(status::NOT_PRIMARY);
        }
        let Some(lease) = self.leases.get_mut(&id) else { return Ok(Renewal::Missing) };
        let old = lease.expiry.expect("a primary lessor gives every lease an expiry");
        if old <= now {
            let (tell, told) = oneshot::channel();
            self.waiting.entry(id).or_default().push(tell);
            return Ok(Renewal::Expired(told));
        }
        let at = now + seconds(lease.ttl);
        lease.expiry = Some(at);
        // A checkpoint has overtaken the one that took it back: a new leader would go by it.
        let outdated = lease.remaining_ttl > 0;
        let (ttl, planned) = (lease.ttl, lease.checkpoint_at.is_some());
        self.expiries.remove(&(old, id));
        self.expiries.insert((at, id));
        if outdated || !planned {
            self.plan_checkpoint(id, if outdated { now } else { now + CHECKPOINT_INTERVAL });
        }
        Ok(Renewal::Renewed(ttl))
    }

    /// Granted and remaining TTL in seconds, the latter cut to whole seconds (L8).
    pub fn ttl(&self, id: i64, now: Duration) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        let remaining = match lease.expiry {
            Some(at) => at.saturating_sub(now).as_secs() as i64,
            None => lease.left(),
        };
        Some((lease.ttl, remaining))
    }

    /// All ids, those that end first at the front (L10).
    pub fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<_> =
            self.leases.iter().map(|(id, lease)| (lease.expiry, lease.left(), *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(.., id)| id).collect()
    }

    /// This member leads: every lease gets its TTL anew and `extend` on top, spread when there are many (L5).
    pub fn promote(&mut self, now: Duration, extend: Duration) {
        self.is_primary = true;
        self.due.clear();
        let mut ends: Vec<_> =
            self.leases.iter().map(|(id, lease)| (now + extend + seconds(lease.left()), *id)).collect();
        ends.sort_unstable();
        if ends.len() >= SPREAD_FROM {
            for i in EXPIRIES_PER_SECOND..ends.len() {
                let earliest = ends[i - EXPIRIES_PER_SECOND].0 + Duration::from_secs(1);
                ends[i].0 = ends[i].0.max(earliest);
            }
        }
        for (at, id) in &ends {
            if let Some(lease) = self.leases.get_mut(id) {
                lease.expiry = Some(*at);
            }
            self.plan_checkpoint(*id, now + CHECKPOINT_INTERVAL);
        }
        self.expiries = ends.into_iter().collect();
    }

    /// This member does not lead any more: nothing expires here.
    pub fn demote(&mut self) {
        self.is_primary = false;
        self.expiries.clear();
        self.due.clear();
        self.waiting.clear();
        self.checkpoints.iter_mut().for_each(BTreeSet::clear);
        for lease in self.leases.values_mut() {
            (lease.expiry, lease.checkpoint_at) = (None, None);
        }
    }

    /// Looks for leases that are due, a bounded number at a time.
    pub fn scan(&mut self, now: Duration) {
        while self.due.len() < SCAN_MAX {
            match self.expiries.first() {
                Some(first) if first.0 <= now => {}
                _ => break,
            }
            self.due.extend(self.expiries.pop_first().map(|(_, id)| id));
        }
    }

    /// The next lease to revoke. Whoever fails to revoke it says so with `revoke_failed`.
    pub fn next_due(&mut self) -> Option<i64> {
        while let Some(id) = self.due.pop_front() {
            if self.leases.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    /// The revocation did not go through: it is named again by the next scan.
    pub fn revoke_failed(&mut self, id: i64) {
        if let Some(Lease { expiry: Some(at), .. }) = self.leases.get(&id) {
            self.expiries.insert((*at, id));
        }
    }
}

impl Lease {
    /// Seconds that a new start gives it.
    fn left(&self) -> i64 {
        if self.remaining_ttl > 0 { self.remaining_ttl } else { self.ttl }
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn primary() -> Lessor {
        let mut lessor = Lessor::new(2);
        lessor.promote(Duration::ZERO, Duration::ZERO);
        lessor
    }

    fn due(lessor: &mut Lessor, now: f64) -> Vec<i64> {
        lessor.scan(at(now));
        std::iter::from_fn(|| lessor.next_due()).collect()
    }

    #[test]
    fn l1_l2_l3_grants() {
        let mut lessor = primary();
        for (id, ttl, want) in [
            (1, 0, Ok(2)),
            (2, -5, Ok(2)),
            (3, 1, Ok(2)),
            (4, 60, Ok(60)),
            (4, 60, Err(status::LEASE_EXIST)),
            (5, TTL_MAX_SECONDS, Ok(TTL_MAX_SECONDS)),
            (6, TTL_MAX_SECONDS + 1, Err(status::LEASE_TTL_TOO_LARGE)),
            (0, 60, Err(status::LEASE_NOT_FOUND)),
        ] {
            assert_eq!(lessor.grant(id, ttl, Duration::ZERO), want, "id {id}, ttl {ttl}");
        }
    }

    #[test]
    fn l4_leases_expire_at_their_time_and_only_once() {
        let mut lessor = primary();
        lessor.grant(1, 5, at(0.0)).unwrap();
        lessor.grant(2, 3, at(1.0)).unwrap();
        assert_eq!(due(&mut lessor, 3.9), [0_i64; 0]);
        assert_eq!(due(&mut lessor, 4.0), [2]);
        assert_eq!(due(&mut lessor, 5.0), [1]);
        assert_eq!(due(&mut lessor, 9.0), [0_i64; 0]);
        lessor.revoke_failed(2);
        assert_eq!(due(&mut lessor, 9.0), [2]);
        lessor.revoke(2);
        lessor.revoke_failed(2);
        assert_eq!(due(&mut lessor, 99.0), [0_i64; 0]);
    }

    #[test]
    fn l4_a_scan_is_bounded() {
        let mut lessor = primary();
        for id in 1..=600 {
            lessor.grant(id, 2, Duration::ZERO).unwrap();
        }
        assert_eq!(due(&mut lessor, 2.0).len(), 500);
        assert_eq!(due(&mut lessor, 2.5).len(), 100);
    }

    #[test]
    fn l5_a_promotion_starts_leases_anew_and_spreads_them() {
        let mut lessor = Lessor::new(2);
        lessor.restore(1, 10, 0);
        lessor.restore(2, 10, 4);
        assert_eq!(due(&mut lessor, 1e6), [0_i64; 0], "nothing expires before the promotion");
        assert_eq!(lessor.ttl(2, at(50.0)), Some((10, 4)));
        lessor.promote(at(100.0), at(1.0));
        assert_eq!(lessor.ttl(1, at(100.0)), Some((10, 11)));
        assert_eq!(lessor.ttl(2, at(100.0)), Some((10, 5)));
        lessor.demote();
        assert_eq!(due(&mut lessor, 1e6), [0_i64; 0]);

        let mut lessor = Lessor::new(2);
        for id in 1..=3000 {
            lessor.restore(id, 2, 0);
        }
        lessor.promote(Duration::ZERO, Duration::ZERO);
        let ends: Vec<_> = lessor.expiries.iter().map(|(end, _)| *end).collect();
        for window in ends.windows(EXPIRIES_PER_SECOND + 1) {
            assert!(window[EXPIRIES_PER_SECOND] - window[0] >= Duration::from_secs(1));
        }
        assert_eq!(ends.last(), Some(&at(5.0)));
    }

    #[test]
    fn l6_renewals() {
        let mut lessor = primary();
        lessor.grant(1, 5, at(0.0)).unwrap();
        assert!(matches!(lessor.renew(1, at(4.0)), Ok(Renewal::Renewed(5))));
        assert_eq!(lessor.ttl(1, at(4.5)), Some((5, 4)));
        assert!(matches!(lessor.renew(7, at(4.0)), Ok(Renewal::Missing)));
        let Ok(Renewal::Expired(mut told)) = lessor.renew(1, at(9.0)) else { panic!("it has expired") };
        assert_eq!(due(&mut lessor, 9.0), [1]);
        assert!(told.try_recv().is_err(), "not revoked yet");
        lessor.revoke(1);
        assert_eq!(told.try_recv(), Ok(()));
        lessor.demote();
        assert_eq!(lessor.renew(1, at(9.0)).unwrap_err(), status::NOT_PRIMARY);
    }

    #[test]
    fn l10_ids_come_by_remaining_time() {
        let mut lessor = primary();
        for (id, ttl) in [(3, 30), (1, 10), (2, 20)] {
            lessor.grant(id, ttl, Duration::ZERO).unwrap();
        }
        assert_eq!(lessor.ids(), [1, 2, 3]);
        lessor.renew(1, at(9.0)).unwrap();
        assert_eq!(lessor.ids(), [1, 2, 3]);
        lessor.checkpoint(3, 5, at(9.0));
        assert_eq!(lessor.ids(), [1, 2, 3], "a checkpoint is for the next leader");
        lessor.demote();
        assert_eq!(lessor.ids(), [3, 1, 2]);
    }

    #[test]
    fn l12_checkpoints_name_what_is_left() {
        let mut lessor = Lessor::with_checkpoints(2);
        lessor.grant(9, 3600, at(0.0)).unwrap();
        assert!(lessor.due_checkpoints(at(1e6)).is_empty(), "who does not lead names none");
        lessor.revoke(9);
        lessor.promote(Duration::ZERO, Duration::ZERO);
        lessor.grant(1, 900, at(0.0)).unwrap();
        lessor.grant(2, 300, at(0.0)).unwrap();
        lessor.grant(3, 900, at(0.0)).unwrap();
        lessor.revoke(3);
        assert!(lessor.due_checkpoints(at(299.0)).is_empty());
        assert_eq!(lessor.due_checkpoints(at(300.5)), [(1, 600)]);
        assert!(lessor.due_checkpoints(at(300.5)).is_empty());
        assert!(!lessor.is_checkpointed(1, at(300.5)));
        lessor.checkpoint(1, 600, at(301.0));
        assert!(lessor.is_checkpointed(1, at(301.0)));
        assert!(!lessor.is_checkpointed(1, at(900.0)), "what is over is not given its time back");
        assert_eq!(lessor.ttl(1, at(301.0)), Some((900, 599)), "it ends when it would have ended");
        assert_eq!(lessor.due_checkpoints(at(601.0)), [(1, 299)]);
        lessor.checkpoint(1, 299, at(601.0));
        assert!(lessor.due_checkpoints(at(899.0)).is_empty(), "what is left is not long");
        lessor.demote();
        lessor.promote(at(1000.0), Duration::ZERO);
        assert_eq!(lessor.ttl(1, at(1000.0)), Some((900, 299)));
    }

    #[test]
    fn l12_a_renewal_beats_a_checkpoint_that_is_under_way() {
        let mut lessor = Lessor::with_checkpoints(2);
        lessor.promote(Duration::ZERO, Duration::ZERO);
        lessor.grant(1, 900, at(0.0)).unwrap();
        assert_eq!(lessor.due_checkpoints(at(300.0)), [(1, 600)]);
        lessor.renew(1, at(301.0)).unwrap();
        lessor.checkpoint(1, 600, at(302.0));
        assert_eq!(lessor.due_checkpoints(at(302.0)), [(1, 899)], "at once");
        lessor.checkpoint(1, 899, at(302.0));
        // What a renewal does first, and then itself.
        lessor.checkpoint(1, 0, at(303.0));
        assert!(!lessor.is_checkpointed(1, at(303.0)));
        lessor.renew(1, at(303.0)).unwrap();
        assert!(lessor.due_checkpoints(at(602.0)).is_empty());
        assert_eq!(lessor.due_checkpoints(at(603.0)), [(1, 600)]);
        // One that was on its way when a renewal took the last one back, and is applied between that and the renewal.
        lessor.checkpoint(1, 0, at(604.0));
        lessor.checkpoint(1, 600, at(604.0));
        lessor.renew(1, at(604.0)).unwrap();
        assert_eq!(lessor.due_checkpoints(at(604.0)), [(1, 900)], "at once");
        // Without checkpoints none is named.
        let mut lessor = primary();
        lessor.grant(1, 900, at(0.0)).unwrap();
        assert!(lessor.due_checkpoints(at(1e6)).is_empty());
    }

    #[test]
    fn l12_an_entry_is_bounded() {
        let mut lessor = Lessor::with_checkpoints(2);
        lessor.promote(Duration::ZERO, Duration::ZERO);
        for id in 1..=1500 {
            lessor.grant(id, 900, Duration::ZERO).unwrap();
        }
        assert_eq!(lessor.due_checkpoints(at(300.0)).len(), 1000);
        assert_eq!(lessor.due_checkpoints(at(300.0)).len(), 500);
    }
}
