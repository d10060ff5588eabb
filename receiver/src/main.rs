//! `checkvalve-receiver`: the daemon on the high side and its commands.

use checkvalve_host::exit::Exit;

/// raptorq allocates for every symbol; glibc's allocator gives that back to the kernel and fetches it again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Exit {
    checkvalve_receiver::cli::main()
}
