//! The order of keys in a tree.

use std::cmp::Ordering;

use crate::TreeId;

/// Bytes of the revision at the end of a key of the index: main (8) and sub (4).
pub(crate) const REVISION_BYTES: usize = 12;

/// How keys compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As bytes.
    Bytes,
    /// By all but the last [`REVISION_BYTES`] bytes, then by those: a user key, then its revisions.
    KeyThenRevision,
}

impl Order {
    pub(crate) fn of(tree: TreeId) -> Order {
        match tree {
            TreeId::Index => Order::KeyThenRevision,
            _ => Order::Bytes,
        }
    }

    /// The part of a key that decides first: all of it, or what is before the revision.
    #[inline]
    pub(crate) fn stem(self, key: &[u8]) -> &[u8] {
        match self {
            Order::Bytes => key,
            Order::KeyThenRevision => Order::split(key).0,
        }
    }

    fn split(key: &[u8]) -> (&[u8], &[u8]) {
        key.split_at(key.len().saturating_sub(REVISION_BYTES))
    }

    #[inline]
    pub(crate) fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        match self {
            Order::Bytes => a.cmp(b),
            Order::KeyThenRevision => {
                let ((a_key, a_revision), (b_key, b_revision)) = (Order::split(a), Order::split(b));
                a_key.cmp(b_key).then_with(|| a_revision.cmp(b_revision))
            }
        }
    }

    /// Compares a long key, of which only the beginning is at hand. None: the beginning does not decide.
    pub(crate) fn compare_prefix(self, prefix: &[u8], b: &[u8]) -> Option<Ordering> {
        let b = self.stem(b);
        if b.len() < prefix.len() {
            // The long key goes on where `b` ends.
            return Some(prefix[..b.len()].cmp(b).then(Ordering::Greater));
        }
        Some(prefix.cmp(&b[..prefix.len()])).filter(|order| order.is_ne())
    }

    /// A short key that is greater than `left` and not greater than `right`, to stand in a branch. None: `left` is not less
    /// than `right`.
    pub(crate) fn separator(self, left: &[u8], right: &[u8]) -> Option<Vec<u8>> {
        if self.compare(left, right).is_ge() {
            return None;
        }
        Some(match self {
            Order::Bytes => right[..=common(left, right)].to_vec(),
            Order::KeyThenRevision => {
                let (left_key, right_key) = (Order::split(left).0, Order::split(right).0);
                let common = common(left_key, right_key);
                if common == right_key.len() || right.len() < REVISION_BYTES {
                    return Some(right.to_vec());
                }
                let mut separator = right_key[..=common].to_vec();
                separator.extend_from_slice(&[0; REVISION_BYTES]);
                separator
            }
        })
    }
}

/// How many bytes two keys begin with alike.
pub(crate) fn common(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_part_their_neighbours() {
        let suffix = |key: &str, n: u8| [key.as_bytes(), &[n; 12]].concat();
        let keys = ["", "a", "ab", "abc", "ac", "b"];
        for (i, left) in keys.iter().enumerate() {
            for right in &keys[i + 1..] {
                let s = Order::Bytes.separator(left.as_bytes(), right.as_bytes()).unwrap();
                assert!(left.as_bytes() < &s[..] && &s[..] <= right.as_bytes());
                let (left, right) = (suffix(left, 9), suffix(right, 1));
                let s = Order::KeyThenRevision.separator(&left, &right).unwrap();
                assert!(Order::KeyThenRevision.compare(&left, &s).is_lt());
                assert!(Order::KeyThenRevision.compare(&s, &right).is_le());
            }
        }
        let s = Order::KeyThenRevision.separator(&suffix("a", 1), &suffix("a", 2));
        assert_eq!(s, Some(suffix("a", 2)));
        assert_eq!(Order::KeyThenRevision.separator(&suffix("a", 2), &suffix("a", 2)), None);
        assert_eq!(Order::Bytes.separator(b"ab", b"a"), None);
    }

    #[test]
    fn a_key_is_before_the_keys_it_begins() {
        let index = Order::KeyThenRevision;
        let (a, ab) = ([&b"a"[..], &[0xff; 12]].concat(), [&b"ab"[..], &[0; 12]].concat());
        assert!(index.compare(&a, &ab).is_lt());
        assert_eq!(index.compare_prefix(b"ab", &a), Some(Ordering::Greater));
        assert_eq!(index.compare_prefix(b"a", &ab), None);
        assert_eq!(Order::Bytes.compare_prefix(b"a", b"b"), Some(Ordering::Less));
    }
}
