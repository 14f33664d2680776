//! The order in which the instances of a service are to be tried (RFC 2782).

use crate::Srv;

/// Sorts by priority; within a priority, each place goes to an instance with a chance in proportion to its weight.
/// `random` gives a number below its argument, which is never 0.
pub(crate) fn by_priority_and_weight(mut all: Vec<Srv>, mut random: impl FnMut(u64) -> u64) -> Vec<Srv> {
    // Those without weight come first, so that they have a small chance of being first.
    all.sort_by_key(|srv| (srv.priority, srv.weight));
    let mut begin = 0;
    while begin < all.len() {
        let rest = &all[begin..];
        let len = rest.iter().take_while(|srv| srv.priority == rest[0].priority).count();
        let total: u64 = rest[..len].iter().map(|srv| u64::from(srv.weight)).sum();
        let drawn = random(total + 1);
        let mut sum = 0;
        let chosen = rest[..len].iter().position(|srv| {
            sum += u64::from(srv.weight);
            sum >= drawn
        });
        all[begin..begin + len][..=chosen.unwrap_or(0)].rotate_right(1);
        begin += 1;
    }
    all
}
