//! `llink-coord`: the coordinator and the command line.

fn main() -> std::process::ExitCode {
    // SAFETY: no thread has been started yet.
    unsafe {
        llink_datasets::environment::unset_empty();
    }
    llink_coord::cli::main()
}
