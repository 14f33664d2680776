//! How a new member finds the others: by another etcd cluster (`registry`) or by DNS (`srv`).
//!
//! Both yield what `--initial-cluster` would say, and are asked at a first start only: a member with a log knows its
//! cluster. What others wrote into the service or into DNS is checked as a flag's value is.

mod client;
mod registry;
mod srv;

pub use registry::{JoinError, join};
pub use srv::{SrvError, cluster_of_srv};

pub use crate::config::discovery::Members;
use crate::config::url::{self, Url};

/// The members as the text of `--initial-cluster`, sorted.
fn text_of(members: &Members) -> String {
    let mut parts: Vec<String> =
        members.iter().flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}"))).collect();
    parts.sort();
    parts.join(",")
}

/// The URLs as texts, sorted, as ids are made of them.
fn texts(urls: &[Url]) -> Vec<String> {
    let mut texts: Vec<String> = urls.iter().map(url::Url::to_string).collect();
    texts.sort();
    texts
}
