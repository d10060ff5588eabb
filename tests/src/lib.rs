//! checkvalve-tests
