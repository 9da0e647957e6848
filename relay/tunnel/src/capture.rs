//! Records the packets inside the tunnel in a file that tcpdump and Wireshark read: each IPv6 packet
//! as it is before it is sealed, or after it was opened (draft-ietf-opsawg-pcap).

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest part of a packet that is kept, bytes: all headers, and the start of what it carries.
pub const SNAP: usize = 256;
/// The first word of a file whose times have nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: (u16, u16) = (2, 4);
/// Packets that begin with the header of IPv4 or IPv6 (`LINKTYPE_RAW`).
const RAW: u32 = 101;
/// Bursts that may wait for the disk; what comes while they do is not recorded.
const WAITING: usize = 256;

/// Where a tunnel's packets are recorded. Clones name the same file.
#[derive(Clone, Debug)]
pub struct Capture {
    batches: SyncSender<Batch>,
    lost: Arc<AtomicU64>,
}

/// The file, while it is written.
#[derive(Debug)]
pub struct Recording {
    capture: Capture,
    writer: JoinHandle<io::Result<u64>>,
}

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Packets in it.
    pub packets: u64,
    /// Packets that are not, since the disk did not keep up.
    pub lost: u64,
}

#[derive(Debug)]
enum Batch {
    /// Records as they are in the file, and how many they are.
    Records(Vec<u8>, u64),
    End,
}

/// Begins a file, in place of one of that name, for its owner alone: what passes inside the tunnel is
/// in it in the clear.
///
/// # Errors
/// When it cannot be made.
pub fn start(path: &Path) -> io::Result<(Capture, Recording)> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = BufWriter::new(file.open(path)?);
    file.write_all(&file_header())?;
    file.flush()?;
    let (batches, waiting) = sync_channel(WAITING);
    let thread = std::thread::Builder::new().name("relay-capture".to_owned());
    let writer = thread.spawn(move || write(file, &waiting))?;
    let lost = Arc::new(AtomicU64::new(0));
    let capture = Capture { batches, lost };
    let recording = Recording {
        capture: capture.clone(),
        writer,
    };
    Ok((capture, recording))
}

fn write(mut file: impl Write, waiting: &Receiver<Batch>) -> io::Result<u64> {
    let mut packets = 0;
    while let Ok(Batch::Records(records, count)) = waiting.recv() {
        file.write_all(&records)?;
        packets += count;
    }
    file.flush()?;
    Ok(packets)
}

impl Capture {
    /// Records packets that go or came now. Never waits.
    pub(crate) fn record<'a>(&self, packets: impl Iterator<Item = &'a [u8]>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let (mut records, mut count) = (Vec::new(), 0);
        // An empty packet keeps the tunnel open and has nothing inside.
        for packet in packets.filter(|packet| !packet.is_empty()) {
            let kept = &packet[..packet.len().min(SNAP)];
            let header = [
                now.as_secs() as u32,
                now.subsec_nanos(),
                kept.len() as u32,
                packet.len() as u32,
            ];
            records.extend(header.iter().flat_map(|word| word.to_le_bytes()));
            records.extend_from_slice(kept);
            count += 1;
        }
        if count > 0
            && self
                .batches
                .try_send(Batch::Records(records, count))
                .is_err()
        {
            self.lost.fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl Recording {
    /// Ends the file and says what is in it. What is recorded after that is lost.
    ///
    /// # Errors
    /// When not all of it could be written.
    pub fn finish(self) -> io::Result<Recorded> {
        // It fails where writing has, which is told below.
        let _ = self.capture.batches.send(Batch::End);
        let written = self.writer.join();
        let packets = written.map_err(|_| io::Error::other("the writing thread is gone"))??;
        let lost = self.capture.lost.load(Ordering::Relaxed);
        Ok(Recorded { packets, lost })
    }
}

fn file_header() -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..6].copy_from_slice(&VERSION.0.to_le_bytes());
    header[6..8].copy_from_slice(&VERSION.1.to_le_bytes());
    // Eight reserved bytes.
    header[16..20].copy_from_slice(&(SNAP as u32).to_le_bytes());
    header[20..].copy_from_slice(&RAW.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn packets_are_recorded_with_their_length_and_a_bounded_part_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tunnel.pcap");
        std::fs::write(&path, [7; 5000]).unwrap();
        let (capture, recording) = start(&path).unwrap();
        let (short, long) = ([0x60; 48], [0x60; 1280]);
        capture.record([&short[..], &[], &long[..]].into_iter());
        let told = recording.finish().unwrap();
        assert_eq!((told.packets, told.lost), (2, 0));
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(file[4..8], [2, 0, 4, 0]);
        assert_eq!(file[16..24], [0, 1, 0, 0, 101, 0, 0, 0]);
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        assert!(word(24) > 1_700_000_000 && word(28) < 1_000_000_000);
        assert_eq!((word(32), word(36)), (48, 48));
        assert_eq!(file[40..88], short);
        assert_eq!((word(96), word(100)), (SNAP, 1280));
        assert_eq!(file.len(), 104 + SNAP);
        // What comes late is counted, and waits for nobody.
        capture.record([&short[..]].into_iter());
        assert_eq!(capture.lost.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_new_file_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tunnel.pcap");
        start(&path).unwrap().1.finish().unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(start(&folder.path().join("none/such")).is_err());
    }
}
