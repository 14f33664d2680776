//! `etcdctl`: the command line client.

use std::process::ExitCode;

fn main() -> ExitCode {
    trilith_tools::conclude(trilith_tools::ctl::run(trilith_tools::arguments()))
}
