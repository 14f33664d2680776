//! Tests of the store as a whole.

mod bounds;
mod bulk;
mod corruption;
mod crash;
mod durable;
mod format;
mod full;
mod fuzz;
mod fuzz_write;
mod longs;
mod memory;
mod model;
mod page;
pub(crate) mod rng;
mod scrub;
mod short_puts;
mod shrink;
mod space;
mod spare;
mod sums;

pub(crate) use model::{seed, sim_options as model_options};
