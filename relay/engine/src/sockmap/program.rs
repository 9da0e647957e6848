//! The program in the kernel: loading it, and its maps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, RingBuf, SockMap};
use aya::programs::SkSkb;
use aya::{Ebpf, EbpfLoader};
use relay_ebpf::OBJECT;
use relay_ebpf::gate::{ENDS, EVENTS, INDICES, PROGRAM, RECORDS};

use super::record::Records;
use crate::ebpf;

/// Connections that one program can have at once.
pub(super) const FLOWS: u32 = 4096;
const DIRECTIONS: u32 = 2 * FLOWS;
/// Room for two events of every direction; each takes 16 bytes.
const RING: u32 = DIRECTIONS * 2 * 16 * 2;

/// The loaded program and its maps.
pub(super) struct Program {
    /// Holds the program.
    _program: Ebpf,
    indices: HashMap<MapData, u64, u32>,
    ends: SockMap<MapData>,
    events: RingBuf<MapData>,
    records: Arc<Records>,
}

impl Program {
    /// Loads the program and attaches it to its map.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn load() -> Result<Self, String> {
        if !ebpf::is_allowed() {
            return Err(ebpf::CAPABILITIES.to_owned());
        }
        let mut loaded = EbpfLoader::new()
            .map_max_entries(RECORDS, DIRECTIONS)
            .map_max_entries(INDICES, DIRECTIONS)
            .map_max_entries(ENDS, DIRECTIONS)
            .map_max_entries(EVENTS, RING)
            // Nothing in it depends on the layout of the kernel's structures.
            .btf(None)
            .load(OBJECT)
            .map_err(|error| failed("load the program", &error))?;
        let mut map = |name| loaded.take_map(name).ok_or_else(|| lacks(name));
        let (records, indices) = (map(RECORDS)?, map(INDICES)?);
        let (ends, events) = (map(ENDS)?, map(EVENTS)?);
        ebpf::close_other_maps(&mut loaded);
        let make = |error| failed("make a map", &error);
        let Map::Array(records) = records else {
            return Err(lacks(RECORDS));
        };
        let indices = HashMap::try_from(indices).map_err(make)?;
        let ends = SockMap::try_from(ends).map_err(make)?;
        let events = RingBuf::try_from(events).map_err(make)?;
        let records = Records::map(records.fd().as_fd(), DIRECTIONS)
            .map_err(|error| failed("map the records into memory", &error))?;
        let program = loaded.program_mut(PROGRAM).ok_or_else(|| lacks(PROGRAM))?;
        let attach = |error| failed("attach the program", &error);
        let program: &mut SkSkb = program.try_into().map_err(attach)?;
        program
            .load()
            .map_err(|error| failed("load the program", &error))?;
        program.attach(ends.fd()).map_err(attach)?;
        Ok(Self {
            _program: loaded,
            indices,
            ends,
            events,
            records: Arc::new(records),
        })
    }

    pub(super) fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// Says which direction begins at the socket of a cookie.
    pub(super) fn name(&mut self, cookie: u64, index: u32) -> bool {
        self.indices.insert(cookie, index, 0).is_ok()
    }

    /// Forgets what begins at the socket of a cookie.
    pub(super) fn forget(&mut self, cookie: u64) {
        let _ = self.indices.remove(&cookie);
    }

    /// Takes a socket into the map; it leaves it when it is closed. Refused when the peer has ended
    /// already.
    pub(super) fn take(&mut self, index: u32, socket: &OwnedFd) -> bool {
        self.ends.set(index, socket, 0).is_ok()
    }

    /// The next direction that wants to be looked at.
    pub(super) fn event(&mut self) -> Option<u32> {
        let item = self.events.next()?;
        item.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }
}

/// Readable when there are events.
impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn lacks(name: &str) -> String {
    format!("the object lacks {name}: build it anew")
}

/// The innermost error says most.
fn failed(what: &str, mut error: &dyn std::error::Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    format!("cannot {what}: {error}")
}
