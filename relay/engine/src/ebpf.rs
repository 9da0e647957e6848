//! What the loaders of eBPF programs have in common.

use aya::Ebpf;
use rustix::thread::{CapabilitySet, capabilities};

/// What it takes to load a program.
pub(crate) const CAPABILITIES: &str = "it takes root, or CAP_BPF and CAP_NET_ADMIN";

/// Whether the thread has the capabilities. Having them in a user namespace of its own is not
/// enough, which shows when the program is loaded.
pub(crate) fn is_allowed() -> bool {
    let Ok(sets) = capabilities(None) else {
        return true;
    };
    let has = |capability| sets.effective.contains(capability);
    has(CapabilitySet::NET_ADMIN) && (has(CapabilitySet::BPF) || has(CapabilitySet::SYS_ADMIN))
}

/// Closes the maps that nobody has taken: those of the object's other programs.
pub(crate) fn close_other_maps(loaded: &mut Ebpf) {
    let others: Vec<String> = loaded.maps().map(|(name, _)| name.to_owned()).collect();
    for name in others {
        drop(loaded.take_map(&name));
    }
}
