//! A stream of a session, as its user holds it.

use std::sync::Arc;

use bytes::Bytes;
use relay_wire::yamux::StreamId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::RpcError;
use super::driver::Command;

/// Bytes that a stream may have waiting to be sent.
pub(super) const QUEUE: usize = 256 << 10;

/// What the driver hands to a stream.
#[derive(Debug)]
pub(super) enum Input {
    Data(Bytes),
    Fin,
    Reset,
}

/// One stream. Dropping it ends it: with its close if the other side has ended as well, else with a
/// reset.
#[derive(Debug)]
pub struct Stream {
    pub(super) output: Output,
    pub(super) input: mpsc::UnboundedReceiver<Input>,
}

/// The sending half.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) id: StreamId,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) room: Arc<Semaphore>,
}

impl Output {
    /// Queues bytes, waiting for room when much is queued already.
    pub(super) async fn write(&self, bytes: Bytes) -> Result<(), RpcError> {
        // A piece larger than the whole queue waits until the queue is empty.
        let wanted = u32::try_from(bytes.len().min(QUEUE)).unwrap_or(u32::MAX);
        let permit = self.room.clone().acquire_many_owned(wanted).await;
        let permit = permit.map_err(|_| RpcError::Session("it was closed".to_owned()))?;
        self.send(bytes, Some(permit))
    }

    fn send(&self, bytes: Bytes, permit: Option<OwnedSemaphorePermit>) -> Result<(), RpcError> {
        let sent = self.commands.send(Command::Send(self.id, bytes, permit));
        sent.map_err(|_| RpcError::Session("it was closed".to_owned()))
    }

    /// Ends the sending half after what is queued.
    pub(super) fn close(&self) {
        self.command(Command::Close(self.id));
    }

    fn command(&self, command: Command) {
        // A session that is gone needs no commands.
        let _ = self.commands.send(command);
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.command(Command::Drop(self.id));
    }
}
