//! Calls over the control channel: WebSocket messages as one byte stream, yamux streams in it, one
//! dRPC call a stream (coder_wire §3, §4).
//!
//! [`Mux`] owns a session of either role; a task drives it, reads always and answers keepalives,
//! whatever the users of its streams do.

mod call;
mod driver;
mod socket;
mod stream;

pub use call::{Incoming, Receiver, Sender};
pub use driver::{End, Mux, Options};
pub use relay_wire::drpc::UNIMPLEMENTED;
pub use socket::{Received, Sent, Socket, websocket_config};
pub use stream::Stream;

/// Why a call or a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// The other side answered with an error; code 12 is a call that it does not know.
    #[error("the other side answered: {text} (code {code})")]
    Refused {
        /// dRPC's code.
        code: u64,
        /// What it said.
        text: String,
    },
    /// The call ended before its answer.
    #[error("the other side ended the call without an answer")]
    Ended,
    /// The session is gone.
    #[error("the control connection ended: {0}")]
    Session(String),
    /// Bytes that are no dRPC or not the expected message.
    #[error("the other side does not keep to the protocol: {0}")]
    Protocol(String),
}

#[cfg(test)]
mod tests;
