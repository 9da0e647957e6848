//! The data types of RFC 4251 §5.

use crate::Error;

/// Reads fields one behind the other.
pub(in crate::ssh) struct Reader<'a>(&'a [u8]);

const SHORT: Error = Error::Ssh("a message ends within a field");

impl<'a> Reader<'a> {
    pub(in crate::ssh) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(in crate::ssh) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(in crate::ssh) fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub(in crate::ssh) fn bool(&mut self) -> Result<bool, Error> {
        Ok(self.byte()? != 0)
    }

    pub(in crate::ssh) fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?.try_into().map_err(|_| SHORT)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(in crate::ssh) fn u64(&mut self) -> Result<u64, Error> {
        let bytes = self.take(8)?.try_into().map_err(|_| SHORT)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// A string, which may be any bytes.
    pub(in crate::ssh) fn string(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| SHORT)?)
    }

    /// A string that must be UTF-8.
    pub(in crate::ssh) fn text(&mut self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.string()?).map_err(|_| Error::Ssh("a text is not UTF-8"))
    }

    /// All that follows.
    pub(in crate::ssh) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Writes fields at the end of a buffer.
pub(in crate::ssh) trait Put {
    fn put(&mut self, bytes: &[u8]) -> &mut Self;
    fn put_byte(&mut self, byte: u8) -> &mut Self;

    fn put_bool(&mut self, value: bool) -> &mut Self {
        self.put_byte(u8::from(value))
    }

    fn put_u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    fn put_u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    fn put_string(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.put_u32(u32_of(bytes.len())).put(bytes)
    }

    /// A number that is not negative, given as big-endian bytes of any length.
    fn put_mpint(&mut self, number: &[u8]) -> &mut Self {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        let digits = &number[zeros..];
        let sign = digits.first().is_some_and(|first| first & 0x80 != 0);
        self.put_u32(u32_of(digits.len() + usize::from(sign)));
        if sign {
            self.put_byte(0);
        }
        self.put(digits)
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.extend_from_slice(bytes);
        self
    }

    fn put_byte(&mut self, byte: u8) -> &mut Self {
        self.push(byte);
        self
    }
}

/// A length as it stands in a message; none is as long as 4 GiB.
pub(in crate::ssh) fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 4251 §5.
    #[test]
    fn multiple_precision_integers_are_as_short_as_they_can_be() {
        let cases: [(&[u8], &[u8]); 4] = [
            (&[], &[0, 0, 0, 0]),
            (&[0, 0], &[0, 0, 0, 0]),
            (
                &[0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
                &[0, 0, 0, 8, 0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
            ),
            (&[0, 0x80], &[0, 0, 0, 2, 0, 0x80]),
        ];
        for (number, expected) in cases {
            let mut out = Vec::new();
            out.put_mpint(number);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_beyond_the_end() {
        let mut out = Vec::new();
        out.put_byte(7).put_bool(true).put_u32(8).put_u64(9);
        out.put_string("ten");
        let mut reader = Reader::new(&out);
        assert_eq!(reader.byte().unwrap(), 7);
        assert!(reader.bool().unwrap());
        assert_eq!(reader.u32().unwrap(), 8);
        assert_eq!(reader.u64().unwrap(), 9);
        assert_eq!(reader.text().unwrap(), "ten");
        assert!(reader.byte().is_err());
        assert!(Reader::new(&[0, 0, 0, 2, b'a']).string().is_err());
        assert!(Reader::new(&[0xff, 0xff, 0xff, 0xff]).string().is_err());
        assert!(Reader::new(&[0, 0, 0, 1, 0xff]).text().is_err());
    }
}
