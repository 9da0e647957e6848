//! What must hold for any bytes from a peer. Each function is the body of a fuzz target (`fuzz/`) and
//! of a test here, which also replays the inputs in `fuzz/inputs`.

use std::sync::Arc;
use std::task::{Context, Waker};

use ring::rand::SystemRandom;

use super::auth;
use super::kex::{self, HostKey};
use super::mux::{Event, Mux, Refusal};
use super::transport::{Received, Transport};

/// No message of a peer makes more than this to be sent, bytes.
const LARGEST_ANSWER: usize = 4 << 10;
/// More messages than any input holds that are waiting at a time.
const DRAINED: usize = 1 << 16;

/// The first line, offers, keys and all that can be said before there are keys: taken in pieces or
/// at once it comes to the same, and what is answered is in proportion.
///
/// The first four bytes say how the others are cut.
pub fn packets(bytes: &[u8]) {
    let (cuts, bytes) = bytes.split_at(bytes.len().min(4));
    let whole = receive(std::iter::once(bytes));
    let mut lengths = cuts.iter().cycle();
    let mut rest = bytes;
    let pieces = std::iter::from_fn(|| {
        let length = lengths.next().map_or(1, |cut| usize::from(*cut) + 1);
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    let cut = receive(pieces);
    assert_eq!(whole, cut);
}

/// What was found, how much was answered, and what was wrong in the end.
type Outcome = (Vec<String>, usize, Option<String>);

fn receive<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let (mut found, mut inbox, mut answered) = (Vec::new(), Vec::new(), 0);
    let Some(mut transport) = transport() else {
        return (found, answered, None);
    };
    for piece in pieces {
        inbox.extend_from_slice(piece);
        loop {
            transport.out.clear();
            let received = transport.receive(&mut inbox);
            assert!(transport.out.len() <= LARGEST_ANSWER + inbox.len());
            answered += transport.out.len();
            match received {
                Ok(Received::Incomplete(whole)) => {
                    assert!(whole > inbox.len(), "more is asked for than there is");
                    break;
                }
                Ok(Received::Done(count)) => {
                    inbox.drain(..count);
                    if transport.is_open() {
                        // From here on all is sealed, with keys that are others each time.
                        return (found, answered, None);
                    }
                }
                Ok(Received::Payload(count, range)) => {
                    found.push(format!("{:?}", &inbox[range.clone()]));
                    let _ = auth::answer(&mut transport, &inbox[range]);
                    inbox.drain(..count);
                }
                Ok(Received::Disconnected) => {
                    found.push("goodbye".to_owned());
                    return (found, answered, None);
                }
                Err(error) => return (found, answered, Some(error.to_string())),
            }
        }
    }
    (found, answered, None)
}

/// A client's offer and its key, each as the message that it is; the offer's length, of two bytes, is
/// in front.
pub fn key_exchange(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (offer, key) = rest.split_at(length);
    let Ok(host_key) = HostKey::from_seed(b"fuzz") else {
        return;
    };
    let Ok(choice) = kex::choose(offer) else {
        return;
    };
    let said = kex::Said {
        client_version: b"SSH-2.0-fuzz",
        server_version: b"SSH-2.0-relay",
        client_offer: offer,
        server_offer: offer,
    };
    if let Ok(agreed) = kex::agree(key, choice.method, &said, &host_key, &SystemRandom::new()) {
        assert!(agreed.keys(&agreed.hash, choice).is_ok());
    }
}

/// A login's messages: what is answered is in proportion.
pub fn login(payload: &[u8]) {
    let Some(mut transport) = transport() else {
        return;
    };
    transport.out.clear();
    if !payload.is_empty() {
        let _ = auth::answer(&mut transport, payload);
    }
    assert!(transport.out.len() <= LARGEST_ANSWER + payload.len());
}

/// The messages of channels, one behind the other, each with its length in front (two bytes): what
/// they ask for is granted, refused and used in turn, and a peer that breaks the rules is told so.
pub fn channels(bytes: &[u8]) {
    let mut mux = Mux::default();
    let (mut out, mut rest, mut open) = (Vec::new(), bytes, Vec::new());
    let cx = Context::from_waker(Waker::noop());
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (payload, after) = after.split_at(length);
        rest = after;
        if payload.is_empty() {
            continue;
        }
        match mux.receive(payload) {
            Err(_) => break,
            Ok(None) => {}
            Ok(Some(Event::Global(request))) => {
                if request.want_reply {
                    mux.reply_global(None);
                }
            }
            Ok(Some(Event::Open { id, .. })) if id % 3 == 2 => {
                mux.refuse(id, Refusal::Prohibited, "no");
            }
            Ok(Some(Event::Open { id, .. })) => {
                mux.accept(id);
                open.push(id);
            }
        }
        serve(&mut mux, &mut open, &cx);
        drain(&mut mux, &mut out);
    }
    mux.end();
    for id in open {
        let _ = mux.poll_request(id, &cx);
        mux.drop_channel(id);
    }
}

/// What a program on each channel might do.
fn serve(mux: &mut Mux, open: &mut Vec<u32>, cx: &Context<'_>) {
    open.retain(|id| {
        if let std::task::Poll::Ready(Some(request)) = mux.poll_request(*id, cx) {
            if request.want_reply {
                mux.reply(*id, request.data.len() % 2 == 0);
            }
            if request.kind == "exec" {
                mux.say_last(*id, "exit-status", &[0; 4]);
                mux.drop_channel(*id);
                return false;
            }
        }
        true
    });
}

fn drain(mux: &mut Mux, out: &mut Vec<u8>) {
    for count in 0.. {
        assert!(count < DRAINED, "there is always more to send");
        let Some(message) = mux.next() else {
            break;
        };
        out.clear();
        mux.write(&message, out);
        assert!(!out.is_empty());
    }
}

fn transport() -> Option<Transport> {
    let host_key = HostKey::from_seed(b"fuzz").ok()?;
    Transport::new(Arc::new(host_key), Box::new(SystemRandom::new())).ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    type Body = fn(&[u8]);

    const TARGETS: [(&str, Body); 4] = [
        ("packets", packets),
        ("key_exchange", key_exchange),
        ("login", login),
        ("channels", channels),
    ];

    fn stored(target: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/fuzz/inputs/{target}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(&folder).unwrap();
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(!paths.is_empty(), "{folder} is empty");
        paths.sort();
        let inputs = paths.iter().map(|path| std::fs::read(path).unwrap());
        inputs.collect()
    }

    #[test]
    fn stored_inputs_are_borne() {
        for (name, body) in TARGETS {
            stored(name).iter().for_each(|input| body(input));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(bytes in vec(any::<u8>(), 0..300)) {
            for (_, body) in TARGETS {
                body(&bytes);
            }
        }

        #[test]
        fn nearly_the_stored_inputs_are_borne(
            target in 0..TARGETS.len(),
            input: prop::sample::Index,
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut: prop::sample::Index,
        ) {
            let (name, body) = TARGETS[target];
            let inputs = stored(name);
            let mut bytes = input.get(&inputs).clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            body(&bytes);
            bytes.truncate(cut.index(bytes.len() + 1));
            body(&bytes);
        }
    }
}
