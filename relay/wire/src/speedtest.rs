//! The opening of a speed test: one JSON line from the client, one from the server. What follows are blocks of bytes
//! that mean nothing, from whoever sends, until its time is over and it closes. Source: coder_wire.md §10.3.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The port of an agent's tunnel address on which it is served.
pub const PORT: u16 = 3;
/// The only version there is.
pub const VERSION: i64 = 2;
/// Bytes of a block; what is left of one at the end is counted by nobody.
pub const BLOCK: usize = 2 << 20;
/// The longest line that is read.
pub const MAX_LINE: usize = 4096;

/// Which way the bytes go, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the client.
    Down,
    /// From the client.
    Up,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How long bytes are sent.
    pub time: Duration,
    /// Which way.
    pub direction: Direction,
}

#[derive(Serialize, Deserialize)]
struct RequestLine {
    #[serde(default)]
    version: i64,
    /// Nanoseconds.
    #[serde(default)]
    time: i64,
    #[serde(default)]
    direction: i64,
}

#[derive(Serialize, Deserialize)]
struct AnswerLine {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    error: String,
}

impl Request {
    /// The client's line, with its end.
    pub fn line(&self) -> Vec<u8> {
        line(&RequestLine {
            version: VERSION,
            time: i64::try_from(self.time.as_nanos()).unwrap_or(i64::MAX),
            direction: match self.direction {
                Direction::Down => 0,
                Direction::Up => 1,
            },
        })
    }

    /// Reads the client's line. Its error is what the client is told.
    pub fn parse(text: &[u8]) -> Result<Request> {
        let read: RequestLine = read(text, "a speed test's request")?;
        if read.version != VERSION {
            return Err(Error::Not("a speed test of version 2"));
        }
        let time = u64::try_from(read.time).map_err(|_| Error::Not("a time of a speed test"))?;
        let direction = match read.direction {
            0 => Direction::Down,
            1 => Direction::Up,
            _ => return Err(Error::Not("a direction of a speed test")),
        };
        Ok(Request {
            time: Duration::from_nanos(time),
            direction,
        })
    }
}

/// The server's line, with its end: agreed, or what is wrong.
pub fn answer_line(refusal: Option<&str>) -> Vec<u8> {
    line(&AnswerLine {
        error: refusal.unwrap_or_default().to_owned(),
    })
}

/// Reads the server's line: agreed, or what the server finds wrong.
pub fn parse_answer(text: &[u8]) -> Result<std::result::Result<(), String>> {
    let read: AnswerLine = read(text, "a speed test's answer")?;
    Ok(match read.error.is_empty() {
        true => Ok(()),
        false => Err(read.error),
    })
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Structs of numbers and text always serialise.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

fn read<'a, T: Deserialize<'a>>(text: &'a [u8], what: &'static str) -> Result<T> {
    if text.len() > MAX_LINE {
        return Err(Error::Long {
            what,
            limit: MAX_LINE,
            have: text.len(),
        });
    }
    serde_json::from_slice(text).map_err(|error| Error::Json {
        what,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_coder() {
        let request = Request {
            time: Duration::from_secs(5),
            direction: Direction::Down,
        };
        let line = br#"{"version":2,"time":5000000000,"direction":0}"#;
        assert_eq!(request.line(), [&line[..], b"\n"].concat());
        assert_eq!(Request::parse(line), Ok(request));
        assert_eq!(answer_line(None), b"{}\n");
        assert_eq!(answer_line(Some("no")), b"{\"error\":\"no\"}\n");
        assert_eq!(parse_answer(b"{}\n"), Ok(Ok(())));
        assert_eq!(
            parse_answer(b"{\"error\":\"no\"}"),
            Ok(Err("no".to_owned()))
        );
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            &b""[..],
            b"{}",
            b"GET / HTTP/1.1",
            br#"{"version":1,"time":1,"direction":0}"#,
            br#"{"version":2,"time":-1,"direction":0}"#,
            br#"{"version":2,"time":1,"direction":2}"#,
            &[b' '; MAX_LINE + 1],
        ] {
            assert!(Request::parse(text).is_err(), "{text:?}");
        }
    }
}
