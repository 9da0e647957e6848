//! The helper process, seen from the parent.

use crate::Error;

/// The client side of the forked helper process, the only one that enters the namespace.
#[derive(Debug)]
pub struct NetHelper {}

impl NetHelper {
    /// Forks the helper. Call it before the process has threads: a process with threads may not
    /// enter a user namespace.
    pub fn spawn() -> Result<Self, Error> {
        Ok(Self {})
    }
}
