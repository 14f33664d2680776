//! Tests of the store as a whole.

mod corruption;
mod crash;
mod durable;
mod format;
mod full;
mod longs;
mod model;
mod page;
mod rng;
mod space;
