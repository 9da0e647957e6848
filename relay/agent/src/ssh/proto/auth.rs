//! The authentication protocol (RFC 4252): the tunnel has done it, so whoever asks is let in, by
//! whatever method. A key or password that is offered is not looked at and not kept.

use super::codec::{Put, Reader};
use super::number;
use super::transport::Transport;
use crate::Error;

const UNEXPECTED: Error = Error::Ssh("a message came that has no place before a login");

/// Answers a message that comes before the login is done; says whether it is done.
pub(in crate::ssh) fn answer(transport: &mut Transport, payload: &[u8]) -> Result<bool, Error> {
    let mut reader = Reader::new(payload);
    match reader.byte()? {
        number::SERVICE_REQUEST => {
            let service = reader.string()?;
            if service != b"ssh-userauth" {
                return Err(Error::Ssh("the client asks for a service that is not here"));
            }
            transport.send(|out| {
                out.put_byte(number::SERVICE_ACCEPT).put_string(service);
            });
            Ok(false)
        }
        number::USERAUTH_REQUEST => {
            let (_user, service, method) = (reader.string()?, reader.string()?, reader.string()?);
            if service != b"ssh-connection" {
                return Err(Error::Ssh("the client asks for a service that is not here"));
            }
            // A client may ask first whether a key would do.
            if method == b"publickey" && !reader.bool()? {
                let (algorithm, key) = (reader.string()?, reader.string()?);
                transport.send(|out| {
                    out.put_byte(number::USERAUTH_PK_OK);
                    out.put_string(algorithm).put_string(key);
                });
                return Ok(false);
            }
            transport.send(|out| {
                out.put_byte(number::USERAUTH_SUCCESS);
            });
            Ok(true)
        }
        _ => Err(UNEXPECTED),
    }
}
