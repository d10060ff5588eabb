//! checkvalve-receiver
