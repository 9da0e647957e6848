//! Many ports of an address on one socket each for streams and datagrams, by a program in the
//! kernel (sk_lookup) that gives them what arrives for any of the ports.
//!
//! The program hangs on the network namespace by a descriptor of this process: it is gone with the
//! process, however that ends. It is meant for addresses that nobody else uses. A port on which
//! somebody else listens before stays theirs, and so does one on which somebody listens later at
//! the very address.

mod datagrams;
mod load;
mod taken;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::time::Duration;

use relay_ebpf::steer::{NONE, Ports, TCP, UDP, bit, contains, index};
use tokio::net::{TcpListener, UdpSocket};

pub use datagrams::{Arrived, answering, receive};

use crate::Error;
use load::Program;
use taken::Reach;

/// How often is looked for others who listen at an address of ours.
const LOOK: Duration = Duration::from_secs(1);

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Box<Ports>);

impl PortSet {
    /// Whether a port is in it.
    pub fn contains(&self, port: u16) -> bool {
        contains(&self.0, port)
    }

    fn remove(&mut self, port: u16) {
        let (word, bit) = bit(port);
        self.0[word] &= !bit;
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = u16> {
        (0..=u16::MAX).filter(|port| self.contains(*port))
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Box::new(NONE);
        for port in ports {
            let (word, bit) = bit(port);
            set[word] |= bit;
        }
        Self(set)
    }
}

/// An address that leads to this machine alone and is nobody's by custom: 127.0.0.0/8 without
/// 127.0.0.1.
pub fn may_be_owned(address: Ipv4Addr) -> bool {
    address.is_loopback() && address != Ipv4Addr::LOCALHOST
}

/// One socket for many ports, and the ports that stay with those who listen there already.
#[derive(Debug)]
pub struct Opened<S> {
    /// It gets what arrives for any of the ports.
    pub socket: S,
    /// Ports that were asked for and that others have, in order.
    pub left: Vec<u16>,
}

/// The program, and what it steers. Dropping it ends the steering; the sockets are the caller's.
pub struct Steering {
    program: Program,
    rows: Vec<Ipv4Addr>,
    steered: Vec<Steered>,
}

/// The ports of an address that are steered to one socket.
struct Steered {
    index: u32,
    address: Ipv4Addr,
    /// Where the socket is bound.
    own: u16,
    wanted: PortSet,
    /// Ports of others who listen on every address of the machine, and did so before.
    earlier: BTreeSet<u16>,
    now: PortSet,
    /// Keeps other processes from steering the same address; see [`claim`].
    _claim: UnixDatagram,
}

impl Steering {
    /// Loads and attaches the program, for so many addresses; takes some milliseconds, and more on
    /// a busy machine. It does nothing yet.
    ///
    /// # Errors
    /// Without the capabilities that it takes, or on a kernel without the feature.
    pub fn load(addresses: u32) -> Result<Self, Error> {
        let (program, (rows, steered)) = (Program::load(addresses)?, Default::default());
        Ok(Self {
            program,
            rows,
            steered,
        })
    }

    /// Opens a socket for connections to any of the ports. The port that a connection was made to
    /// is that of the accepted socket's own address.
    ///
    /// # Errors
    /// [`Error::Claimed`] when another process does the same; [`Error::Steering`] when the socket
    /// cannot be opened, or steering does not work here: it was tried.
    pub fn tcp(
        &mut self,
        address: Ipv4Addr,
        wanted: PortSet,
    ) -> Result<Opened<TcpListener>, Error> {
        self.open(TCP, address, wanted, crate::listen, load::connects)
    }

    /// Opens a socket for datagrams to any of the ports. [`receive`] tells the port, and
    /// [`answering`] opens the socket that answers.
    ///
    /// # Errors
    /// As [`Steering::tcp`].
    pub fn udp(&mut self, address: Ipv4Addr, wanted: PortSet) -> Result<Opened<UdpSocket>, Error> {
        self.open(UDP, address, wanted, datagrams::listen, load::arrives)
    }

    fn open<S: AsRawFd>(
        &mut self,
        proto: u32,
        address: Ipv4Addr,
        wanted: PortSet,
        listen: impl FnOnce(SocketAddr) -> io::Result<S>,
        works: impl FnOnce(&S, SocketAddrV4) -> io::Result<bool>,
    ) -> Result<Opened<S>, Error> {
        let failed = |what| move |error: io::Error| Error::steering(what, &error);
        let claim = claim(proto, address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::Claimed(address),
            _ => failed("claim the address")(error),
        })?;
        let (left, earlier) = taken::before(proto, address, &wanted);
        let mut now = wanted.clone();
        left.iter().for_each(|port| now.remove(*port));
        let own = now.iter().next();
        let own = own.ok_or_else(|| failed("listen")(io::ErrorKind::AddrInUse.into()))?;
        let socket = listen(SocketAddrV4::new(address, own).into()).map_err(failed("listen"))?;

        let index = index(self.row(address)?, proto);
        self.program.aim(index, &socket)?;
        // One port first, to see whether it works at all.
        if let Some(port) = now.iter().next_back().filter(|port| *port != own) {
            self.program.steer(index, &PortSet::from_iter([port]))?;
            let to = SocketAddrV4::new(address, port);
            if !works(&socket, to).map_err(failed("reach a port of it"))? {
                let reason = "what was sent to one port arrived as if for another";
                return Err(Error::Steering(reason.to_owned()));
            }
        }
        self.program.steer(index, &now)?;
        self.steered.push(Steered {
            index,
            address,
            own,
            wanted,
            earlier,
            now,
            _claim: claim,
        });
        Ok(Opened { socket, left })
    }

    /// The row of an address.
    fn row(&mut self, address: Ipv4Addr) -> Result<u32, Error> {
        let known = self.rows.iter().position(|known| *known == address);
        let row = known.unwrap_or(self.rows.len());
        let number = u32::try_from(row).unwrap_or(u32::MAX);
        if known.is_none() {
            self.program.add(address, number)?;
            self.rows.push(address);
        }
        Ok(number)
    }

    /// Steers until it is dropped, and yields ports to others who begin to listen there.
    pub async fn keep(mut self) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look();
        }
    }

    fn look(&mut self) {
        for proto in [TCP, UDP] {
            let mut rows = self.steered.iter_mut().filter(|row| row.index % 2 == proto);
            let Some(first) = rows.next() else { continue };
            let sockets = taken::sockets(proto);
            for row in std::iter::once(first).chain(rows) {
                let now = row.ports(&sockets);
                if now == row.now {
                    continue;
                }
                tracing::debug!(address = %row.address, "others listen there, or no more");
                match self.program.steer(row.index, &now) {
                    Ok(()) => row.now = now,
                    Err(error) => tracing::debug!(%error, "ports stay as they are"),
                }
            }
        }
    }
}

impl fmt::Debug for Steering {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Steering").field(&self.rows).finish()
    }
}

impl Steered {
    /// The ports to steer, beside the sockets that there are.
    fn ports(&mut self, sockets: &[(Reach, u16)]) -> PortSet {
        self.earlier
            .retain(|port| sockets.contains(&(Reach::Everywhere, *port)));
        let mut ports = self.wanted.clone();
        self.earlier.iter().for_each(|port| ports.remove(*port));
        for (reach, port) in sockets {
            if *reach == Reach::At(self.address) && *port != self.own {
                ports.remove(*port);
            }
        }
        ports
    }
}

/// Whether another process steers connections to ports of an address.
pub fn is_claimed_tcp(address: Ipv4Addr) -> bool {
    claim(TCP, address).is_err()
}

/// Whether another process steers datagrams to ports of an address.
pub fn is_claimed_udp(address: Ipv4Addr) -> bool {
    claim(UDP, address).is_err()
}

/// A name that one process of the network namespace can have. Of two programs that steer the same
/// port the later one would win.
fn claim(proto: u32, address: Ipv4Addr) -> io::Result<UnixDatagram> {
    let name = format!("relay/steer/{proto}/{address}");
    UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(name)?)
}
