//! Opening of a relay connection: the HTTP upgrade's texts and the two sealed introductions.

use std::fmt::Write as _;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Frame, PROTOCOL_VERSION};
use crate::keys::{NONCE_LEN, NodePrivate, NodePublic, SharedBox};
use crate::{Error, Result};

/// Name of the response header with the relay's key as 64 hex digits.
pub const PUBLIC_KEY_HEADER: &str = "Derp-Public-Key";
/// Name of the response header with the protocol version.
pub const VERSION_HEADER: &str = "Derp-Version";
/// Name of the request header that asks the server to leave out the 101 answer.
pub const FAST_START_HEADER: &str = "Derp-Fast-Start";
/// Path of the relay on its host.
pub const PATH: &str = "/derp";
/// WebSocket subprotocol where a proxy refuses the upgrade.
pub const WEBSOCKET_PROTOCOL: &str = "derp";

/// What a client says about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Protocol version.
    #[serde(default)]
    pub version: u32,
    /// Whether it answers pings.
    #[serde(default, rename = "CanAckPings")]
    pub can_ack_pings: bool,
}

impl Default for ClientInfo {
    fn default() -> Self {
        Self {
            version: PROTOCOL_VERSION,
            can_ack_pings: true,
        }
    }
}

/// What a relay says to a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Protocol version.
    #[serde(default)]
    pub version: u32,
    /// Rate the client is held to; 0 is none.
    #[serde(
        default,
        rename = "TokenBucketBytesPerSecond",
        skip_serializing_if = "is_zero"
    )]
    pub bytes_per_second: u64,
    /// Burst the client may send above the rate.
    #[serde(
        default,
        rename = "TokenBucketBytesBurst",
        skip_serializing_if = "is_zero"
    )]
    pub burst: u64,
}

impl Default for ServerInfo {
    fn default() -> Self {
        Self {
            version: PROTOCOL_VERSION,
            bytes_per_second: 0,
            burst: 0,
        }
    }
}

/// The frame by which a client introduces itself. `nonce` must be random.
pub fn client_info(
    client: &NodePrivate,
    server: &NodePublic,
    info: &ClientInfo,
    nonce: [u8; NONCE_LEN],
) -> Frame {
    let sealed = seal_json(&client.shared(server), &nonce, info);
    Frame::ClientInfo {
        client: client.public(),
        nonce,
        sealed,
    }
}

/// Reads a [`Frame::ClientInfo`] with the relay's key: who it is and what it says.
pub fn open_client_info(frame: &Frame, server: &NodePrivate) -> Result<(NodePublic, ClientInfo)> {
    let Frame::ClientInfo {
        client,
        nonce,
        sealed,
    } = frame
    else {
        return Err(Error::Not("DERP client info"));
    };
    let info = open_json("DERP client info", &server.shared(client), nonce, sealed)?;
    Ok((*client, info))
}

/// The frame that ends the opening. `nonce` must be random.
pub fn server_info(
    server: &NodePrivate,
    client: &NodePublic,
    info: &ServerInfo,
    nonce: [u8; NONCE_LEN],
) -> Frame {
    Frame::ServerInfo {
        nonce,
        sealed: seal_json(&server.shared(client), &nonce, info),
    }
}

/// Reads a [`Frame::ServerInfo`] with the client's key.
pub fn open_server_info(
    frame: &Frame,
    client: &NodePrivate,
    server: &NodePublic,
) -> Result<ServerInfo> {
    let Frame::ServerInfo { nonce, sealed } = frame else {
        return Err(Error::Not("DERP server info"));
    };
    open_json("DERP server info", &client.shared(server), nonce, sealed)
}

/// Text of the HTTP request that asks for the upgrade. `headers` come behind `Host`.
pub fn upgrade_request(host: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        // Writing to a String cannot fail.
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n");
    text
}

/// Text of the HTTP answer that grants it.
pub fn upgrade_response(server: &NodePublic) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n{VERSION_HEADER}: {PROTOCOL_VERSION}\r\n\
         {PUBLIC_KEY_HEADER}: {}\r\n\r\n",
        server.to_hex()
    )
}

fn seal_json(shared: &SharedBox, nonce: &[u8; NONCE_LEN], value: &impl Serialize) -> Bytes {
    // Plain structs of numbers always serialise.
    let json = serde_json::to_vec(value).unwrap_or_default();
    shared.seal(nonce, &json).into()
}

fn open_json<T: for<'a> Deserialize<'a>>(
    what: &'static str,
    shared: &SharedBox,
    nonce: &[u8; NONCE_LEN],
    sealed: &[u8],
) -> Result<T> {
    let json = shared
        .open(nonce, sealed)
        .map_err(|_| Error::Sealed(what))?;
    serde_json::from_slice(&json).map_err(|error| Error::Json {
        what,
        reason: error.to_string(),
    })
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
