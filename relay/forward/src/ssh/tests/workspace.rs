//! A workspace's SSH server, as a play.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Handle, Msg, Server as _, Session};
use russh::{Channel, ChannelId, Pty, Sig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The server. A command is `WORD ARGUMENT`.
#[derive(Clone, Default)]
pub(super) struct Workspace {
    /// What it was asked to do.
    pub(super) asked: Arc<Mutex<Vec<String>>>,
}

impl Workspace {
    pub(super) fn note(&self, text: String) {
        self.asked.lock().unwrap().push(text);
    }

    pub(super) fn noted(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl server::Server for Workspace {
    type Handler = Self;

    fn new_client(&mut self, _: Option<std::net::SocketAddr>) -> Self {
        self.clone()
    }
}

impl server::Handler for Workspace {
    type Error = russh::Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.note(format!("{name}={value}"));
        match name {
            "REFUSED" => session.channel_failure(channel),
            _ => session.channel_success(channel),
        }
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.note(format!("{term} {columns}x{rows} {modes:?}"));
        session.channel_success(channel)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.note(format!("{columns}x{rows}"));
        end(session, channel, 0)
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        session.channel_success(channel)?;
        Ok(true)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        let (word, argument) = command.split_once(' ').unwrap_or((&command, ""));
        if word == "refuse" {
            return session.channel_failure(channel);
        }
        session.channel_success(channel)?;
        match word {
            "exit" => {
                session.data(channel, &b"out"[..])?;
                session.extended_data(channel, 1, &b"err"[..])?;
                end(session, channel, argument.parse().unwrap())?;
            }
            "die" => {
                session.exit_signal_request(channel, Sig::TERM, false, "", "")?;
                session.close(channel)?;
            }
            "vanish" => session.close(channel)?,
            "break" => return Err(russh::Error::Disconnect),
            "agent" => {
                let handle = session.handle();
                tokio::spawn(async move {
                    let agent = handle.channel_open_agent().await;
                    say(handle, channel, agent).await;
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Everything but the end is sent back.
    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.data(channel, Bytes::copy_from_slice(data))
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        end(session, channel, 0)
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.note(format!("{signal:?}"));
        end(session, channel, 42)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.note(format!("{address}:{port}"));
        let (handle, port, address) = (session.handle(), *port, address.to_owned());
        if port == 1 {
            return Ok(false);
        }
        let noted = self.clone();
        tokio::spawn(async move {
            let opened = handle
                .channel_open_forwarded_tcpip(address, port, "127.0.0.1", 9)
                .await;
            noted.note(talk(opened).await);
        });
        Ok(true)
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let (handle, path, noted) = (session.handle(), path.to_owned(), self.clone());
        tokio::spawn(async move {
            let opened = handle.channel_open_forwarded_streamlocal(path).await;
            noted.note(talk(opened).await);
        });
        Ok(true)
    }
}

fn end(session: &mut Session, channel: ChannelId, status: u32) -> Result<(), russh::Error> {
    session.exit_status_request(channel, status)?;
    session.eof(channel)?;
    session.close(channel)
}

/// Sends a question and its end through a channel, and gives what comes back until the end.
async fn talk(opened: Result<Channel<Msg>, russh::Error>) -> String {
    let Ok(channel) = opened else {
        return "refused".to_owned();
    };
    let mut stream = channel.into_stream();
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Prints in the session what [`talk`] gives, and ends it.
async fn say(handle: Handle, channel: ChannelId, opened: Result<Channel<Msg>, russh::Error>) {
    let answer = talk(opened).await;
    handle.data(channel, answer.into_bytes()).await.unwrap();
    handle.exit_status_request(channel, 0).await.unwrap();
    handle.close(channel).await.unwrap();
}

/// Starts the server and connects.
pub(super) async fn connected(workspace: &Workspace) -> TcpStream {
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let config = server::Config {
        keys: vec![key],
        auth_rejection_time: Duration::ZERO,
        ..server::Config::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut workspace = workspace.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let handler = workspace.new_client(None);
        let running = server::run_stream(Arc::new(config), stream, handler).await;
        if let Ok(running) = running {
            let _ = running.await;
        }
    });
    TcpStream::connect(address).await.unwrap()
}
