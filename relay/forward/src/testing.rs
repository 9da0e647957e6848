//! A way that leads to this machine's loopback, for tests.

use std::io;
use std::net::{Ipv4Addr, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use relay_tunnel::endpoint::EarlyData;
use relay_wire::forwards::AnyForward;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};

use crate::board::{Board, Entry, Key};
use crate::way::{Flow, Way};

/// A forward on a board of its own.
pub(crate) fn entry(text: &str) -> Arc<Entry> {
    let forward = AnyForward::parse(text).unwrap().remove(0);
    Board::default().put(Key::Any(forward))
}

/// Leads to 127.0.0.1.
#[derive(Clone, Default)]
pub(crate) struct Here {
    flows: Arc<AtomicUsize>,
    early: Option<EarlyData>,
}

impl Here {
    /// One that waits for first bytes like this.
    pub(crate) fn with_early(early: Option<EarlyData>) -> Self {
        Self {
            early,
            ..Self::default()
        }
    }

    /// How many flows were opened.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }
}

impl Way for Here {
    type Flow = UdpSocket;

    /// Sends half of the first bytes, as if no more had found room.
    async fn connect(&self, port: u16, first: &[u8]) -> io::Result<(TcpStream, usize)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let early = &first[..first.len() / 2];
        stream.write_all(early).await?;
        Ok((stream, early.len()))
    }

    fn early_data(&self) -> Option<EarlyData> {
        self.early
    }

    fn open_flow(&self, port: u16) -> io::Result<UdpSocket> {
        self.flows.fetch_add(1, Ordering::Relaxed);
        let socket = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }
}

impl Flow for UdpSocket {
    async fn send(&self, payload: Bytes) -> io::Result<()> {
        UdpSocket::send(self, &payload).await.map(drop)
    }

    async fn receive(&mut self, datagrams: &mut Vec<Bytes>, _limit: usize) -> usize {
        let mut buffer = vec![0; 65_535];
        let Ok(length) = self.recv(&mut buffer).await else {
            return 0;
        };
        buffer.truncate(length);
        datagrams.push(buffer.into());
        1
    }
}
