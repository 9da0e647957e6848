//! Hosts: network namespaces joined by a switch, which is a namespace with a bridge.
//!
//! A namespace here has no name. It lives as long as a descriptor or a process holds it, so that
//! even a killed test leaves nothing behind.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};

use crate::needs::program;

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<OwnedFd>);

impl Namespace {
    /// Makes one, with its loopback up.
    ///
    /// # Panics
    /// Without the right to: ask for [`Need::Namespaces`](crate::needs::Need::Namespaces) first.
    pub fn new() -> Namespace {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET)");
            File::open("/proc/thread-self/ns/net").expect("/proc/thread-self/ns/net")
        });
        let file = made.join().expect("namespace thread");
        let namespace = Namespace(Arc::new(file.into()));
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` on a thread inside and gives back what it returns.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes `command` start inside.
    pub fn adopt(&self, command: &mut Command) {
        let namespace = Arc::clone(&self.0);
        let enter = move || setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe.
        unsafe { command.pre_exec(enter) };
    }

    /// Runs `ip WORDS` inside.
    pub fn ip(&self, words: &str) {
        self.tool("ip", &words.split_whitespace().collect::<Vec<_>>());
    }

    /// Runs a tool inside that must succeed.
    ///
    /// # Panics
    /// With what the tool printed, when it fails.
    pub fn tool(&self, name: &str, args: &[&str]) -> String {
        let path = program(name).unwrap_or_else(|reason| panic!("{reason}"));
        let mut command = Command::new(path);
        self.adopt(command.args(args).stdin(Stdio::null()));
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A path by which other processes can open it while this process lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Namespace::new()
    }
}

/// Hosts on one network segment.
pub struct Lab {
    switch: Namespace,
    hosts: u8,
    /// The first three bytes of the hosts' addresses.
    net: [u8; 3],
}

impl Lab {
    /// A switch without hosts, whose addresses are a private network's.
    pub fn new() -> Lab {
        Lab::with_net([10, 77, 0])
    }

    /// A switch without hosts that stands for the Internet: its addresses are not a private
    /// network's (but those that RFC 5737 keeps for examples).
    pub fn public() -> Lab {
        Lab::with_net([198, 51, 100])
    }

    fn with_net(net: [u8; 3]) -> Lab {
        let switch = Namespace::new();
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        Lab {
            switch,
            hosts: 0,
            net,
        }
    }

    /// Everything that passes between the hosts from now on.
    ///
    /// # Panics
    /// Without the right to open a packet socket.
    pub fn tap(&self) -> Tap {
        const EVERY_PROTOCOL: u16 = 3;
        let socket = self.switch.enter(|| {
            let protocol = i32::from(EVERY_PROTOCOL.to_be()).into();
            Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("packet socket")
        });
        // More than a test sends; what does not fit is not seen.
        let _ = socket.set_recv_buffer_size(64 << 20);
        socket.set_nonblocking(true).expect("non-blocking");
        Tap(socket)
    }

    /// Adds a host, with one address of each family.
    pub fn host(&mut self, name: &str) -> Host {
        self.hosts += 1;
        let number = self.hosts;
        let namespace = Namespace::new();
        let (port, inside) = (format!("port{number}"), namespace.path());
        let link = format!("link add {port} type veth peer name eth0 netns {inside}");
        self.switch.ip(&link);
        self.switch.ip(&format!("link set {port} master br0 up"));
        let [a, b, c] = self.net;
        let (ipv4, ipv6) = (
            Ipv4Addr::new(a, b, c, number),
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)),
        );
        namespace.ip(&format!("addr add {ipv4}/24 dev eth0"));
        namespace.ip(&format!("addr add {ipv6}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("route add default via {a}.{b}.{c}.254 dev eth0"));
        Host {
            name: name.to_owned(),
            namespace,
            ipv4,
            ipv6,
        }
    }
}

impl Default for Lab {
    fn default() -> Self {
        Lab::new()
    }
}

/// A wire tap on the switch.
pub struct Tap(Socket);

impl Tap {
    /// Reads what passed so far; says how many bytes that was, and whether `text` was among them.
    pub fn saw(&mut self, text: &[u8]) -> (usize, bool) {
        let (mut buffer, mut bytes, mut found) = (vec![0; 65_536], 0, false);
        while let Ok(count) = self.0.read(&mut buffer) {
            bytes += count;
            found |= buffer[..count]
                .windows(text.len())
                .any(|window| window == text);
        }
        (bytes, found)
    }
}

/// A machine of the lab.
#[derive(Clone, Debug)]
pub struct Host {
    /// What the test calls it.
    pub name: String,
    /// Its network.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

impl Host {
    /// Makes `command` start on this host, which is a container where
    /// [all are confined](crate::rootless::all_are_confined).
    pub fn run(&self, command: Command) -> Command {
        let mut command = match crate::rootless::all_are_confined() {
            true => crate::rootless::confine(&command),
            false => command,
        };
        self.namespace.adopt(&mut command);
        command
    }

    /// Connects from this host.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        let stream = self
            .namespace
            .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(crate::PATIENCE))?;
        stream.set_write_timeout(Some(crate::PATIENCE))?;
        Ok(stream)
    }

    /// Connects from this host to a port of its own loopback.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn local(&self, port: u16) -> io::Result<TcpStream> {
        self.connect((Ipv4Addr::LOCALHOST, port))
    }

    /// Listens on this host.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn listen(&self, at: impl Into<SocketAddr>) -> TcpListener {
        let at = at.into();
        let listener = self.namespace.enter(|| TcpListener::bind(at));
        listener.unwrap_or_else(|error| panic!("listen on {at} in {}: {error}", self.name))
    }

    /// A UDP socket of this host.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn udp(&self, at: impl Into<SocketAddr>) -> UdpSocket {
        let at = at.into();
        let socket = self.namespace.enter(|| UdpSocket::bind(at));
        let socket = socket.unwrap_or_else(|error| panic!("UDP {at} in {}: {error}", self.name));
        socket
            .set_read_timeout(Some(crate::PATIENCE))
            .expect("time-out");
        socket
    }

    /// Makes this host and `other` deaf to each other's UDP, without telling either.
    pub fn block_udp(&self, other: &Host) {
        for (here, there) in [(self, other), (other, self)] {
            let rules = format!(
                "add table inet relay_lab
                 add chain inet relay_lab in {{ type filter hook input priority 0; }}
                 add rule inet relay_lab in ip saddr {} meta l4proto udp drop
                 add rule inet relay_lab in ip6 saddr {} meta l4proto udp drop",
                there.ipv4, there.ipv6
            );
            for rule in rules.lines() {
                here.namespace.tool("nft", &[rule]);
            }
        }
    }

    /// Ends [`Host::block_udp`] on both hosts.
    pub fn unblock_udp(&self, other: &Host) {
        for host in [self, other] {
            host.namespace.tool("nft", &["delete table inet relay_lab"]);
        }
    }

    /// Lets no UDP in or out but on the host's own loopback.
    pub fn block_all_udp(&self) {
        let rules = "add table inet relay_lab
             add chain inet relay_lab in { type filter hook input priority 0; }
             add chain inet relay_lab out { type filter hook output priority 0; }
             add rule inet relay_lab in iifname != lo meta l4proto udp drop
             add rule inet relay_lab out oifname != lo meta l4proto udp drop";
        for rule in rules.lines() {
            self.namespace.tool("nft", &[rule]);
        }
    }

    /// Counts from now on the UDP bytes that come from `other`: what takes the direct path.
    pub fn count_udp_from(&self, other: &Host) {
        let rules = format!(
            "add table inet relay_count
             add counter inet relay_count direct
             add chain inet relay_count in {{ type filter hook input priority 10; }}
             add rule inet relay_count in ip saddr {} meta l4proto udp counter name direct
             add rule inet relay_count in ip6 saddr {} meta l4proto udp counter name direct",
            other.ipv4, other.ipv6
        );
        for rule in rules.lines() {
            self.namespace.tool("nft", &[rule]);
        }
    }

    /// The bytes since [`Host::count_udp_from`].
    pub fn counted(&self) -> u64 {
        let command = "list counter inet relay_count direct";
        let text = self.namespace.tool("nft", &[command]);
        let mut words = text.split_whitespace().skip_while(|word| *word != "bytes");
        let bytes = words.nth(1).and_then(|word| word.parse().ok());
        bytes.unwrap_or_else(|| panic!("no counter in {text}"))
    }

    /// Whether something on this host listens on the TCP port.
    pub fn listens(&self, address: IpAddr, port: u16) -> bool {
        let to = SocketAddr::new(address, port);
        self.namespace
            .enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)))
            .is_ok()
    }
}
