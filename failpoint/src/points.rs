//! The points: names, and what each is to do.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::http;
use crate::term::{Action, Terms};

/// Every point there is, sorted; etcd's names where etcd has the place.
pub(crate) const NAMES: [&str; 26] = [
    "afterCommit",
    "afterWritebackBuf",
    "beforeApplyOneConfChange",
    "beforeApplyOneEntryNormal",
    "beforeCommit",
    "beforeLookupWhenLeaseTimeToLive",
    "beforeProgressIfSync",
    "beforePublishing",
    "beforeRangeStreamChunk",
    "beforeSendWatchResponse",
    "beforeSyncWatchers",
    "beforeWritebackBuf",
    "compactAfterCommitBatch",
    "compactAfterCommitScheduledCompact",
    "compactBeforeCommitBatch",
    "compactBeforeCommitScheduledCompact",
    "raftAfterSave",
    "raftBeforeAdvance",
    "raftBeforeFollowerSend",
    "raftBeforeLeaderSend",
    "raftBeforeSave",
    "raftDropHeartbeat",
    "trilithBeforeAnswers",
    "trilithBeforeMeta",
    "walAfterSync",
    "walBeforeSync",
];

struct State {
    terms: BTreeMap<&'static str, Terms>,
    /// How often each point did something since it was set.
    counts: BTreeMap<&'static str, u64>,
}

/// How many points are set: most of the time none is.
static SET: AtomicUsize = AtomicUsize::new(0);
static STATE: Mutex<State> = Mutex::new(State { terms: BTreeMap::new(), counts: BTreeMap::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes a point: does what its term says. A text is for the caller to act on, as an error or as a switch.
#[inline]
pub fn hit(name: &'static str) -> Option<String> {
    debug_assert!(NAMES.contains(&name), "{name} is listed");
    if SET.load(Ordering::Relaxed) == 0 { None } else { act(name) }
}

#[cold]
fn act(name: &'static str) -> Option<String> {
    let action = {
        let mut state = state();
        let action = state.terms.get_mut(name)?.next(RandomState::new().hash_one(name) % 1_000_000);
        if action != Action::Off {
            *state.counts.entry(name).or_default() += 1;
        }
        action
    };
    match action {
        Action::Off => {}
        Action::Print => eprintln!("failpoint print: {name}"),
        Action::Sleep(time) => std::thread::sleep(time),
        Action::Return(text) => return Some(text),
        Action::Panic(text) => {
            // The end of a Go process that panics: nothing is unwound, nothing is flushed.
            eprintln!("failpoint panic: {name} {text}");
            std::process::exit(2);
        }
    }
    None
}

/// A name as it is listed.
pub(crate) fn known(name: &str) -> Option<&'static str> {
    NAMES.iter().copied().find(|known| *known == name)
}

/// Sets a point.
pub(crate) fn set(name: &'static str, text: &str) -> Result<(), String> {
    let terms = Terms::parse(text)?;
    let mut state = state();
    state.terms.insert(name, terms);
    state.counts.insert(name, 0);
    SET.store(state.terms.len(), Ordering::Relaxed);
    Ok(())
}

/// Sets a point off.
pub(crate) fn unset(name: &str) {
    let mut state = state();
    state.terms.remove(name);
    SET.store(state.terms.len(), Ordering::Relaxed);
}

/// A point's term (empty where it is off), and how often it did something since it was set.
pub(crate) fn status(name: &str) -> (String, u64) {
    let state = state();
    let text = state.terms.get(name).map_or_else(String::new, |terms| terms.text.clone());
    (text, state.counts.get(name).copied().unwrap_or(0))
}

/// Sets several points: `a=term;b=term`.
pub(crate) fn set_all(text: &str) -> Result<(), String> {
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, term) = part.split_once('=').ok_or_else(|| format!("failpoint: bad format {part:?}"))?;
        let name = known(name).ok_or_else(|| format!("failpoint: {name} does not exist"))?;
        set(name, term)?;
    }
    Ok(())
}

/// Takes the terms of `GOFAIL_FAILPOINTS` and listens at `GOFAIL_HTTP`.
///
/// # Errors
/// A term that cannot be read, or an address that cannot be listened at.
pub fn start(http: Option<&str>, terms: Option<&str>) -> Result<(), String> {
    set_all(terms.unwrap_or_default())?;
    match http {
        Some(address) => http::listen(address).map_err(|error| format!("failpoint: {address}: {error}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_set_counted_and_off_again() {
        assert!(NAMES.is_sorted());
        assert_eq!(hit(NAMES[0]), None);
        set_all(&format!("{}=2*return(\"x\");{}=print", NAMES[0], NAMES[1])).unwrap();
        assert_eq!([(); 3].map(|()| hit(NAMES[0])), [Some("x".to_owned()), Some("x".to_owned()), None]);
        assert_eq!(status(NAMES[0]), ("2*return(\"x\")".to_owned(), 2));
        unset(NAMES[0]);
        unset(NAMES[1]);
        assert_eq!((hit(NAMES[0]), status(NAMES[0]).0), (None, String::new()));
        for bad in ["nope=print", "print", &format!("{}=nope", NAMES[0])] {
            assert!(set_all(bad).is_err(), "{bad}");
        }
    }
}
