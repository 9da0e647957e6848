//! The listeners behind accept on demand: one a port, made when the first connection to that port
//! is let in, and closed when the port has been quiet for a while.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::kernel::{Shared, abort, lock};
use super::packet::Flow;
use super::rewrite::Rewriter;

/// A port without a new connection for so long loses its listener.
const IDLE: Duration = Duration::from_secs(120);
/// Listeners at a time; beyond it the quietest goes.
const MAX_LISTENERS: usize = 1024;
const BACKLOG: i32 = 8192;
/// How long to leave a listener alone that cannot be accepted from.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<HashMap<u16, Entry>>);

#[derive(Debug)]
struct Entry {
    task: JoinHandle<()>,
    used: Instant,
}

impl Entry {
    fn serve(shared: &Arc<Shared>, listener: TcpListener, port: u16) -> Self {
        Self {
            task: shared
                .runtime()
                .spawn(serve(listener, port, Arc::downgrade(shared))),
            used: Instant::now(),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listeners {
    pub(super) fn has(&self, port: u16) -> bool {
        lock(&self.0).contains_key(&port)
    }

    /// Makes sure that the kernel takes the connection when its SYN is written to the device.
    pub(super) fn ensure(&self, shared: &Arc<Shared>, flow: Flow) -> io::Result<()> {
        match &shared.rewriter {
            Some(rewriter) => self.ensure_all(shared, rewriter, flow),
            None => self.ensure_port(shared, flow.destination_port),
        }
    }

    /// One listener an address, whose port is rewritten.
    fn ensure_all(
        &self,
        shared: &Arc<Shared>,
        rewriter: &Mutex<Rewriter>,
        flow: Flow,
    ) -> io::Result<()> {
        let mut listeners = lock(&self.0);
        if listeners.is_empty() {
            for address in &shared.addresses {
                let (listener, port) = listen(shared, *address, 0)?;
                lock(rewriter).listen(*address, port);
                listeners.insert(port, Entry::serve(shared, listener, port));
            }
        }
        lock(rewriter).add(flow);
        Ok(())
    }

    fn ensure_port(&self, shared: &Arc<Shared>, port: u16) -> io::Result<()> {
        let mut listeners = lock(&self.0);
        if let Some(entry) = listeners.get_mut(&port) {
            entry.used = Instant::now();
            return Ok(());
        }
        if listeners.len() >= MAX_LISTENERS {
            let accepts = lock(&shared.accepts);
            let quietest = listeners
                .iter()
                .filter(|(port, _)| !accepts.needs(**port))
                .min_by_key(|(_, entry)| entry.used)
                .map(|(port, _)| *port);
            if let Some(quietest) = quietest {
                listeners.remove(&quietest);
            }
        }
        let (listener, port) = listen(shared, Ipv6Addr::UNSPECIFIED, port)?;
        listeners.insert(port, Entry::serve(shared, listener, port));
        Ok(())
    }

    /// Closes the listener of a port nobody wants; returns whether it is gone.
    fn close_idle(&self, shared: &Shared, port: u16) -> bool {
        if shared.rewriter.is_some() {
            return false;
        }
        let mut listeners = lock(&self.0);
        let idle = listeners
            .get(&port)
            .is_none_or(|entry| entry.used.elapsed() >= IDLE);
        let close = idle && !lock(&shared.accepts).needs(port);
        if close {
            listeners.remove(&port);
        }
        close
    }
}

fn listen(shared: &Shared, address: Ipv6Addr, port: u16) -> io::Result<(TcpListener, u16)> {
    let socket = shared.listening_socket()?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((address, port)).into())?;
    socket.listen(BACKLOG)?;
    let _watched_there = shared.runtime().enter();
    let listener = TcpListener::from_std(socket.into())?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

async fn serve(listener: TcpListener, port: u16, shared: Weak<Shared>) {
    let mut complained = false;
    loop {
        let outcome = tokio::time::timeout(IDLE, listener.accept()).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match outcome {
            Ok(Ok((stream, peer))) => {
                complained = false;
                match flow_of(&shared, &stream, peer) {
                    Some(flow) => shared.accepted(flow, stream),
                    // Not through the tunnel.
                    None => abort(stream),
                }
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Ok(Err(error)) => {
                if !complained {
                    tracing::warn!("connections through the tunnel have to wait: {error}");
                    complained = true;
                }
                drop(shared);
                tokio::time::sleep(PAUSE).await;
            }
            Err(_) => {
                if shared.listeners().close_idle(&shared, port) {
                    return;
                }
            }
        }
    }
}

fn flow_of(shared: &Shared, stream: &TcpStream, peer: SocketAddr) -> Option<Flow> {
    let (SocketAddr::V6(peer), Ok(SocketAddr::V6(local))) = (peer, stream.local_addr()) else {
        return None;
    };
    if let Some(rewriter) = &shared.rewriter {
        return lock(rewriter).original((*peer.ip(), peer.port(), *local.ip()));
    }
    Some(Flow {
        source: *peer.ip(),
        source_port: peer.port(),
        destination: *local.ip(),
        destination_port: local.port(),
    })
}
