//! Passes UDP datagrams from one port to another, one way, and loses some of them.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use checkvalve_tests::relay::Relay;
use clap::Parser;

/// A small lossy one-way relay for the demonstration, where network namespaces cannot be made.
#[derive(Debug, Parser)]
#[command(name = "checkvalve-relay")]
struct Args {
    /// Address to receive datagrams on.
    #[arg(long, default_value = "127.0.0.1:7701")]
    from: SocketAddr,
    /// Address to pass them on to.
    #[arg(long, default_value = "127.0.0.1:7700")]
    to: SocketAddr,
    /// How many of 1,000 datagrams to lose.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    loss_per_mille: u32,
    /// Seed of the random loss.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let relay = Relay::new(args.from, args.to, args.loss_per_mille, args.seed);
    match relay.and_then(|relay| relay.run(&AtomicBool::new(false))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay {} to {}: {error}", args.from, args.to);
            ExitCode::FAILURE
        }
    }
}
