//! checkvalve-sender
