//! The task that owns a ring: it takes pumps in, turns the ring when there is news, and gives the
//! sockets back.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use slab::Slab;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::pair::{Buffers, Outcome, Pair, Tag};
use super::sys::{Completion, Ring};
use crate::pump::Moved;

/// Turns of the ring before other tasks of the thread get theirs.
const TURNS: usize = 16;

/// What a pump wants of a driver.
pub(super) enum Command {
    /// To be carried to its end.
    Start(Start),
    /// To be forgotten: of the same ticket.
    Stop(Arc<Ticket>),
}

pub(super) struct Start {
    /// In blocking mode.
    pub(super) ends: [OwnedFd; 2],
    pub(super) moved: Moved,
    pub(super) ticket: Arc<Ticket>,
    pub(super) done: oneshot::Sender<Result<Outcome, [OwnedFd; 2]>>,
}

/// Where a driver keeps a pump.
#[derive(Default)]
pub(super) struct Ticket(AtomicUsize);

struct Carried {
    pair: Pair,
    ticket: Arc<Ticket>,
    done: oneshot::Sender<Result<Outcome, [OwnedFd; 2]>>,
    /// Its end is being waited for.
    is_late: bool,
    /// There was news of it in this turn.
    is_touched: bool,
}

/// Ends when nobody has pumps for it any more, or when its ring fails.
pub(super) struct Driver {
    commands: UnboundedReceiver<Command>,
    taken: Vec<Command>,
    works: Option<Works>,
}

impl Driver {
    pub(super) fn new(commands: UnboundedReceiver<Command>) -> Self {
        Self {
            commands,
            taken: Vec::new(),
            works: None,
        }
    }

    /// Takes what pumps want. The ring is made for the first, on the thread that will turn it.
    fn take_commands(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let most = 64;
        if ready!(self.commands.poll_recv_many(context, &mut self.taken, most)) == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let works = match &mut self.works {
            Some(works) => works,
            none => match Works::new() {
                Ok(works) => none.insert(works),
                Err(error) => {
                    self.refuse();
                    return Poll::Ready(Err(error));
                }
            },
        };
        for command in self.taken.drain(..) {
            match command {
                Command::Start(start) => works.start(start),
                Command::Stop(ticket) => works.stop(&ticket),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Gives all sockets back, for there is no ring.
    fn refuse(&mut self) {
        self.commands.close();
        let queued = std::iter::from_fn(|| self.commands.try_recv().ok());
        for command in self.taken.drain(..).chain(queued) {
            if let Command::Start(start) = command {
                let _ = start.done.send(Err(start.ends));
            }
        }
    }

    fn step(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let commanded = self.take_commands(context)?.is_ready();
        let Some(works) = &mut self.works else {
            return if commanded {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        };
        let expired = works.expire(context).is_ready();
        if works.turn()? || commanded || expired {
            return Poll::Ready(Ok(()));
        }
        while let Poll::Ready(ready) = works.readiness.poll_read_ready(context) {
            ready?.clear_ready();
        }
        if works.ring.set_waiting(true) {
            works.ring.set_waiting(false);
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(works) = &mut self.works {
            works.ring.set_waiting(false);
        }
        for _ in 0..TURNS {
            match ready!(self.step(context)) {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "a ring ends");
                    return Poll::Ready(());
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Carries what has arrived on two sockets, on a ring of its own, then runs `check`.
pub(super) fn carry_once<R>(
    ends: [OwnedFd; 2],
    check: impl FnOnce() -> io::Result<R>,
) -> io::Result<R> {
    let mut ring = Ring::new()?;
    let mut buffers = Buffers::default();
    let mut pair = Pair::new(0, ends, Moved::default(), &mut ring);
    pair.advance(&mut buffers, &mut ring);
    let mut news = Vec::new();
    // What is there is received, then sent.
    for _ in 0..2 {
        ring.submit()?;
        ring.take_completions(&mut news);
        for one in news.drain(..) {
            one.result?;
            pair.take(one, &mut buffers, &mut ring);
        }
        pair.advance(&mut buffers, &mut ring);
    }
    check()
}

/// A ring and the pumps on it.
struct Works {
    readiness: AsyncFd<OwnedFd>,
    ring: Ring<Tag>,
    pairs: Slab<Carried>,
    buffers: Buffers,
    news: Vec<Completion<Tag>>,
    touched: Vec<usize>,
    /// Broken ones, by the time at which they are closed whatever is left.
    late: VecDeque<(Instant, Arc<Ticket>)>,
    timer: Pin<Box<Sleep>>,
}

impl Works {
    fn new() -> io::Result<Self> {
        let ring = Ring::new()?;
        Ok(Self {
            readiness: ring.readiness()?,
            ring,
            pairs: Slab::new(),
            buffers: Buffers::default(),
            news: Vec::new(),
            touched: Vec::new(),
            late: VecDeque::new(),
            timer: Box::pin(sleep_until(Instant::now())),
        })
    }

    fn start(&mut self, start: Start) {
        let entry = self.pairs.vacant_entry();
        let number = entry.key();
        start.ticket.0.store(number, Ordering::Relaxed);
        entry.insert(Carried {
            pair: Pair::new(number, start.ends, start.moved, &mut self.ring),
            ticket: start.ticket,
            done: start.done,
            is_late: false,
            is_touched: false,
        });
        self.touch(number);
        self.advance();
    }

    fn stop(&mut self, ticket: &Arc<Ticket>) {
        let number = ticket.0.load(Ordering::Relaxed);
        let carried = self.pairs.get_mut(number);
        if let Some(carried) = carried.filter(|carried| Arc::ptr_eq(&carried.ticket, ticket)) {
            carried.pair.close(&mut self.ring);
            self.touch(number);
            self.advance();
        }
    }

    fn touch(&mut self, number: usize) {
        if let Some(carried) = self.pairs.get_mut(number)
            && !std::mem::replace(&mut carried.is_touched, true)
        {
            self.touched.push(number);
        }
    }

    /// Lets the kernel work and takes its news. Returns whether there was any.
    fn turn(&mut self) -> io::Result<bool> {
        self.ring.submit()?;
        self.ring.take_completions(&mut self.news);
        if self.news.is_empty() {
            return Ok(false);
        }
        let mut news = std::mem::take(&mut self.news);
        for one in news.drain(..) {
            let number = one.user.pair;
            if let Some(carried) = self.pairs.get_mut(number) {
                carried.pair.take(one, &mut self.buffers, &mut self.ring);
            }
            self.touch(number);
        }
        self.news = news;
        self.advance();
        Ok(true)
    }

    /// Goes on with those of which there was news.
    fn advance(&mut self) {
        while let Some(number) = self.touched.pop() {
            let Some(carried) = self.pairs.get_mut(number) else {
                continue;
            };
            carried.is_touched = false;
            carried.pair.advance(&mut self.buffers, &mut self.ring);
            if carried.pair.is_done() {
                let Carried { pair, done, .. } = self.pairs.remove(number);
                let outcome = pair.into_outcome(&mut self.ring);
                // Nobody waits for it where the pump was dropped; the sockets close here then.
                let _ = done.send(Ok(outcome));
            } else if let Some(at) = carried.pair.closes_at()
                && !std::mem::replace(&mut carried.is_late, true)
            {
                self.late.push_back((at, Arc::clone(&carried.ticket)));
            }
        }
    }

    /// Closes those whose time is over.
    fn expire(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some((at, _)) = self.late.front() else {
            return Poll::Pending;
        };
        if self.timer.deadline() != *at {
            self.timer.as_mut().reset(*at);
        }
        ready!(self.timer.as_mut().poll(context));
        if let Some((_, ticket)) = self.late.pop_front() {
            self.stop(&ticket);
        }
        Poll::Ready(())
    }
}
