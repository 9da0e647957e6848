//! What the server asks of this side: to take connections that lead back, and to reach the SSH
//! agent. A request whose reply is dropped is refused.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use relay_wire::remote_forward::RemoteForward;
use russh::client::{ChannelOpenHandle, Handler as Russh, Msg, Session};
use russh::{Channel, ChannelOpenFailure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::event::{Event, Reporter};
use crate::way::reason;

/// How long a dial on this machine's side may take.
const DIAL: Duration = Duration::from_secs(10);

/// This side of a session.
pub(super) struct Handler {
    pub(super) forwards: Arc<[RemoteForward]>,
    pub(super) agent: Option<PathBuf>,
    pub(super) report: Reporter,
}

impl Russh for Handler {
    type Error = russh::Error;

    /// The tunnel has shown already who the server is: it ends at the agent whose key the control
    /// plane gave.
    async fn check_server_key(
        &mut self,
        _: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        connected_port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let wanted = |forward: &&RemoteForward| matches!(forward, RemoteForward::Tcp { remote, .. } if u32::from(*remote) == connected_port);
        let forward = self.forwards.iter().find(wanted).cloned();
        self.lead(channel, forward, reply).await;
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let wanted = |forward: &&RemoteForward| matches!(forward, RemoteForward::Unix { remote, .. } if remote == socket_path);
        let forward = self.forwards.iter().find(wanted).cloned();
        self.lead(channel, forward, reply).await;
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(path) = self.agent.clone() else {
            return Ok(());
        };
        tokio::spawn(async move {
            match UnixStream::connect(&path).await {
                Ok(socket) => {
                    reply.accept().await;
                    join(channel, socket).await;
                }
                Err(error) => {
                    tracing::warn!(socket = %path.display(), reason = reason(&error), "no SSH agent answers");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
        Ok(())
    }

    // Whatever else a server could ask a client for.
    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
}

impl Handler {
    /// Dials where a forward leads and carries the connection; a failed dial is the other side's
    /// refusal.
    async fn lead(
        &self,
        channel: Channel<Msg>,
        forward: Option<RemoteForward>,
        reply: ChannelOpenHandle,
    ) {
        let Some(forward) = forward else {
            return;
        };
        let report = self.report.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(DIAL, dial(&forward)).await {
                Ok(Ok(Local::Tcp(stream))) => {
                    reply.accept().await;
                    join(channel, stream).await;
                }
                Ok(Ok(Local::Unix(stream))) => {
                    reply.accept().await;
                    join(channel, stream).await;
                }
                failed => {
                    let reason = match failed {
                        Ok(Err(error)) => reason(&error),
                        _ => "no answer".to_owned(),
                    };
                    report.tell(Event::LocalDialFailed { forward, reason });
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
    }
}

enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn dial(forward: &RemoteForward) -> io::Result<Local> {
    match (forward, forward.local_host()) {
        (RemoteForward::Unix { local, .. }, _) => {
            Ok(Local::Unix(UnixStream::connect(local).await?))
        }
        (_, Some(address)) => {
            let stream = TcpStream::connect(address).await?;
            let _ = stream.set_nodelay(true);
            Ok(Local::Tcp(stream))
        }
        (_, None) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Carries both directions to their ends; the end of one is passed on as that.
async fn join(channel: Channel<Msg>, mut local: impl AsyncRead + AsyncWrite + Unpin) {
    let mut channel = channel.into_stream();
    if let Err(error) = tokio::io::copy_bidirectional(&mut channel, &mut local).await {
        tracing::debug!(%error, "a connection that leads back broke");
    }
}
