//! What a session needs of a WebSocket, so that client and server libraries both fit.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A piece of the byte stream.
    Binary(Bytes),
    /// A text message, which this protocol does not have.
    Text,
    /// Ping or pong; the library answers.
    Control,
    /// The other side closed.
    Close,
    /// The other side is gone without a word, and why that is known.
    Gone(String),
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A piece of the byte stream.
    Binary(Bytes),
    /// A WebSocket ping.
    Ping,
    /// Close with this code (RFC 6455 §7.4) and reason.
    Close(u16, &'static str),
}

/// A WebSocket. Errors are texts: a session can only end on them.
pub trait Socket: Unpin + Send + 'static {
    /// The next message; `None` at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Received, String>>>;
    /// Whether [`Socket::start_send`] may be called.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>>;
    /// Queues a message.
    ///
    /// # Errors
    /// When the socket is broken.
    fn start_send(&mut self, message: Sent) -> Result<(), String>;
    /// Sends what is queued.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>>;
}

/// Limits and buffer sizes of a control WebSocket: messages of any size that a packet can have, and
/// no memory held by an idle one.
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(8 << 20)
        .max_message_size(Some(16 << 20))
        .max_frame_size(Some(16 << 20))
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Socket for WebSocketStream<S> {
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Received, String>>> {
        Pin::new(self).poll_next(cx).map(|next| {
            next.map(|message| match message {
                Ok(Message::Binary(bytes)) => Ok(Received::Binary(bytes)),
                Ok(Message::Text(_)) => Ok(Received::Text),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    Ok(Received::Control)
                }
                Ok(Message::Close(_)) => Ok(Received::Close),
                Err(error) if is_end(&error) => Ok(Received::Gone(error.to_string())),
                Err(error) => Err(error.to_string()),
            })
        })
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        Sink::poll_ready(Pin::new(self), cx).map_err(|error| error.to_string())
    }

    fn start_send(&mut self, message: Sent) -> Result<(), String> {
        let message = match message {
            Sent::Binary(bytes) => Message::Binary(bytes),
            Sent::Ping => Message::Ping(Bytes::new()),
            Sent::Close(code, reason) => {
                let code = CloseCode::from(code);
                Message::Close(Some(CloseFrame {
                    code,
                    reason: reason.into(),
                }))
            }
        };
        Sink::start_send(Pin::new(self), message).map_err(|error| error.to_string())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        Sink::poll_flush(Pin::new(self), cx).map_err(|error| error.to_string())
    }
}

/// Whether an error says that the other end of the connection was closed.
fn is_end(error: &Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => true,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => true,
        Error::Io(error) => matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        ),
        _ => false,
    }
}
