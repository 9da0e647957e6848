//! Starts the loops of an endpoint: the first in the runtime of whoever opens the endpoint, each other
//! on a thread with a runtime of its own. The peers are shared out among them.

use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex};
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

use super::commands::Command;
use super::driver::{Channels, Common, Driver};
use super::early::Early;
use super::exchange::{Exchange, Seat};
use super::handle::{self, Endpoint, Loop};
use super::local::Local;
use super::{EVENTS, EndpointConfig, EndpointEvents, StackChoice};
use crate::Error;
use crate::datagram::{Datagrams, Home, Outbox};
use crate::stack::{self, Device, Injection, NetHelper, StackOptions, Streams, UserOptions};
use crate::udp::{UdpOffloads, UdpSocket};

/// The most loops of one endpoint.
pub const MAX_LOOPS: u8 = 16;

/// How many loops an end with many peers should have on this machine: one for every two cores, the
/// other being for what the streams lead to, and no more than four.
pub fn usual_loops() -> u8 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, 4) as u8
}

/// Opens an endpoint and starts what moves its packets. Must be called inside a tokio runtime; the
/// endpoint closes when the last handle is dropped.
pub fn start(
    config: EndpointConfig,
    helper: NetHelper,
) -> Result<(Endpoint, EndpointEvents), Error> {
    let udp = bind(&config, config.udp_port.unwrap_or(0))?;
    let options = StackOptions {
        mtu: config.max_mtu,
        offloads: config.offloads,
        // Half, so that what several streams send at once still finds room.
        udp_receive_buffer: udp.receive_buffer() / 2,
    };
    let loops = config.loops.clamp(1, MAX_LOOPS);
    let (bases, without_kernel) = choose(&config, helper, options, loops)?;
    let mut bases = bases.into_iter();
    let (exchange, mut seats) = match bases.len() {
        0 | 1 => (None, Vec::new()),
        several => {
            let (exchange, seats) = Exchange::new(several);
            (Some(exchange), seats)
        }
    };
    let source = config.addresses.first().copied();
    let source = source.unwrap_or(Ipv6Addr::UNSPECIFIED);
    let home = exchange.clone().map(|exchange| -> Home {
        Arc::new(move |address| exchange.directory.home_of_address(address).unwrap_or(0))
    });
    let (datagrams, outboxes, delivery) = Datagrams::of_loops(source, bases.len(), home);
    let (events, receiver) = mpsc::channel(EVENTS);
    let (node, node_watch) = watch::channel(None);
    let common = Common {
        events,
        delivery,
        node: Arc::new(node),
        states: Arc::default(),
        early: Early::default(),
        said: Arc::new(Mutex::default()),
        capture: config.capture.clone(),
    };
    let mut outboxes = outboxes.into_iter();
    let mut seats = seats.drain(..);
    let mut part = || -> Option<Part> {
        Some(Part {
            config: config.clone(),
            base: bases.next()?,
            outbox: outboxes.next()?,
            seat: seats.next(),
            common: common.clone(),
        })
    };
    // There is one device at least.
    let first = part().ok_or(Error::Closed)?;
    let others: Vec<Part> = std::iter::from_fn(&mut part).collect();
    let (own, mut driver) = first.open(udp)?;
    let mut loops = vec![own];
    for other in others {
        loops.push(on_thread(other)?);
    }
    if let Some(warning) = without_kernel {
        driver.warn(warning);
    }
    let task = tokio::spawn(driver.run());
    let endpoint = Endpoint::new(handle::Parts {
        loops,
        exchange,
        datagrams,
        node: node_watch,
        source,
        states: common.states,
        early: common.early,
        task,
    });
    Ok((endpoint, receiver))
}

/// What a loop's stack is made from.
enum Base {
    Kernel(Device),
    User(UserOptions),
}

/// The stacks of the loops; and what to say where they are not the kernel's, and that was not asked
/// for.
fn choose(
    config: &EndpointConfig,
    helper: NetHelper,
    options: StackOptions,
    loops: u8,
) -> Result<(Vec<Base>, Option<String>), Error> {
    let user = || {
        let options = UserOptions {
            addresses: config.addresses.clone(),
            udp_receive_buffer: options.udp_receive_buffer,
            between_relays: true,
        };
        (0..loops).map(|_| Base::User(options.clone())).collect()
    };
    if config.stack == StackChoice::User {
        return Ok((user(), None));
    }
    match stack::set_up(helper, &config.addresses, options, loops) {
        Ok(devices) => Ok((devices.into_iter().map(Base::Kernel).collect(), None)),
        Err(error) if config.stack == StackChoice::Kernel => Err(error),
        Err(error) => Ok((user(), Some(stack::instead_of_kernel(error)))),
    }
}

fn bind(config: &EndpointConfig, port: u16) -> Result<UdpSocket, Error> {
    let offloads = UdpOffloads {
        segmentation: config.offloads.udp_send,
        coalescing: config.offloads.udp_receive,
    };
    UdpSocket::bind(port, offloads)
}

impl Base {
    fn open(self) -> Result<(Local, Streams, mpsc::UnboundedReceiver<Injection>), Error> {
        Ok(match self {
            Base::Kernel(device) => {
                let (tun, stack) = device.open()?;
                let injections = stack.injections();
                let local = Local::Kernel(tun, stack.clone());
                (local, Streams::Kernel(stack), injections)
            }
            Base::User(options) => {
                let (user, stack) = stack::open_user(options);
                // Its packets wait in itself.
                let (_, injections) = mpsc::unbounded_channel();
                let local = Local::User(Box::new(user));
                (local, Streams::User(stack), injections)
            }
        })
    }
}

/// What one loop is made of, before a runtime watches any of it.
struct Part {
    config: EndpointConfig,
    base: Base,
    outbox: Outbox,
    seat: Option<Seat>,
    common: Common,
}

impl Part {
    /// Opens the loop in the runtime that runs the caller.
    fn open(self, udp: UdpSocket) -> Result<(Loop, Driver), Error> {
        let (local, stack, injections) = self.base.open()?;
        let (commands, inbox) = mpsc::channel::<Command>(handle::COMMANDS);
        let channels = Channels {
            inbox,
            commands: commands.downgrade(),
            outbox: self.outbox,
            seat: self.seat,
            common: self.common,
        };
        let driver = Driver::new(self.config, udp, local, injections, channels);
        Ok((Loop { commands, stack }, driver))
    }
}

/// Starts a loop on a thread of its own, which ends when the endpoint's last handle is dropped.
fn on_thread(part: Part) -> Result<Loop, Error> {
    let failed = |what| move |source| Error::System { what, source };
    let number = part.seat.as_ref().map_or(0, Seat::number);
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("starting the runtime of a tunnel's loop"))?;
    let (opened, outcome) = std::sync::mpsc::sync_channel(1);
    let run = move || {
        runtime.block_on(async {
            let loop_ = bind(&part.config, 0).and_then(|udp| part.open(udp));
            match loop_ {
                Ok((own, driver)) => {
                    let _ = opened.send(Ok(own));
                    driver.run().await;
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        });
    };
    let name = format!("relay-loop-{number}");
    let thread = thread::Builder::new().name(name).spawn(run);
    thread.map_err(failed("starting the thread of a tunnel's loop"))?;
    outcome.recv().unwrap_or(Err(Error::Closed))
}
