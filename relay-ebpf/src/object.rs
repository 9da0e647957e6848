//! The compiled programs.

/// The bytes, where an ELF header may lie.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("RELAY_EBPF_OBJECT")));

/// The ELF object with all programs and maps, as the loader takes it. It is the one that is checked
/// in, unless `RELAY_EBPF_OBJECT` named another one when this was built.
pub static OBJECT: &[u8] = &ALIGNED.0;
