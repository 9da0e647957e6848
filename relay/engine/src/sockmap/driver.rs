//! The thread that looks after all connections of the engine. It sleeps unless a direction is short
//! of credit, has bytes that were passed, or comes to its end.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::direction::{Direction, TICK, Wire};
use super::flow::{Flow, Outcome};
use super::program::{FLOWS, Program};
use super::record::Records;
use super::sys;
use crate::pump::Moved;

/// Tags of what is not a socket.
const COMMANDS: u64 = u64::MAX;
const PROGRAM: u64 = u64::MAX - 1;
/// Enough for what a window holds, and for looking at it from the first byte on.
const BUFFER: usize = 4 << 20;
const BATCH: usize = 256;

/// What the thread is told.
enum Command {
    Start(Start),
    Stop(u64),
    /// All connections, and the thread.
    End,
}

struct Start {
    id: u64,
    ends: [OwnedFd; 2],
    /// How much was read of each before.
    read: [u64; 2],
    moved: Moved,
    done: oneshot::Sender<Outcome>,
}

/// Reaches the thread.
#[derive(Debug)]
pub(super) struct Driver {
    commands: Sender<Command>,
    bell: OwnedFd,
    last: AtomicU64,
    joined: Arc<AtomicU64>,
}

impl Driver {
    /// Loads the program and starts the thread, which lives as long as the process.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn start() -> Result<Self, String> {
        let program = Program::load()?;
        let joined = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&joined);
        let (commands, received) = channel();
        let started = || -> io::Result<OwnedFd> {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let works = Works::new(program, received, bell.try_clone()?, count)?;
            let thread = thread::Builder::new().name("relay-sockmap".to_owned());
            thread.spawn(move || works.run())?;
            Ok(bell)
        };
        let bell = started().map_err(|error| format!("no thread for it: {error}"))?;
        Ok(Self {
            commands,
            bell,
            last: AtomicU64::new(0),
            joined,
        })
    }

    /// Has two sockets joined, of which so much was read before. When the thread is gone they come
    /// back at once.
    pub(super) fn carry(
        &self,
        ends: [OwnedFd; 2],
        read: [u64; 2],
        moved: Moved,
    ) -> Result<(Order<'_>, oneshot::Receiver<Outcome>), [OwnedFd; 2]> {
        let (done, outcome) = oneshot::channel();
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let start = Start {
            id,
            ends,
            read,
            moved,
            done,
        };
        if let Err(error) = self.commands.send(Command::Start(start)) {
            return Err(match error.0 {
                Command::Start(start) => start.ends,
                // It is the one that was sent.
                Command::Stop(_) | Command::End => unreachable!(),
            });
        }
        self.ring();
        let order = Order {
            driver: self,
            id: Some(id),
        };
        Ok((order, outcome))
    }

    /// How many connections were joined so far.
    pub(super) fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed)
    }

    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::End);
        self.ring();
    }
}

/// A connection that the thread has. Dropping it closes both sockets.
pub(super) struct Order<'a> {
    driver: &'a Driver,
    id: Option<u64>,
}

impl Order<'_> {
    /// It has come to its end.
    pub(super) fn close(mut self) {
        self.id = None;
    }
}

impl Drop for Order<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id
            && self.driver.commands.send(Command::Stop(id)).is_ok()
        {
            self.driver.ring();
        }
    }
}

struct Works {
    program: Program,
    records: Arc<Records>,
    commands: Receiver<Command>,
    bell: OwnedFd,
    epoll: OwnedFd,
    flows: Vec<Option<Flow>>,
    free: VecDeque<usize>,
    slots: HashMap<u64, usize>,
    /// Those that have to be looked at.
    listed: Vec<usize>,
    /// Tells a socket's events from those of the one that was there before.
    generation: u32,
    generations: Vec<u32>,
    buffer: Vec<u8>,
    joined: Arc<AtomicU64>,
}

impl Works {
    fn new(
        program: Program,
        commands: Receiver<Command>,
        bell: OwnedFd,
        joined: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let watch = |fd, tag| epoll::add(&epoll, fd, EventData::new_u64(tag), EventFlags::IN);
        watch(bell.as_fd(), COMMANDS)?;
        watch(program.as_fd(), PROGRAM)?;
        Ok(Self {
            records: Arc::clone(program.records()),
            program,
            commands,
            bell,
            epoll,
            flows: Vec::new(),
            free: VecDeque::new(),
            slots: HashMap::new(),
            listed: Vec::new(),
            generation: 0,
            generations: Vec::new(),
            buffer: vec![0; BUFFER],
            joined,
        })
    }

    fn run(mut self) {
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
                Err(error) => {
                    tracing::warn!(%error, "the sockmap engine stopped; connections do without");
                    return;
                }
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; BATCH];
        let pause = self.pause();
        let count = match epoll::wait(&self.epoll, &mut events[..], pause.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        for event in &events[..count] {
            match event.data.u64() {
                COMMANDS => self.obey(now)?,
                PROGRAM => self.hear(now),
                tag => self.note(tag, event.flags, now),
            }
        }
        let mut listed = std::mem::take(&mut self.listed);
        listed.retain(|slot| self.look_after(*slot, now));
        listed.append(&mut self.listed);
        self.listed = listed;
        Ok(())
    }

    /// How long nothing has to be done by itself.
    fn pause(&self) -> Option<Timespec> {
        let flows = self
            .listed
            .iter()
            .filter_map(|slot| self.flows[*slot].as_ref());
        let next = flows.filter_map(Flow::next).min()?;
        let pause = next.saturating_duration_since(Instant::now());
        Timespec::try_from(pause).ok()
    }

    /// Takes what pumps want.
    fn obey(&mut self, now: Instant) -> io::Result<()> {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Start(start) => self.start(start, now),
                Command::Stop(id) => {
                    if let Some(slot) = self.slots.get(&id) {
                        drop(self.remove(*slot));
                    }
                }
                Command::End => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(())
    }

    /// Takes what the program says.
    fn hear(&mut self, now: Instant) {
        while let Some(index) = self.program.event() {
            let (slot, from) = (index as usize / 2, index as usize % 2);
            if let Some(flow) = self.flows.get_mut(slot).and_then(Option::as_mut) {
                let records = Arc::clone(&self.records);
                flow.with(&records, from, |direction, wire| direction.wake(wire, now));
                self.list(slot);
            }
        }
    }

    /// Takes what epoll says about a socket.
    fn note(&mut self, tag: u64, flags: EventFlags, now: Instant) {
        let (generation, index) = ((tag >> 32) as u32, tag as u32 as usize);
        let (slot, end) = (index / 2, index % 2);
        if self.generations.get(slot) != Some(&generation) {
            return;
        }
        let Some(flow) = self.flows[slot].as_mut() else {
            return;
        };
        if flags.contains(EventFlags::ERR) {
            flow.break_off(end, now);
        }
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
            let direction = &mut flow.directions[end];
            // A copied one is at its end when it was read to it.
            direction.is_ended |= direction.is_joined;
        }
        flow.look = Some((now, TICK));
        self.list(slot);
    }

    fn list(&mut self, slot: usize) {
        if let Some(flow) = self.flows[slot].as_mut()
            && !flow.is_listed
        {
            flow.is_listed = true;
            self.listed.push(slot);
        }
    }

    fn start(&mut self, start: Start, now: Instant) {
        if start.done.is_closed() {
            return;
        }
        let Some(slot) = self.slot() else {
            let _ = start.done.send(Err(start.ends));
            return;
        };
        let records = Arc::clone(&self.records);
        match self.join(slot, &start, &records, now) {
            Some((cookies, directions)) => {
                let index = directions[0].index;
                let counted = Arc::clone(&records);
                start
                    .moved
                    .count_by(move || [index, index + 1].map(|index| counted.get(index).carried()));
                self.slots.insert(start.id, slot);
                self.joined.fetch_add(1, Ordering::Relaxed);
                let flow = self.flows[slot].insert(Flow {
                    id: start.id,
                    ends: start.ends,
                    cookies,
                    directions,
                    moved: start.moved,
                    done: start.done,
                    broken: None,
                    look: Some((now, TICK)),
                    is_listed: false,
                });
                flow.kick(&records, now);
                self.list(slot);
            }
            None => {
                self.free.push_back(slot);
                let _ = start.done.send(Err(start.ends));
            }
        }
    }

    /// A free slot; the one that was used longest ago, lest a program that still runs on a closed
    /// socket writes into the record of another one.
    fn slot(&mut self) -> Option<usize> {
        if self.flows.len() < FLOWS as usize {
            self.flows.push(None);
            self.generations.push(0);
            return Some(self.flows.len() - 1);
        }
        self.free.pop_front()
    }

    /// Takes both sockets into the map. Nothing when that is not possible for the second: then none
    /// is. Without the first, its bytes are copied.
    fn join(
        &mut self,
        slot: usize,
        start: &Start,
        records: &Records,
        now: Instant,
    ) -> Option<([u64; 2], [Direction; 2])> {
        let indices = [2 * slot as u32, 2 * slot as u32 + 1];
        let ends = &start.ends;
        let [a, b] = ends;
        let [first, second] = indices.map(|index| records.get(index));
        let there = Wire {
            from: a,
            to: b,
            record: &first,
        };
        let back = Wire {
            from: b,
            to: a,
            record: &second,
        };
        let mut directions = [
            Direction::new(indices[0], there, start.read[0], now).ok()?,
            Direction::new(indices[1], back, start.read[1], now).ok()?,
        ];
        let cookies = [sys::cookie(a).ok()?, sys::cookie(b).ok()?];
        let is_named =
            self.program.name(cookies[0], indices[0]) && self.program.name(cookies[1], indices[1]);
        directions[1].is_joined = is_named && self.program.take(indices[1], b);
        if !directions[1].is_joined {
            self.forget(cookies);
            return None;
        }
        directions[0].is_joined = self.program.take(indices[0], a);
        if !directions[0].is_joined {
            second.close();
        }
        self.generation = self.generation.wrapping_add(1);
        self.generations[slot] = self.generation;
        for (end, index) in indices.into_iter().enumerate() {
            let mut flags = EventFlags::ET | EventFlags::RDHUP;
            // Not of a socket whose bytes are redirected: each would wake this thread.
            flags.set(EventFlags::IN, !directions[end].is_joined);
            flags.set(EventFlags::OUT, !directions[1 - end].is_joined);
            let tag = u64::from(self.generation) << 32 | u64::from(index);
            // It fails only for want of memory; what ends the connection then is its peer.
            let _ = epoll::add(&self.epoll, &ends[end], EventData::new_u64(tag), flags);
        }
        Some((cookies, directions))
    }

    fn forget(&mut self, cookies: [u64; 2]) {
        for cookie in cookies {
            self.program.forget(cookie);
        }
    }

    /// Looks after a connection. Whether it is to be looked at again.
    fn look_after(&mut self, slot: usize, now: Instant) -> bool {
        let Some(flow) = self.flows[slot].as_mut() else {
            return false;
        };
        let records = Arc::clone(&self.records);
        match flow.look_after(&records, &mut self.buffer, now) {
            None if flow.next().is_some() => true,
            None => {
                flow.is_listed = false;
                false
            }
            Some(ending) => {
                if let Some(flow) = self.remove(slot) {
                    flow.end(ending);
                }
                false
            }
        }
    }

    /// Takes a connection out. Its sockets leave the map when they are closed.
    fn remove(&mut self, slot: usize) -> Option<Flow> {
        let flow = self.flows[slot].take()?;
        self.forget(flow.cookies);
        self.slots.remove(&flow.id);
        self.generations[slot] = 0;
        self.free.push_back(slot);
        let carried = [0, 1].map(|from| {
            let direction = &flow.directions[from];
            direction.carried(&self.records.get(direction.index))
        });
        flow.moved.counted(carried);
        let trimmed = [0, 1].map(|from| {
            let record = self.records.get(flow.directions[from].index);
            record.trimmed()
        });
        if trimmed != [0, 0] {
            tracing::debug!(?trimmed, "bytes that came twice were cut off");
        }
        Some(flow)
    }
}
