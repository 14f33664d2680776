//! `etcdutl`: the command line tool for snapshots and data directories.

use std::process::ExitCode;

fn main() -> ExitCode {
    trilith_tools::conclude(trilith_tools::utl::run(&trilith_tools::arguments()))
}
