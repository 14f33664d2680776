//! Member and cluster ids, the way etcd derives them: equal input gives equal ids on every member.

use sha1::{Digest, Sha1};

/// Id of a member: the first 8 bytes (big endian) of SHA-1 over its peer URLs, sorted and joined without a
/// separator, then the cluster token, then, for a member that is added at run time, the decimal unix seconds.
///
/// Bootstrap gives the token and no time; adding a member gives an empty token and the time. The URLs are hashed as
/// they are: the caller renders them first.
pub fn member_id(peer_urls: &[String], token: &str, unix_seconds: Option<u64>) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in urls {
        hash.update(url);
    }
    hash.update(token);
    if let Some(seconds) = unix_seconds {
        hash.update(seconds.to_string());
    }
    first_8_bytes(hash)
}

/// Id of a cluster: the first 8 bytes (big endian) of SHA-1 over the ids of its first members, ascending, 8 bytes
/// big endian each.
pub fn cluster_id(member_ids: &[u64]) -> u64 {
    let mut ids = member_ids.to_vec();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    first_8_bytes(hash)
}

fn first_8_bytes(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest[..8].iter().fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_default_etcd() {
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster", None);
        assert_eq!(format!("{member:x}"), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id(&[member])), "cdf818194e3a8c32");
    }

    #[test]
    fn order_does_not_matter_and_time_does() {
        let (a, b) = ("http://a:1".to_owned(), "http://b:1".to_owned());
        assert_eq!(
            member_id(&[a.clone(), b.clone()], "t", None),
            member_id(&[b.clone(), a.clone()], "t", None)
        );
        assert_ne!(member_id(std::slice::from_ref(&a), "", Some(1)), member_id(&[a], "", Some(2)));
        assert_eq!(cluster_id(&[3, 1, 2]), cluster_id(&[1, 2, 3]));
    }
}
