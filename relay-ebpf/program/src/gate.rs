//! Sends what arrives at one socket of relay out at another one, while there is credit for it.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_skb_adjust_room};
use aya_ebpf::macros::{map, stream_verdict};
use aya_ebpf::maps::{Array, HashMap, RingBuf, SockMap};
use aya_ebpf::programs::SkBuffContext;
use relay_ebpf::gate::{Kernel, Record, opposite};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1024;
/// The most that one call cuts off.
const CUT: i32 = 4095;
/// Calls that cut off the largest packet there is, a coalesced one, and more.
const CUTS: u32 = 512;

// The loader makes them as long as it needs them.
#[map(name = "RELAY_RECORDS")]
static RECORDS: Array<Record> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "RELAY_INDICES")]
static INDICES: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
#[map(name = "RELAY_ENDS")]
static ENDS: SockMap = SockMap::with_max_entries(1, 0);
#[map(name = "RELAY_EVENTS")]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Called for each packet that a socket of the map has received, under the socket's lock.
#[stream_verdict]
pub fn relay_gate(context: SkBuffContext) -> u32 {
    // The end of the stream. The kernel has noted it; sent on it would break the other socket.
    if context.len() == 0 {
        return SK_DROP;
    }
    // SAFETY: the context is the kernel's.
    let cookie = unsafe { bpf_get_socket_cookie(context.skb.skb.cast()) };
    // SAFETY: an entry is written before its socket comes into the map.
    let Some(&index) = (unsafe { INDICES.get(cookie) }) else {
        return SK_PASS;
    };
    let Some(record) = RECORDS.get_ptr_mut(index) else {
        return SK_PASS;
    };
    // SAFETY: the record is in the map for ever, and `kernel` has no other writer.
    unsafe {
        if !trim(&context, &raw mut (*record).kernel) {
            write_volatile(&raw mut (*record).kernel.broken, 1);
            let _ = EVENTS.output::<u32>(index, 0);
            return SK_DROP;
        }
        let length = u64::from(context.len());
        if length == 0 {
            return SK_DROP;
        }
        if send_on(&context, record, index, length) {
            return SK_PASS;
        }
        pass(record, index, length);
    }
    SK_PASS
}

/// Cuts off what has come before: the kernel hands over the whole of a packet of which a part came
/// before, as after a needless retransmission, or was read by relay. Whether what is left comes next.
///
/// Where the sequence number stands is no promise of the kernel's; the loader tries it.
#[inline(always)]
unsafe fn trim(context: &SkBuffContext, kernel: *mut Kernel) -> bool {
    // SAFETY: the context is valid, and the caller the only writer.
    unsafe {
        let sequence = (*context.skb.skb).cb[0];
        let mut old = (*kernel).next.wrapping_sub(sequence).cast_signed();
        if old < 0 {
            return false;
        }
        // One path for the verifier: how often it goes round is all that differs.
        let mut left = old.min(context.len().cast_signed());
        (*kernel).trimmed += left as u64;
        old -= left;
        let mut cuts = 0;
        while cuts < CUTS && left > 0 {
            let cut = if left > CUT { CUT } else { left };
            if bpf_skb_adjust_room(context.skb.skb.cast(), -cut, 0, 0) != 0 {
                return false;
            }
            left -= cut;
            cuts += 1;
        }
        if left > 0 {
            return false;
        }
        if context.len() == 0 {
            return true;
        }
        (*kernel).next = (*kernel).next.wrapping_add(context.len());
        old == 0
    }
}

/// Sends it on, if relay has nothing that goes before it and the far end keeps up.
#[inline(always)]
unsafe fn send_on(context: &SkBuffContext, record: *mut Record, index: u32, length: u64) -> bool {
    // SAFETY: both halves are valid; `kernel` has no other writer, and relay's words are read once.
    unsafe {
        let (kernel, user) = (&raw mut (*record).kernel, &raw const (*record).user);
        let consumed = read_volatile(&raw const (*user).consumed);
        if (*kernel).passed != consumed {
            return false;
        }
        let drained = read_volatile(&raw const (*user).drained);
        let (high, most) = ((*user).high, (*user).packets);
        let sum = (*kernel).redirected + consumed;
        let waiting = sum.saturating_sub(drained);
        if drained >= (*kernel).mark {
            (*kernel).packets[0] = (*kernel).packets[1];
            (*kernel).packets[1] = 0;
            (*kernel).mark = sum;
        }
        let packets = u64::from((*kernel).packets[0]) + u64::from((*kernel).packets[1]);
        if waiting + length > high || packets >= most {
            return false;
        }
        // Without a socket at the other end this fails.
        if ENDS.redirect_skb(context, opposite(index), 0) != i64::from(SK_PASS) {
            return false;
        }
        write_volatile(&raw mut (*kernel).redirected, (*kernel).redirected + length);
        (*kernel).packets[1] += 1;
        let is_short = waiting * 2 > high || packets * 2 > most;
        if is_short && read_volatile(&raw const (*kernel).notified) == 0 {
            write_volatile(&raw mut (*kernel).notified, 1);
            let _ = EVENTS.output::<u32>(index, 0);
        }
        true
    }
}

/// Leaves it to relay. First it is counted, by an operation that is a barrier; only then is looked
/// at what relay has consumed, which relay stores before it reads the count. So one of the two
/// always sees the other.
#[inline(always)]
unsafe fn pass(record: *mut Record, index: u32, length: u64) {
    // SAFETY: the record is valid.
    unsafe {
        let passed = &raw mut (*record).kernel.passed;
        let before = atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(passed, length);
        if read_volatile(&raw const (*record).user.consumed) == before {
            let _ = EVENTS.output::<u32>(index, 0);
        }
    }
}
