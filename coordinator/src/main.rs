//! `llink-coord`: the coordinator and the command line.

fn main() -> std::process::ExitCode {
    llink_coord::cli::main()
}
