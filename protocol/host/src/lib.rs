//! checkvalve-host
