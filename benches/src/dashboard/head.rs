//! As much of an HTTP/1.1 head as the load needs.

use std::io;

/// Where a head ends, past its empty line; `None` while it is not all there.
pub(super) fn find_end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == b'\n')?;
        match bytes.get(at + 1..at + 3)? {
            b"\r\n" => return Some(at + 3),
            _ => from = at + 1,
        }
    }
}

/// The head of a request or of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    /// The status of an answer; 0 for a request.
    pub(super) status: u16,
    /// Bytes of the body.
    pub(super) length: u64,
    /// Where a redirect leads.
    pub(super) location: Option<&'a str>,
    /// The cookies that are set, each `name=value`.
    pub(super) cookies: Vec<&'a str>,
}

impl<'a> Head<'a> {
    /// Reads a head.
    ///
    /// # Errors
    /// When it is none, or its body has no length of its own.
    pub(super) fn parse(bytes: &'a [u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| bad("a head is no text"))?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = match first.strip_prefix("HTTP/1.1 ") {
            Some(rest) => {
                let digits = rest.get(..3).and_then(|digits| digits.parse().ok());
                digits.ok_or_else(|| bad("an answer has no status"))?
            }
            None => 0,
        };
        let mut head = Self {
            status,
            length: 0,
            location: None,
            cookies: Vec::new(),
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            // Most names differ in their length already.
            match name.len() {
                14 if name.eq_ignore_ascii_case("content-length") => {
                    head.length = value.parse().map_err(|_| bad("a length is no number"))?;
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    return Err(bad("a body has no length of its own"));
                }
                8 if name.eq_ignore_ascii_case("location") => head.location = Some(value),
                10 if name.eq_ignore_ascii_case("set-cookie") => {
                    let cookie = value.split(';').next();
                    head.cookies.extend(cookie);
                }
                _ => {}
            }
        }
        Ok(head)
    }
}

pub(super) fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_behind_its_empty_line_and_not_before() {
        let bytes = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody";
        assert_eq!(find_end(bytes), Some(bytes.len() - 4));
        for cut in 0..bytes.len() - 4 {
            assert_eq!(find_end(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn what_the_load_needs_is_found_whatever_the_case_of_names() {
        let text = "HTTP/1.1 303 See Other\r\nlocation: /x?y=1\r\nSET-COOKIE: a=b; Path=/\r\n\
                    Content-Length: 12\r\n\r\n";
        let head = Head::parse(text.as_bytes()).unwrap();
        let expected = Head {
            status: 303,
            length: 12,
            location: Some("/x?y=1"),
            cookies: vec!["a=b"],
        };
        assert_eq!(head, expected);
    }

    #[test]
    fn a_body_without_a_length_is_refused() {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(Head::parse(text.as_bytes()).is_err());
    }
}
