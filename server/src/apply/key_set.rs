//! A set of keys made of single keys and half-open intervals, asked for single keys.
//!
//! Adding and asking cost the logarithm of what is in it, so that a transaction of many operations cannot make the
//! member compare each with each.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

/// The set; it borrows its keys from a request.
#[derive(Debug, Default)]
pub struct KeySet<'r> {
    keys: HashSet<&'r [u8]>,
    /// Intervals that neither overlap nor touch: start and end.
    intervals: BTreeMap<&'r [u8], &'r [u8]>,
    /// Every key from here on.
    from: Option<&'r [u8]>,
}

impl<'r> KeySet<'r> {
    /// Adds a single key.
    pub fn add_key(&mut self, key: &'r [u8]) {
        self.keys.insert(key);
    }

    /// Adds every key from this one on.
    pub fn add_from(&mut self, key: &'r [u8]) {
        self.from = Some(self.from.map_or(key, |from| from.min(key)));
    }

    /// Adds an interval; one that ends before it starts holds nothing.
    pub fn add_interval(&mut self, start: &'r [u8], end: &'r [u8]) {
        if end <= start {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((before, until)) = self.intervals.range(..=start).next_back()
            && *until >= start
        {
            (start, end) = (*before, end.max(*until));
        }
        let swallowed: Vec<_> = self.intervals.range(start..=end).map(|(start, _)| *start).collect();
        for other in swallowed {
            end = self.intervals.remove(other).map_or(end, |until| end.max(until));
        }
        self.intervals.insert(start, end);
    }

    /// Adds what another set holds.
    pub fn absorb(&mut self, other: KeySet<'r>) {
        self.keys.extend(other.keys);
        for (start, end) in other.intervals {
            self.add_interval(start, end);
        }
        if let Some(from) = other.from {
            self.add_from(from);
        }
    }

    /// Whether the key is in it.
    pub fn covers(&self, key: &[u8]) -> bool {
        let before = self.intervals.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        self.keys.contains(key)
            || before.is_some_and(|(_, until)| key < *until)
            || self.from.is_some_and(|from| from <= key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_intervals_cover_what_the_single_ones_cover() {
        let intervals: [(&[u8], &[u8]); 8] = [
            (b"d", b"f"),
            (b"a", b"b"),
            (b"b", b"c"),
            (b"p", b"a"),
            (b"e", b"j"),
            (b"0", b"\0"),
            (b"v", b"vx"),
            (b"u", b"w"),
        ];
        let mut halves = [KeySet::default(), KeySet::default()];
        for (i, (start, end)) in intervals.iter().enumerate() {
            halves[i % 2].add_interval(start, end);
        }
        halves[0].add_key(b"k");
        halves[1].add_from(b"z");
        halves[0].add_from(b"zz");
        let [mut set, other] = halves;
        set.absorb(other);
        for byte in 0..=255_u8 {
            for key in [vec![byte], vec![byte, 0], vec![byte, b'x']] {
                let inside =
                    intervals.iter().any(|(start, end)| key.as_slice() >= *start && key.as_slice() < *end);
                let expected = inside || key == b"k" || key.as_slice() >= b"z".as_slice();
                assert_eq!(set.covers(&key), expected, "{key:?}");
            }
        }
    }
}
