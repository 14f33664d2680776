//! The member's process.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    trilith_server::run::main(std::env::args_os().skip(1), std::env::vars_os())
}
