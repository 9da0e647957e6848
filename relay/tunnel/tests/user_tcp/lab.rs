//! Our TCP, the kernel's, and the path between them, in real time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use relay_tcp::{CloseReason, ConnectionId, Event, Instant, Stack, StackConfig};
use relay_tunnel::stack::{Injection, KernelStack, NetHelper, StackOptions, Tun, Verdict, start};
use tokio::sync::mpsc;

use super::path::Path;
use super::*;

/// What the application above our TCP does with each connection.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Sends so many bytes, ends, and waits for the peer's end.
    Send(u64),
    /// Reads to the peer's end, then ends.
    Receive,
    /// Sends back what comes.
    Echo,
}

/// A packet on its way: arrival, order, whether it goes to the kernel, bytes.
type Arrival = (Instant, u64, bool, Vec<u8>);

/// Our TCP, the kernel's, and what is between them.
pub(super) struct Lab {
    tun: Tun,
    pub(super) kernel: KernelStack,
    pub(super) stack: Stack,
    started: Clock,
    /// To the kernel, and from it.
    pub(super) paths: [Path; 2],
    /// Data of both directions goes through the first path, all else through the second.
    pub(super) is_shared: bool,
    packets: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    work: Work,
    pub(super) flows: Vec<Flow>,
    buffer: Vec<u8>,
}

pub(super) struct Flow {
    pub(super) id: ConnectionId,
    work: Work,
    pub(super) sent: u64,
    pub(super) received: u64,
    shut: bool,
    pub(super) over: Option<CloseReason>,
}

impl Lab {
    pub(super) fn new(
        config: Config,
        options: PathOptions,
        work: Work,
    ) -> Option<(Self, KernelStack)> {
        let helper = NetHelper::spawn().unwrap();
        let (tun, kernel) = match start(helper, &[KERNEL], StackOptions::default()) {
            Ok(both) => both,
            Err(error) => {
                let required =
                    std::env::var_os("RELAY_REQUIRE_ALL").is_some_and(|value| !value.is_empty());
                assert!(!required, "nothing may be skipped here: {error}");
                println!("skip: {error}");
                return None;
            }
        };
        kernel.set_peer_mtu(USER, config.mtu);
        kernel.set_peer_near(USER, options.delay < Duration::from_millis(2));
        let config = StackConfig {
            connection: config,
            addresses: vec![IpAddr::V6(USER)],
            ..StackConfig::default()
        };
        let lab = Self {
            tun,
            kernel: kernel.clone(),
            stack: Stack::new(config, [0x5eed, 0x5eed]),
            started: Clock::now(),
            // The kernel's side trusts what comes out of a tunnel, and verifies no checksums.
            paths: [
                Path::new(
                    PathOptions {
                        corrupt: 0.0,
                        ..options.clone()
                    },
                    11,
                ),
                Path::new(options, 12),
            ],
            is_shared: false,
            packets: BinaryHeap::new(),
            order: 0,
            work,
            flows: Vec::new(),
            buffer: vec![0; 256 << 10],
        };
        Some((lab, kernel))
    }

    pub(super) fn now(&self) -> Instant {
        Instant::from_nanos(self.started.elapsed().as_nanos() as u64)
    }

    pub(super) fn connect(&mut self, port: u16, work: Work) {
        let (now, remote) = (self.now(), SocketAddr::new(IpAddr::V6(KERNEL), port));
        let id = self.stack.connect(now, IpAddr::V6(USER), remote).unwrap();
        self.flows.push(Flow::new(id, work));
    }

    /// Moves packets and bytes until all of `flows` connections were there and are over.
    pub(super) async fn run(&mut self, flows: usize) {
        let begun = Clock::now();
        let mut injections = self.kernel.injections();
        while self.flows.len() < flows || self.flows.iter().any(|flow| flow.over.is_none()) {
            assert!(begun.elapsed() < PATIENCE * factor(), "it never ends");
            self.turn(&mut injections).await;
        }
        // What the kernel still has to be told.
        self.transmit();
        tokio::time::sleep(self.paths[0].options.delay * 2 + Duration::from_millis(20)).await;
        self.deliver();
    }

    pub(super) async fn turn(&mut self, injections: &mut mpsc::UnboundedReceiver<Injection>) {
        self.read_kernel();
        while let Ok(injection) = injections.try_recv() {
            match injection {
                Injection::ToTun(packet) => self.tun.write_batch(&[&packet]).unwrap(),
                Injection::ToPeer(packet) => self.send(false, packet),
            }
        }
        self.deliver();
        let now = self.now();
        self.stack.handle_timeout(now);
        self.serve();
        self.transmit();
        self.wait().await;
    }

    async fn wait(&mut self) {
        let now = self.now();
        let arrival = self.packets.peek().map(|Reverse((at, ..))| *at);
        let timer = self.stack.poll_timeout(now);
        let next = arrival.into_iter().chain(timer).min();
        let pause = next.map_or(Duration::from_millis(50), |next| next.since(now));
        if pause.is_zero() {
            tokio::task::yield_now().await;
            return;
        }
        tokio::select! {
            readable = self.tun.readable() => readable.unwrap(),
            () = tokio::time::sleep(pause.min(Duration::from_millis(50))) => {}
        }
    }

    fn read_kernel(&mut self) {
        let mut all = Vec::new();
        // Few at a time, so that acknowledgements are not kept waiting.
        for _ in 0..16 {
            if self
                .tun
                .try_read(&mut |packet| all.push(packet.to_vec()))
                .is_err()
            {
                break;
            }
        }
        for packet in all {
            self.send(false, packet);
        }
    }

    fn send(&mut self, to_kernel: bool, packet: Vec<u8>) {
        let now = self.now();
        let (packets, order) = (&mut self.packets, &mut self.order);
        let path = match self.is_shared {
            true => usize::from(packet.len() < ACK),
            false => usize::from(!to_kernel),
        };
        let path = &mut self.paths[path];
        path.send(now, packet, &mut |at, packet| {
            *order += 1;
            packets.push(Reverse((at, *order, to_kernel, packet)));
        });
    }

    fn deliver(&mut self) {
        let now = self.now();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        while self
            .packets
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= now)
        {
            let Some(Reverse((_, _, to_kernel, packet))) = self.packets.pop() else {
                break;
            };
            match to_kernel {
                true => theirs.push(packet),
                false => ours.push(packet),
            }
        }
        self.stack
            .handle_packets(now, ours.iter().map(Vec::as_slice));
        let mut passed: Vec<&[u8]> = Vec::new();
        let mut answers = Vec::new();
        for packet in &theirs {
            match self.kernel.inspect(packet) {
                Verdict::Pass => passed.push(packet),
                Verdict::Held | Verdict::Drop => {}
                Verdict::Answer(answer) => answers.push(answer),
            }
        }
        self.tun.write_batch(&passed).unwrap();
        for answer in answers {
            self.send(false, answer);
        }
    }

    fn transmit(&mut self) {
        let now = self.now();
        let mut packets: Vec<Vec<u8>> = Vec::new();
        while self.stack.poll_transmit(now, &mut packets).is_some() {
            self.serve();
        }
        for packet in packets {
            self.send(true, packet);
        }
    }

    fn serve(&mut self) {
        let now = self.now();
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Requested { request, .. } => {
                    let id = self.stack.accept(now, request).unwrap();
                    self.flows.push(Flow::new(id, self.work));
                }
                Event::Withdrawn(_) => {}
                Event::Changed { id, events } => {
                    if let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == id) {
                        flow.over = flow.over.or(events.closed);
                    }
                }
            }
        }
        for flow in &mut self.flows {
            if flow.over.is_none() {
                flow.serve(&mut self.stack, &mut self.buffer, now);
            }
        }
    }
}

impl Flow {
    pub(super) fn new(id: ConnectionId, work: Work) -> Self {
        Self {
            id,
            work,
            sent: 0,
            received: 0,
            shut: false,
            over: None,
        }
    }

    fn serve(&mut self, stack: &mut Stack, buffer: &mut [u8], now: Instant) {
        if let Work::Echo = self.work {
            while let Ok(bytes) = stack.peek(self.id).map(<[u8]>::to_vec) {
                let Ok(count) = stack.write(self.id, &bytes) else {
                    break;
                };
                self.received += count as u64;
                if count == 0 {
                    break;
                }
                stack.consume(now, self.id, count).unwrap();
            }
        } else {
            while let Ok(count) = stack.read(now, self.id, buffer) {
                if count == 0 {
                    break;
                }
                check(&buffer[..count], self.received);
                self.received += count as u64;
            }
        }
        if let Work::Send(total) = self.work {
            while self.sent < total {
                let count = (total - self.sent).min(64 << 10) as usize;
                fill(&mut buffer[..count], self.sent);
                let written = stack.write(self.id, &buffer[..count]).unwrap_or(0);
                self.sent += written as u64;
                if written < count {
                    return;
                }
            }
        }
        let ended = stack
            .connection(self.id)
            .is_some_and(|connection| connection.is_read_to_end());
        if !self.shut && (ended || matches!(self.work, Work::Send(_))) {
            self.shut = true;
            stack.shutdown(self.id).unwrap();
        }
        // In TIME-WAIT both directions are over.
        if ended
            && stack
                .connection(self.id)
                .is_some_and(|connection| connection.state() == relay_tcp::State::TimeWait)
        {
            self.over = Some(CloseReason::Finished);
        }
    }
}
