//! Which watchers a key concerns: a map for single keys, a list for intervals.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

/// An interval of keys that owns its bounds. `end` None: one key; empty: every key >= start; else half open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) start: Bytes,
    pub(super) end: Option<Bytes>,
}

impl Interval {
    fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            None => self.start == key,
            Some(end) => *self.start <= *key && (end.is_empty() || key < end),
        }
    }
}

/// Watchers by what they watch; `K` names a watcher.
#[derive(Debug)]
pub(super) struct Matcher<K> {
    single: HashMap<Bytes, Vec<K>>,
    ranges: BTreeMap<K, Interval>,
}

impl<K: Copy + Ord> Matcher<K> {
    pub(super) fn new() -> Matcher<K> {
        Matcher { single: HashMap::new(), ranges: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.single.is_empty() && self.ranges.is_empty()
    }

    pub(super) fn insert(&mut self, watcher: K, interval: &Interval) {
        match interval.end {
            None => self.single.entry(interval.start.clone()).or_default().push(watcher),
            Some(_) => {
                self.ranges.insert(watcher, interval.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, watcher: K, interval: &Interval) {
        if interval.end.is_some() {
            self.ranges.remove(&watcher);
        } else if let Some(watchers) = self.single.get_mut(&interval.start) {
            watchers.retain(|&other| other != watcher);
            if watchers.is_empty() {
                self.single.remove(&interval.start);
            }
        }
    }

    pub(super) fn matches(&self, key: &[u8], mut hit: impl FnMut(K)) {
        for &watcher in self.single.get(key).into_iter().flatten() {
            hit(watcher);
        }
        for (&watcher, interval) in &self.ranges {
            if interval.contains(key) {
                hit(watcher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(start: &'static str, end: Option<&'static str>) -> Interval {
        Interval {
            start: Bytes::from_static(start.as_bytes()),
            end: end.map(|e| Bytes::from_static(e.as_bytes())),
        }
    }

    #[test]
    fn finds_exactly_the_watchers_of_a_key() {
        let all =
            [interval("b", None), interval("b", None), interval("a", Some("c")), interval("b", Some(""))];
        let mut matcher = Matcher::new();
        for (n, interval) in all.iter().enumerate() {
            matcher.insert(n, interval);
        }
        let hits = |matcher: &Matcher<usize>, key: &str| {
            let mut hits = Vec::new();
            matcher.matches(key.as_bytes(), |n| hits.push(n));
            hits
        };
        assert_eq!(hits(&matcher, "b"), [0, 1, 2, 3]);
        assert_eq!(hits(&matcher, "a"), [2]);
        assert_eq!(hits(&matcher, "c"), [3]);
        assert_eq!(hits(&matcher, ""), [] as [usize; 0]);
        for (n, interval) in all.iter().enumerate() {
            assert!(!matcher.is_empty());
            matcher.remove(n, interval);
            assert!(!hits(&matcher, "b").contains(&n));
        }
        assert!(matcher.is_empty());
    }
}
