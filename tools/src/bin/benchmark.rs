//! `benchmark`: loads a cluster, and says how it bore it.

use std::process::ExitCode;

fn main() -> ExitCode {
    trilith_tools::conclude(trilith_tools::bench::run(trilith_tools::arguments()))
}
