//! dRPC calls on streams, of both sides.

use bytes::{Bytes, BytesMut};
use prost::Message;
use relay_wire::drpc::{Decoder, Encoder, Kind, error_body, parse_error_body};

use super::driver::Mux;
use super::stream::{Output, Stream};
use super::{RpcError, stream::Input};

impl Mux {
    /// One question, one answer.
    ///
    /// # Errors
    /// What the other side answered, or that the session ended.
    pub async fn unary<Answer: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
    ) -> Result<Answer, RpcError> {
        let mut receiver = self.server_stream(path, request).await?;
        let answer = receiver.message().await?.ok_or(RpcError::Ended)?;
        if let Some(sender) = &mut receiver.sender {
            // The call is over for both sides; a stream that is just dropped would be reset.
            sender.put(Kind::Close, &[]).await?;
            sender.output.close();
        }
        Ok(answer)
    }

    /// One question, answers for as long as the call lives.
    ///
    /// # Errors
    /// That the session ended.
    pub async fn server_stream(
        &self,
        path: &str,
        request: &impl Message,
    ) -> Result<Receiver, RpcError> {
        let (mut sender, receiver) = split(self.open().await?);
        let mut bytes = BytesMut::new();
        sender
            .encoder
            .put(Kind::Invoke, path.as_bytes(), &mut bytes);
        sender
            .encoder
            .put(Kind::Message, &request.encode_to_vec(), &mut bytes);
        sender.encoder.put(Kind::CloseSend, &[], &mut bytes);
        sender.output.write(bytes.freeze()).await?;
        Ok(Receiver {
            sender: Some(sender),
            ..receiver
        })
    }

    /// Messages both ways. The call reaches the other side with the first one.
    ///
    /// # Errors
    /// That the session ended.
    pub async fn bidirectional(&self, path: &str) -> Result<(Sender, Receiver), RpcError> {
        let (mut sender, receiver) = split(self.open().await?);
        sender
            .encoder
            .put(Kind::Invoke, path.as_bytes(), &mut sender.held);
        Ok((sender, receiver))
    }
}

fn split(stream: Stream) -> (Sender, Receiver) {
    let Stream { output, input } = stream;
    let receiver = Receiver {
        input,
        id: output.id,
        commands: output.commands.clone(),
        decoder: Decoder::new(),
        ended: false,
        sender: None,
    };
    (
        Sender {
            output,
            encoder: Encoder::new(),
            held: BytesMut::new(),
        },
        receiver,
    )
}

/// The sending half of a call. Dropping it ends the call.
#[derive(Debug)]
pub struct Sender {
    output: Output,
    encoder: Encoder,
    /// An invocation that waits for the first message.
    held: BytesMut,
}

impl Sender {
    /// Sends a message; waits while much is queued.
    ///
    /// # Errors
    /// That the session or the stream ended.
    pub async fn send(&mut self, message: &impl Message) -> Result<(), RpcError> {
        self.put(Kind::Message, &message.encode_to_vec()).await
    }

    /// Says that nothing more follows and ends the sending half.
    ///
    /// # Errors
    /// That the session or the stream ended.
    pub async fn finish(&mut self) -> Result<(), RpcError> {
        self.put(Kind::CloseSend, &[]).await?;
        self.output.close();
        Ok(())
    }

    /// Ends the call with an error.
    ///
    /// # Errors
    /// That the session or the stream ended.
    pub async fn error(&mut self, code: u64, text: &str) -> Result<(), RpcError> {
        self.put(Kind::Error, &error_body(code, text)).await?;
        self.output.close();
        Ok(())
    }

    async fn put(&mut self, kind: Kind, body: &[u8]) -> Result<(), RpcError> {
        let mut bytes = std::mem::take(&mut self.held);
        self.encoder.put(kind, body, &mut bytes);
        self.output.write(bytes.freeze()).await
    }
}

/// The receiving half of a call.
#[derive(Debug)]
pub struct Receiver {
    input: tokio::sync::mpsc::UnboundedReceiver<Input>,
    id: relay_wire::yamux::StreamId,
    commands: tokio::sync::mpsc::UnboundedSender<super::driver::Command>,
    decoder: Decoder,
    ended: bool,
    /// Keeps a call without further messages open.
    sender: Option<Sender>,
}

impl Receiver {
    /// The next message; `None` when the other side is done. Cancel safe.
    ///
    /// # Errors
    /// What the other side answered, or that the session or the stream ended.
    pub async fn message<M: Message + Default>(&mut self) -> Result<Option<M>, RpcError> {
        match self.packet().await? {
            Some((Kind::Message, body)) => {
                let message = M::decode(body);
                message
                    .map(Some)
                    .map_err(|error| RpcError::Protocol(error.to_string()))
            }
            Some((kind, _)) => Err(RpcError::Protocol(format!(
                "{kind:?} where a message is due"
            ))),
            None => Ok(None),
        }
    }

    /// The next packet that is not about the end of the call.
    async fn packet(&mut self) -> Result<Option<(Kind, Bytes)>, RpcError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            let packet = self.decoder.next_packet();
            match packet.map_err(|error| RpcError::Protocol(error.to_string()))? {
                Some(packet) => match packet.kind {
                    Kind::CloseSend | Kind::Close | Kind::Cancel => self.ended = true,
                    Kind::Error => {
                        self.ended = true;
                        return Err(refused(&packet.body));
                    }
                    kind => return Ok(Some((kind, packet.body))),
                },
                None => self.read().await?,
            }
        }
    }

    async fn read(&mut self) -> Result<(), RpcError> {
        match self.input.recv().await {
            Some(Input::Data(bytes)) => {
                let consumed = super::driver::Command::Consumed(self.id, bytes.len());
                let _ = self.commands.send(consumed);
                self.decoder.push(&bytes);
                Ok(())
            }
            Some(Input::Fin) => {
                self.ended = true;
                Ok(())
            }
            Some(Input::Reset) => Err(RpcError::Ended),
            None => Err(RpcError::Session("it was closed".to_owned())),
        }
    }
}

fn refused(body: &[u8]) -> RpcError {
    match parse_error_body(body) {
        Ok((code, text)) => RpcError::Refused { code, text },
        Err(error) => RpcError::Protocol(error.to_string()),
    }
}

/// A call that the other side made.
#[derive(Debug)]
pub struct Incoming {
    /// What it calls, such as `/coder.tailnet.v2.Tailnet/Coordinate`.
    pub path: String,
    /// Messages of the caller.
    pub receiver: Receiver,
    /// Answers.
    pub sender: Sender,
}

impl Incoming {
    /// Reads the invocation of a stream that the other side opened.
    ///
    /// # Errors
    /// When the stream ends first or does not start with an invocation.
    pub async fn read(stream: Stream) -> Result<Self, RpcError> {
        let (sender, mut receiver) = split(stream);
        loop {
            match receiver.packet().await? {
                Some((Kind::Invoke, path)) => {
                    let path = String::from_utf8_lossy(&path).into_owned();
                    return Ok(Self {
                        path,
                        receiver,
                        sender,
                    });
                }
                // Pairs of keys and values about the call; nobody needs them.
                Some((Kind::Metadata, _)) => {}
                Some((kind, _)) => {
                    return Err(RpcError::Protocol(format!("{kind:?} before an invocation")));
                }
                None => return Err(RpcError::Ended),
            }
        }
    }

    /// The question of a unary or server-streaming call.
    ///
    /// # Errors
    /// When there is none.
    pub async fn request<M: Message + Default>(&mut self) -> Result<M, RpcError> {
        self.receiver.message().await?.ok_or(RpcError::Ended)
    }

    /// Answers a unary call and ends it.
    ///
    /// # Errors
    /// That the session or the stream ended.
    pub async fn reply(mut self, answer: &impl Message) -> Result<(), RpcError> {
        self.sender.send(answer).await?;
        self.sender.finish().await
    }

    /// Refuses the call.
    ///
    /// # Errors
    /// That the session or the stream ended.
    pub async fn refuse(mut self, code: u64, text: &str) -> Result<(), RpcError> {
        self.sender.error(code, text).await
    }
}
