//! The app that every route leads to: echo, sink and source on one TCP port, a counter on UDP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::Ask;

/// What the UDP socket asks to queue.
const QUEUE: usize = 4 << 20;

/// A running app; it ends with the process.
#[derive(Debug)]
pub struct App {
    port: u16,
    datagrams: Arc<AtomicU64>,
}

impl App {
    /// Starts the app on a free port of all IPv4 addresses of the calling thread's host, the same
    /// number for TCP and UDP.
    ///
    /// # Errors
    /// When no port is free or a thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let (listener, socket) = same_port()?;
        let port = listener.local_addr()?.port();
        let datagrams = Arc::new(AtomicU64::new(0));
        let counter = datagrams.clone();
        thread::Builder::new()
            .name("app-udp".into())
            .spawn(move || count(&socket, &counter))?;
        thread::Builder::new()
            .name("app-tcp".into())
            .spawn(move || accept(&listener))?;
        Ok(Self { port, datagrams })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Datagrams received so far.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }
}

fn same_port() -> io::Result<(TcpListener, UdpSocket)> {
    for _ in 0..64 {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        if let Ok(socket) = UdpSocket::bind(listener.local_addr()?) {
            // Room for a burst while both cores are busy with something else.
            // Past the machine's limit where that is allowed: what is lost here is not the route's.
            if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).is_err() {
                socket2::SockRef::from(&socket).set_recv_buffer_size(QUEUE)?;
            }
            return Ok((listener, socket));
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn accept(listener: &TcpListener) {
    let out_of_descriptors = AtomicBool::new(false);
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                // One small stack a connection: a thousand are open at once.
                let spawned = thread::Builder::new()
                    .stack_size(64 << 10)
                    .spawn(move || drop(serve(stream)));
                out_of_descriptors.store(spawned.is_err(), Ordering::Relaxed);
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut ask = [0];
    stream.read_exact(&mut ask)?;
    match ask[0] {
        ask if ask == Ask::Sink as u8 => sink(stream),
        ask if ask == Ask::Source as u8 => source(stream),
        _ => echo(stream),
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            n => total += n as u64,
        }
    }
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let buffer = vec![0x5a; 256 << 10];
    loop {
        stream.write_all(&buffer)?;
    }
}

fn count(socket: &UdpSocket, counter: &AtomicU64) {
    let mut buffer = [0; 2048];
    while socket.recv(&mut buffer).is_ok() {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
