use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn options_stand_before_or_after_the_command() {
    for words in [
        ["checkvalve-receiver", "--config", "/x", "status", "--json"],
        ["checkvalve-receiver", "status", "--json", "--config", "/x"],
    ] {
        let cli = Cli::try_parse_from(words).unwrap();
        assert!(cli.json && cli.config == std::path::Path::new("/x"));
    }
    assert!(Cli::try_parse_from(["checkvalve-receiver"]).is_err());
    assert!(Cli::try_parse_from(["checkvalve-receiver", "verify"]).is_err());
}
