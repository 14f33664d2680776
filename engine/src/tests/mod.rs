//! Tests of the store as a whole.

mod corruption;
mod crash;
mod durable;
mod model;
mod rng;
