//! The program in the kernel: loading, attaching, its maps, and a look at whether it works.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData, SockMap};
use aya::programs::SkLookup;
use aya::{Ebpf, EbpfLoader};
use relay_ebpf::OBJECT;
use relay_ebpf::steer::{ADDRESSES, MAX_ADDRESSES, PORTS, PROGRAM, Ports, SOCKETS};
use tokio::net::{TcpListener, UdpSocket};

use super::PortSet;
use super::datagrams::{self, Arrived};
use crate::{Error, ebpf};

/// How long a connection within this machine may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// The loaded program and its maps.
pub(super) struct Program {
    /// Holds program and link.
    _program: Ebpf,
    addresses: HashMap<MapData, u32, u32>,
    ports: Array<MapData, Ports>,
    sockets: SockMap<MapData>,
}

impl Program {
    pub(super) fn load(addresses: u32) -> Result<Self, Error> {
        if !ebpf::is_allowed() {
            return Err(Error::Steering(ebpf::CAPABILITIES.to_owned()));
        }
        if addresses > MAX_ADDRESSES {
            let reason = format!("it serves {MAX_ADDRESSES} addresses, not {addresses}");
            return Err(Error::Steering(reason));
        }
        let failed = |error: &dyn std::error::Error| Error::steering("load", error);
        let mut program = EbpfLoader::new()
            .map_max_entries(PORTS, 2 * addresses)
            .map_max_entries(SOCKETS, 2 * addresses)
            // Nothing in it depends on the layout of the kernel's structures.
            .btf(None)
            .load(OBJECT)
            .map_err(|error| failed(&error))?;
        let mut map = |name| program.take_map(name).ok_or(missing(name));
        let (addresses, ports, sockets) = (map(ADDRESSES)?, map(PORTS)?, map(SOCKETS)?);
        ebpf::close_other_maps(&mut program);
        let addresses = HashMap::try_from(addresses).map_err(|error| failed(&error))?;
        let ports = Array::try_from(ports).map_err(|error| failed(&error))?;
        let sockets = SockMap::try_from(sockets).map_err(|error| failed(&error))?;
        let steer = program.program_mut(PROGRAM).ok_or(missing(PROGRAM))?;
        let steer: &mut SkLookup = steer.try_into().map_err(|error| failed(&error))?;
        steer.load().map_err(|error| failed(&error))?;
        attach(steer)?;
        Ok(Self {
            _program: program,
            addresses,
            ports,
            sockets,
        })
    }

    /// Gives an address a row.
    pub(super) fn add(&mut self, address: Ipv4Addr, row: u32) -> Result<(), Error> {
        let key = u32::from_ne_bytes(address.octets());
        let added = self.addresses.insert(key, row, 0);
        added.map_err(|error| Error::steering("take an address", &error))
    }

    /// Sets the socket of an index.
    pub(super) fn aim(&mut self, index: u32, socket: &impl AsRawFd) -> Result<(), Error> {
        let set = self.sockets.set(index, socket, 0);
        set.map_err(|error| Error::steering("take a socket", &error))
    }

    /// Sets the ports of an index.
    pub(super) fn steer(&mut self, index: u32, ports: &PortSet) -> Result<(), Error> {
        let set = self.ports.set(index, *ports.0, 0);
        set.map_err(|error| Error::steering("take ports", &error))
    }
}

/// Attaches it to the network namespace of this thread, by a link that ends with its descriptor.
fn attach(program: &mut SkLookup) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| Error::steering("attach", error);
    let namespace = File::open("/proc/thread-self/ns/net").map_err(|error| failed(&error))?;
    let attached = program.attach(namespace);
    attached.map(drop).map_err(|error| failed(&error))
}

fn missing(name: &str) -> Error {
    Error::Steering(format!("the object lacks {name}: build it anew"))
}

/// Whether a connection to `to` arrives at the listener as one to that port. Connections of others
/// that arrive meanwhile are closed, as they would have been refused a moment before.
pub(super) fn connects(listener: &TcpListener, to: SocketAddrV4) -> io::Result<bool> {
    let ours = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    let from = ours.local_addr()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::net::accept(listener) {
            Ok(accepted) => {
                let accepted = TcpStream::from(accepted);
                if accepted.peer_addr()? == from {
                    return Ok(accepted.local_addr()? == to.into());
                }
            }
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(100));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a datagram to `to` arrives at the socket as one to that port.
pub(super) fn arrives(socket: &UdpSocket, to: SocketAddrV4) -> io::Result<bool> {
    let ours = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    ours.send_to(b"relay", to)?;
    let from = ours.local_addr()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match datagrams::receive_now(socket, &mut [0; 8]) {
            Ok(Arrived {
                from: other, port, ..
            }) if other == from => return Ok(port == to.port()),
            Ok(_) => {}
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_micros(100));
            }
            Err(error) => return Err(error),
        }
    }
}
