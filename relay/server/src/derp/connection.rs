//! The task of a relay connection: reads frames and hands their packets on, writes what others
//! queued. It holds no buffers while nothing moves.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use relay_wire::derp::{Decoder, Frame, GoneReason};
use relay_wire::disco;
use relay_wire::keys::NodePublic;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::client::Client;
use super::{Figures, Relay, shrink};

/// Bytes read at once.
const READ: usize = 64 << 10;
/// Reads before other tasks get their turn.
const TURN: usize = 2;
/// Time between two keepalives, plus up to a few seconds so that they spread.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// "Not here" answers in a row, and one more each second.
const GONE_BURST: u32 = 3;

thread_local! {
    /// One for each thread instead of one for each connection: a thousand idle ones need none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// A connection; as a future, it gives the reason of its end.
pub(super) struct Connection<S> {
    io: S,
    decoder: Decoder,
    client: Arc<Client>,
    relay: Arc<Relay>,
    /// Being written.
    out: BytesMut,
    unflushed: bool,
    /// Whether something was written since the last keepalive.
    progress: bool,
    timer: Pin<Box<Sleep>>,
    /// Whom the last packet went to.
    last: Option<Arc<Client>>,
    /// Who got packets in this turn and has not been woken.
    touched: Vec<Arc<Client>>,
    /// What came in this turn.
    turn: Figures,
    gone: Allowance,
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(io: S, decoder: Decoder, client: Arc<Client>, relay: Arc<Relay>) -> Self {
        Self {
            io,
            decoder,
            client,
            relay,
            out: BytesMut::new(),
            unflushed: false,
            progress: true,
            timer: Box::pin(tokio::time::sleep(next_keepalive())),
            last: None,
            touched: Vec::new(),
            turn: Figures::default(),
            gone: Allowance::new(),
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        self.client.register(cx.waker());
        // What came along with the introduction.
        if let Err(reason) = self.handle_frames() {
            return Poll::Ready(reason);
        }
        for _ in 0..TURN {
            if let Err(error) = self.write(cx) {
                return Poll::Ready(error.to_string());
            }
            let read = SCRATCH.with_borrow_mut(|scratch| self.poll_read(cx, scratch));
            match read {
                Poll::Pending => return self.poll_timer(cx),
                Poll::Ready(Err(reason)) => return Poll::Ready(reason),
                Poll::Ready(Ok(())) => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and hands on what came.
    fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<(), String>> {
        let mut buffer = ReadBuf::new(scratch);
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer));
        if let Err(error) = read {
            return Poll::Ready(Err(error.to_string()));
        }
        if buffer.filled().is_empty() {
            return Poll::Ready(Err("it closed the connection".to_owned()));
        }
        self.decoder.push(buffer.filled());
        Poll::Ready(self.handle_frames())
    }

    fn handle_frames(&mut self) -> Result<(), String> {
        let done = loop {
            match self.decoder.next() {
                Ok(Some(frame)) => {
                    if let Err(reason) = self.handle(frame) {
                        break Err(reason);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.to_string()),
            }
        };
        for client in self.touched.drain(..) {
            client.wake();
        }
        let turn = std::mem::take(&mut self.turn);
        if turn.packets > 0 {
            self.relay.count(&turn);
        }
        done
    }

    fn handle(&mut self, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::SendPacket {
                destination,
                packet,
            } => self.forward(destination, &packet),
            Frame::Ping(data) => self.client.control(&Frame::Pong(data)),
            Frame::NotePreferred(_) | Frame::Pong(_) | Frame::Unknown(_) => {}
            // Only relays among themselves use these.
            Frame::ForwardPacket { .. } | Frame::WatchConns | Frame::ClosePeer(_) => {
                return Err("it sent a frame for relays only".to_owned());
            }
            // The rest comes from relays, and says nothing here.
            _ => {}
        }
        Ok(())
    }

    fn forward(&mut self, destination: NodePublic, packet: &Bytes) {
        self.turn.packets += 1;
        self.turn.bytes += packet.len() as u64;
        let known = self
            .last
            .as_ref()
            .is_some_and(|last| last.key == destination && last.is_receiving());
        if !known {
            self.last = self.relay.find(&destination);
            match &self.last {
                Some(client) => client.add_source(self.client.key),
                None => {
                    self.turn.dropped += 1;
                    return self.not_here(destination, packet);
                }
            }
        }
        let Some(client) = &self.last else { return };
        let taken = client.packet(&self.client.key, packet);
        self.turn.dropped += u64::from(!taken);
        if !self.touched.iter().any(|other| Arc::ptr_eq(other, client)) {
            self.touched.push(Arc::clone(client));
        }
    }

    /// Says that a peer is not here: to whoever looks for paths only, and not often.
    fn not_here(&mut self, peer: NodePublic, packet: &[u8]) {
        if disco::is_disco(packet) && self.gone.take() {
            let reason = GoneReason::NotHere;
            self.client.control(&Frame::PeerGone { peer, reason });
        }
    }

    /// Writes what is queued, as far as the other side takes it.
    fn write(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        loop {
            if self.out.is_empty() && !self.client.take(&mut self.out) {
                break;
            }
            match Pin::new(&mut self.io).poll_write(cx, &self.out) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(length)) => {
                    self.out.advance(length);
                    self.unflushed = true;
                    self.progress = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        ready!(self.timer.as_mut().poll(cx));
        if !self.progress {
            return Poll::Ready("it does not read".to_owned());
        }
        self.progress = false;
        self.timer.as_mut().reset(Instant::now() + next_keepalive());
        self.client.control(&Frame::KeepAlive);
        self.client.shrink();
        shrink(&mut self.out);
        shrink(self.decoder.buffer_mut());
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S> Future for Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    type Output = String;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<String> {
        self.get_mut().poll_turn(cx)
    }
}

fn next_keepalive() -> Duration {
    KEEPALIVE + Duration::from_millis(u64::from(rand::random::<u16>() % 5000))
}

/// How often something may be said.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self {
            left: GONE_BURST,
            since: Instant::now(),
        }
    }

    fn take(&mut self) -> bool {
        let passed = self.since.elapsed().as_secs();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(GONE_BURST);
            self.left = self.left.saturating_add(more).min(GONE_BURST);
            self.since = Instant::now();
        }
        let allowed = self.left > 0;
        self.left -= u32::from(allowed);
        allowed
    }
}
