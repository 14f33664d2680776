//! Tests of the store as a whole.

mod model;
mod rng;
