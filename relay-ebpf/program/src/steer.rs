//! Gives what arrives for many ports of an address to one socket of relay.

use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::{Array, HashMap, SockMap};
use aya_ebpf::programs::SkLookupContext;
use relay_ebpf::steer::{MAX_ADDRESSES, Ports, TCP, UDP, contains, index};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
/// Go on: with the socket that was chosen here, if one was, else as without this program.
const SK_PASS: u32 = 1;

#[map(name = "RELAY_ADDRS")]
static ADDRESSES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
/// The loader makes both as long as it needs them.
#[map(name = "RELAY_PORTS")]
static PORTS: Array<Ports> = Array::with_max_entries(2, 0);
#[map(name = "RELAY_SOCKS")]
static SOCKETS: SockMap = SockMap::with_max_entries(2, 0);

/// Called for each packet that belongs to no connection, before a listener is looked up.
#[sk_lookup]
pub fn relay_steer(context: SkLookupContext) -> u32 {
    if let Some(index) = steered(&context) {
        // A socket that is gone leaves the packet to the ordinary look-up.
        let _ = SOCKETS.redirect_sk_lookup(&context, index, 0);
    }
    SK_PASS
}

#[inline(always)]
fn steered(context: &SkLookupContext) -> Option<u32> {
    // SAFETY: the kernel passes a valid context.
    let lookup = unsafe { &*context.lookup };
    if lookup.family != AF_INET {
        return None;
    }
    let proto = match lookup.protocol {
        IPPROTO_TCP => TCP,
        IPPROTO_UDP => UDP,
        _ => return None,
    };
    // SAFETY: addresses are written before the program is attached or beside it, never removed.
    let row = *unsafe { ADDRESSES.get(lookup.local_ip4) }?;
    let index = index(row, proto);
    let ports = PORTS.get(index)?;
    contains(ports, lookup.local_port as u16).then_some(index)
}
