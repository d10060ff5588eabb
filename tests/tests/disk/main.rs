//! Faults of real disks under both daemons: what they say, that nothing is lost in silence, and what mends it.

mod broken;
mod deleted;
mod elsewhere;
mod full;
mod readonly;
mod slow;

use checkvalve_tests::pair::{Dropped, Pair};

/// Carries the ticket for all that is lacking to the low side.
fn carry_tickets(pair: &Pair) {
    let printed = pair.receiver_command(&["ticket", "--all"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let text = String::from_utf8(printed.stdout).expect("a ticket is text");
    let resent = pair.sender_command_with(&["resend", "--ticket", "-"], &text);
    assert!(resent.status.success(), "{}\n{text}", String::from_utf8_lossy(&resent.stderr));
}

/// Why the high side says that a bundle is not there.
fn reason(pair: &Pair, bundle: &Dropped) -> String {
    let found = pair.receiver_status().and_then(|status| status.find(&bundle.channel, &bundle.name));
    found.and_then(|found| found.all["reason"].as_str().map(str::to_owned)).unwrap_or_default()
}
