//! Applies committed entries.
