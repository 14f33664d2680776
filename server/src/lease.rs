//! The lessor: which leases there are and when they end, as a state machine that is told the time.
//!
//! The record of a lease stands in the store, and the keys attached to it are the store's business; the lessor
//! keeps what the store does not: the moment of expiry. Only the leader lets leases expire; everyone else holds
//! them as endless until it is promoted (reference L4, L5). It proposes nothing itself: it names the leases that
//! are due, and its owner revokes them through the log.
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
        }
    }

    /// Takes in a lease that the store holds.
    pub fn restore(&mut self, id: i64, ttl: i64, remaining_ttl: i64) {
        self.leases.insert(id, Lease { ttl: ttl.max(self.min_ttl), remaining_ttl, expiry: None });
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
        self.leases.insert(id, Lease { ttl, remaining_ttl: 0, expiry });
        self.expiries.extend(expiry.map(|at| (at, id)));
        Ok(ttl)
    }

    /// Forgets a revoked lease and tells those who wait for that.
    pub fn revoke(&mut self, id: i64) {
        if let Some(Lease { expiry: Some(at), .. }) = self.leases.remove(&id) {
            self.expiries.remove(&(at, id));
        }
        for waiter in self.waiting.remove(&id).into_iter().flatten() {
            // Whoever has gone away meanwhile does not mind.
            let _ = waiter.send(());
        }
    }

    /// Sets the remaining TTL of a lease, in seconds.
    pub fn checkpoint(&mut self, id: i64, remaining_ttl: i64, now: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.remaining_ttl = remaining_ttl;
        if let Some(old) = lease.expiry {
            let at = now + seconds(lease.left());
            lease.expiry = Some(at);
            self.expiries.remove(&(old, id));
            self.expiries.insert((at, id));
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
        (lease.expiry, lease.remaining_ttl) = (Some(at), 0);
        self.expiries.remove(&(old, id));
        self.expiries.insert((at, id));
        Ok(Renewal::Renewed(lease.ttl))
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
        }
        self.expiries = ends.into_iter().collect();
    }

    /// This member does not lead any more: nothing expires here.
    pub fn demote(&mut self) {
        self.is_primary = false;
        self.expiries.clear();
        self.due.clear();
        self.waiting.clear();
        for lease in self.leases.values_mut() {
            lease.expiry = None;
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
        assert_eq!(lessor.ids(), [3, 1, 2]);
    }
}
