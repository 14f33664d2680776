//! Named points in the code that a test can make sleep, fail or end the process, with etcd's names and protocol
//! (project gofail): over HTTP where `GOFAIL_HTTP` says, at start by `GOFAIL_FAILPOINTS`.
//!
//! Without the feature `on` [`hit`] is empty and compiled away, and the variables mean nothing: a release has no
//! points. With it, a point that is off costs one look at an atomic. A point sleeps on its caller's thread, as one of
//! etcd's does on its goroutine.
#![forbid(unsafe_code)]

#[cfg(feature = "on")]
mod http;
#[cfg(feature = "on")]
mod points;
#[cfg(feature = "on")]
mod term;

#[cfg(feature = "on")]
pub use points::{hit, start};

/// Passes a point: does what its term says. A text is for the caller to act on, as an error or as a switch.
#[cfg(not(feature = "on"))]
#[inline(always)]
pub fn hit(_name: &'static str) -> Option<String> {
    None
}

/// Takes the terms of `GOFAIL_FAILPOINTS` and listens at `GOFAIL_HTTP`.
///
/// # Errors
/// None without the feature `on`.
#[cfg(not(feature = "on"))]
pub fn start(_http: Option<&str>, _terms: Option<&str>) -> Result<(), String> {
    Ok(())
}
