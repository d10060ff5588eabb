//! `checkvalve-sender`: the daemon on the low side and its commands.

use checkvalve_host::exit::Exit;

/// raptorq allocates for every symbol; glibc's allocator gives that back to the kernel and fetches it again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Exit {
    checkvalve_sender::cli::main()
}
