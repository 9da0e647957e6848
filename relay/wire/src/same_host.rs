//! How two ends of a tunnel that run on the same machine find that out, and what they say to each
//! other then. Only relay's own ends do this: a client asks the agent's HTTP API for [`PATH`],
//! which other agents do not have.
//!
//! The agent listens at a random name among the abstract Unix sockets, which only processes of the
//! same network namespace see, and tells name and token to the peer that asks, through the tunnel.
//! Who then connects at that name and shows the token is that peer. The agent shows the client's
//! challenge in turn, so the client knows whom it has reached. Both are used once.
//!
//! After that each message of the client brings a connection and says where it leads to. The agent
//! says what became of it, what it has moved from time to time, and when it has ended.

use std::fmt;
use std::hint::black_box;

use rand::CryptoRng;

/// The resource of the agent's HTTP API. A client posts there.
pub const PATH: &str = "/api/v0/relay/same-host";
/// The header with the client's challenge, in hexadecimal digits.
pub const CHALLENGE: &str = "relay-challenge";
/// Length of a [`Secret`].
pub const SECRET: usize = 32;
/// The longest [`Request`].
pub const REQUEST: usize = 9 + PATH_MAX;
/// The longest [`Answer`].
pub const ANSWER: usize = 1 + MOST_MOVED * MOVED;
/// How many connections one [`Answer::Moved`] can tell of.
pub const MOST_MOVED: usize = 128;

/// The longest path of a Unix socket, more than the kernel takes.
const PATH_MAX: usize = 256;
/// Length of a [`Moved`].
const MOVED: usize = 24;

const NAME: usize = 16;
/// How every name begins.
const PREFIX: &str = "relay-";

/// Random bytes that prove who shows them. They are not printed.
#[derive(Clone)]
pub struct Secret([u8; SECRET]);

impl Secret {
    /// A new one.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; SECRET];
        random.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Reads hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; SECRET];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The bytes, for whoever may see them.
    pub fn reveal(&self) -> &[u8; SECRET] {
        &self.0
    }

    /// The same as hexadecimal digits.
    pub fn reveal_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Whether these are the same bytes, in a time that does not depend on where they differ.
    pub fn is(&self, bytes: &[u8]) -> bool {
        if bytes.len() != SECRET {
            return false;
        }
        let differ = |sum, (a, b): (&u8, &u8)| black_box(sum | (a ^ b));
        self.0.iter().zip(bytes).fold(0, differ) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// What the agent answers: where it listens, and what has to be shown there. Its text is the body
/// of the answer.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// Name of the abstract socket.
    pub name: String,
    /// What the client has to show.
    pub token: Secret,
}

impl Invitation {
    /// A new one, which nobody can guess.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut name = [0; NAME];
        random.fill_bytes(&mut name);
        Self {
            name: format!("{PREFIX}{}", hex::encode(name)),
            token: Secret::generate(random),
        }
    }

    /// Writes the body.
    pub fn to_text(&self) -> String {
        format!("{} {}\n", self.name, self.token.reveal_hex())
    }

    /// Reads the body.
    pub fn from_text(text: &str) -> Option<Self> {
        let (name, token) = text.trim_end().split_once(' ')?;
        let digits = name.strip_prefix(PREFIX)?;
        let is_name = digits.len() == 2 * NAME && digits.bytes().all(|b| b.is_ascii_hexdigit());
        is_name.then_some(())?;
        Some(Self {
            name: name.to_owned(),
            token: Secret::from_hex(token)?,
        })
    }
}

/// A connection that the client hands over; its socket comes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back with the answers.
    pub id: u64,
    /// Where it leads.
    pub to: To,
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A TCP port of the workspace's loopback.
    Port(u16),
    /// A Unix socket of the workspace.
    Socket(String),
    /// A connection that a listener in the workspace accepted, by the number that the agent gave it.
    Accepted(u64),
}

impl Request {
    /// Writes it; nothing when the path is too long.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = self.id.to_be_bytes().to_vec();
        match &self.to {
            To::Port(port) => {
                bytes.push(0);
                bytes.extend(port.to_be_bytes());
            }
            To::Socket(path) => {
                bytes.push(1);
                bytes.extend(path.as_bytes());
            }
            To::Accepted(number) => {
                bytes.push(2);
                bytes.extend(number.to_be_bytes());
            }
        }
        (bytes.len() <= REQUEST).then_some(bytes)
    }

    /// Reads it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, bytes) = bytes.split_first_chunk()?;
        let (kind, rest) = bytes.split_first()?;
        let to = match kind {
            0 => To::Port(u16::from_be_bytes(rest.try_into().ok()?)),
            1 if rest.len() <= PATH_MAX => To::Socket(String::from_utf8(rest.to_vec()).ok()?),
            2 => To::Accepted(u64::from_be_bytes(rest.try_into().ok()?)),
            _ => return None,
        };
        Some(Self {
            id: u64::from_be_bytes(*id),
            to,
        })
    }
}

/// What became of a connection that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An app answers, and the agent carries the connection.
    Carried,
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    TimedOut,
    /// The agent takes no more of this client's connections.
    TooMany,
    /// It is reached through the tunnel alone.
    ThroughTunnel,
}

impl Outcome {
    const ALL: [Self; 5] = [
        Self::Carried,
        Self::Refused,
        Self::TimedOut,
        Self::TooMany,
        Self::ThroughTunnel,
    ];
}

/// What a connection has moved so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The request's.
    pub id: u64,
    /// Bytes that came from the socket that was handed over.
    pub taken: u64,
    /// Bytes that went to it.
    pub given: u64,
}

impl Moved {
    fn encode(self) -> impl Iterator<Item = u8> {
        let words = [self.id, self.taken, self.given];
        words.into_iter().flat_map(u64::to_be_bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let &[id, taken, given] = words else {
            return None;
        };
        Some(Self {
            id: u64::from_be_bytes(id),
            taken: u64::from_be_bytes(taken),
            given: u64::from_be_bytes(given),
        })
    }
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a request: what became of it.
    Became(u64, Outcome),
    /// These connections, [`MOST_MOVED`] at most, have moved so much so far.
    Moved(Vec<Moved>),
    /// A connection that was carried has ended, and has moved so much in all.
    Ended(Moved),
}

impl Answer {
    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Became(id, outcome) => {
                let mut bytes = vec![0];
                bytes.extend(id.to_be_bytes());
                bytes.push(*outcome as u8);
                bytes
            }
            Self::Moved(list) => {
                let list = list.iter().flat_map(|moved| moved.encode());
                std::iter::once(1).chain(list).collect()
            }
            Self::Ended(moved) => std::iter::once(2).chain(moved.encode()).collect(),
        }
    }

    /// Reads it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (0, bytes) => {
                let (id, &[outcome]) = bytes.split_first_chunk()? else {
                    return None;
                };
                let outcome = Outcome::ALL.get(usize::from(outcome))?;
                Some(Self::Became(u64::from_be_bytes(*id), *outcome))
            }
            (1, list) if list.len() <= MOST_MOVED * MOVED => {
                let list = list.chunks(MOVED).map(Moved::decode);
                Some(Self::Moved(list.collect::<Option<_>>()?))
            }
            (2, bytes) => Some(Self::Ended(Moved::decode(bytes)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_invitation_survives_its_text_and_is_not_printed() {
        let invitation = Invitation::generate(&mut rand::rng());
        let read = Invitation::from_text(&invitation.to_text()).unwrap();
        assert_eq!(read.name, invitation.name);
        assert!(read.token.is(invitation.token.reveal()));
        let printed = format!("{invitation:?}");
        assert!(
            !printed.contains(&invitation.token.reveal_hex()),
            "{printed}"
        );
        let other = Invitation::generate(&mut rand::rng());
        assert!(!other.token.is(invitation.token.reveal()) && other.name != invitation.name);
    }

    #[test]
    fn a_secret_that_differs_in_one_bit_or_in_length_is_another() {
        let secret = Secret([7; SECRET]);
        assert!(secret.is(&[7; SECRET]));
        for place in 0..SECRET {
            let mut bytes = [7; SECRET];
            bytes[place] ^= 1;
            assert!(!secret.is(&bytes), "{place}");
        }
        assert!(!secret.is(&[7; SECRET - 1]) && !secret.is(&[]));
    }

    #[test]
    fn bytes_of_requests_and_answers() {
        let request = |to| Request { id: 258, to }.encode().unwrap();
        let head = [0, 0, 0, 0, 0, 0, 1, 2];
        assert_eq!(
            request(To::Port(8080)),
            [&head[..], &[0, 0x1f, 0x90]].concat()
        );
        let socket = To::Socket("/x".to_owned());
        assert_eq!(request(socket), [&head[..], &[1, b'/', b'x']].concat());
        assert_eq!(
            request(To::Accepted(258)),
            [&head[..], &[2], &head[..]].concat()
        );
        let answer = Answer::Became(258, Outcome::ThroughTunnel);
        assert_eq!(answer.encode(), [&[0], &head[..], &[4]].concat());
        let moved = Moved {
            id: 258,
            taken: 1,
            given: 2,
        };
        let told = [
            &head[..],
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 2],
        ]
        .concat();
        assert_eq!(Answer::Ended(moved).encode(), [&[2], &told[..]].concat());
        let twice = Answer::Moved(vec![moved; 2]);
        assert_eq!(twice.encode(), [&[1], &told[..], &told[..]].concat());
    }

    #[test]
    fn a_path_that_no_socket_has_is_not_written() {
        let to = To::Socket("x".repeat(PATH_MAX + 1));
        assert_eq!(Request { id: 0, to }.encode(), None);
    }

    fn moved() -> impl Strategy<Value = Moved> {
        let words: (_, _, _) = (any::<u64>(), any::<u64>(), any::<u64>());
        words.prop_map(|(id, taken, given)| Moved { id, taken, given })
    }

    fn answers() -> impl Strategy<Value = Answer> {
        let outcome = (0..5usize).prop_map(|at| Outcome::ALL[at]);
        prop_oneof![
            (any::<u64>(), outcome).prop_map(|(id, outcome)| Answer::Became(id, outcome)),
            proptest::collection::vec(moved(), 0..=MOST_MOVED).prop_map(Answer::Moved),
            moved().prop_map(Answer::Ended),
        ]
    }

    fn requests() -> impl Strategy<Value = Request> {
        let to = prop_oneof![
            any::<u16>().prop_map(To::Port),
            "/[ -~]{0,200}".prop_map(To::Socket),
            any::<u64>().prop_map(To::Accepted),
        ];
        (any::<u64>(), to).prop_map(|(id, to)| Request { id, to })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(request in requests(), answer in answers()) {
            let bytes = request.encode().unwrap();
            prop_assert_eq!(Request::decode(&bytes), Some(request));
            let bytes = answer.encode();
            prop_assert!(bytes.len() <= ANSWER);
            prop_assert_eq!(Answer::decode(&bytes), Some(answer));
        }
    }
}
