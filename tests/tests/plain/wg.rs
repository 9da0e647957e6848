//! `relay wg` towards other WireGuard programs: userspace ones with a TUN device in a host's network.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use relay_lab::apps::{self, App};
use relay_lab::needs::{Need, program};
use relay_lab::net::{Host, Lab};
use relay_lab::process::{Process, relay};
use relay_lab::{PATIENCE, needs, poll, say, unconfined_only};

const MIB: u64 = 1 << 20;
const PORT: u16 = 51820;
/// The peer's addresses in the tunnel, and this end's.
const THERE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(10, 9, 0, 2),
    Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2),
);
const HERE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(10, 9, 0, 1),
    Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1),
);

/// A key and its public half.
struct Keys {
    private: String,
    public: String,
}

impl Keys {
    fn new() -> Keys {
        let private = wg(&["genkey"], "");
        let public = wg(&["pubkey"], &private);
        Keys { private, public }
    }
}

fn wg(words: &[&str], input: &str) -> String {
    let mut command = Command::new(program("wg").expect("wg"));
    command
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("wg");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(input.as_bytes()).expect("write");
    drop(stdin);
    let output = child.wait_with_output().expect("wg");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

/// Two hosts, the other WireGuard program on one of them.
struct Site {
    _lab: Lab,
    here: Host,
    there: Host,
    own: Keys,
    peer: Keys,
    shared: String,
    folder: tempfile::TempDir,
    program: &'static str,
    /// relay's `--stack`.
    stack: &'static str,
    device: String,
    running: Option<Process>,
}

impl Site {
    fn new(program: &'static str) -> Site {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut lab = Lab::new();
        let (here, there) = (lab.host("here"), lab.host("there"));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Such programs are told what to do by a socket in the file system, which has this name.
        let device = format!("rw{}n{number}", std::process::id() % 1_000_000);
        let mut site = Site {
            _lab: lab,
            here,
            there,
            own: Keys::new(),
            peer: Keys::new(),
            shared: wg(&["genpsk"], ""),
            folder: tempfile::tempdir().expect("folder"),
            program,
            stack: "auto",
            device,
            running: None,
        };
        site.start();
        site
    }

    /// Starts the other program, with this end as its peer.
    fn start(&mut self) {
        let Site { device, there, .. } = &*self;
        let mut command = Command::new(program(self.program).expect("program"));
        command.args(["-f", device]);
        if self.program == "boringtun-cli" {
            command.arg("--disable-drop-privileges");
        }
        let mut running = Process::outside(self.program, there, command);
        let socket = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
        let up = poll(PATIENCE, || {
            (socket.exists() || !running.runs()).then_some(())
        });
        assert!(up.is_some() && running.runs(), "{}", running.output());
        let config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nPresharedKey = {}\nAllowedIPs = {}/32, {}/128\n",
            self.peer.private, self.own.public, self.shared, HERE.0, HERE.1
        );
        let path = self.write("peer.conf", &config);
        let set = ["setconf", device, path.to_str().expect("path")];
        let done = poll(PATIENCE, || {
            let mut command = Command::new(program("wg").expect("wg"));
            there
                .namespace
                .adopt(command.args(set).stderr(Stdio::null()));
            command
                .status()
                .is_ok_and(|status| status.success())
                .then_some(())
        });
        assert!(done.is_some(), "{}", running.output());
        there
            .namespace
            .ip(&format!("addr add {}/24 dev {device}", THERE.0));
        there
            .namespace
            .ip(&format!("addr add {}/64 dev {device} nodad", THERE.1));
        there.namespace.ip(&format!("link set {device} up"));
        self.running = Some(running);
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("file");
        path
    }

    /// The file that relay gets.
    fn config(&self, endpoint: &str, public: &str) -> PathBuf {
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {}/24, {}/64\nDNS = 10.9.0.53\n\
             [Peer]\nPublicKey = {public}\nPresharedKey = {}\n\
             AllowedIPs = {}/32, fd09::/64\nEndpoint = {endpoint}\n",
            self.own.private, HERE.0, HERE.1, self.shared, THERE.0
        );
        self.write("wg0.conf", &text)
    }

    fn relay(&self, config: &Path, words: &[&str]) -> Process {
        let mut command = relay(self.folder.path());
        command.args(["wg", "--config"]).arg(config).args(words);
        command.args(["--stack", self.stack]);
        Process::start("relay wg", Some(&self.here), command)
    }

    /// Relay with forwards to the app on port 8000, over both families.
    fn forward(&self, endpoint: &str) -> Process {
        let config = self.config(endpoint, &self.peer.public);
        let words = [
            "--tcp",
            "8004:10.9.0.2:8000,8006:[fd09::2]:8000",
            "--udp",
            "8004:10.9.0.2:8000,8006:[fd09::2]:8000",
        ];
        let forward = self.relay(&config, &words);
        forward.wait_line("Ready!", PATIENCE);
        forward
    }

    fn udp_echo(&self, port: u16, size: usize) {
        let socket = self.here.udp((Ipv4Addr::LOCALHOST, 0));
        let short = Some(Duration::from_millis(500));
        socket.set_read_timeout(short).expect("time-out");
        let data: Vec<u8> = (0..size).map(|number| number as u8).collect();
        let mut buffer = vec![0; 65_536];
        let answer = poll(PATIENCE, || {
            socket.send_to(&data, (Ipv4Addr::LOCALHOST, port)).ok()?;
            socket.recv(&mut buffer).ok()
        });
        let count = answer.unwrap_or_else(|| panic!("no answer to {size} bytes on {port}"));
        assert!(buffer[..count] == data, "sent {size} bytes, got {count}");
    }
}

fn everything_passes(other: &'static str, stack: &'static str) {
    let mut site = Site::new(other);
    site.stack = stack;
    let _four = App::start(&site.there, (THERE.0, 8000));
    let _six = App::start(&site.there, (THERE.1, 8000));
    let mut forward = site.forward(&SocketAddr::new(IpAddr::V4(site.there.ipv4), PORT).to_string());
    for port in [8004, 8006] {
        let connect = || site.here.local(port).expect("connect");
        let up = apps::upload(connect(), 64 * MIB).expect("upload");
        let down = apps::download(connect(), 64 * MIB).expect("download");
        say(format_args!(
            "{other}, {stack}, {port}: 64 MiB up in {up:.2?}, down in {down:.2?}"
        ));
        for size in [1, 1200, 1400, 4000, 9000] {
            site.udp_echo(port, size);
        }
    }
    only_its_own_addresses_are_a_peers(&site);
    let refused = site.relay(
        &site.folder.path().join("wg0.conf"),
        &["--tcp", "8009:10.9.0.2:9"],
    );
    refused.wait_line("Ready!", PATIENCE);
    drop(refused);
    assert!(forward.interrupt().success(), "{}", forward.output());
    assert!(!forward.stderr().contains(&site.own.private));
    forward_is_told(&forward);
}

/// Somebody listens nowhere at this end, so what gets in is refused, and what does not is not.
fn only_its_own_addresses_are_a_peers(site: &Site) {
    let foreign = Ipv4Addr::new(10, 9, 0, 3);
    let add = format!("addr add {foreign}/32 dev {}", site.device);
    site.there.namespace.ip(&add);
    let connect = |from: Ipv4Addr, limit: Duration| {
        site.there.namespace.enter(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.expect("socket");
            let address = |ip, port| SocketAddr::from((ip, port)).into();
            socket.bind(&address(from, 0)).expect("bind");
            let error = socket.connect_timeout(&address(HERE.0, 80), limit);
            error.expect_err("nobody listens").kind()
        })
    };
    assert_eq!(connect(THERE.0, PATIENCE), ErrorKind::ConnectionRefused);
    let shut_out = connect(foreign, Duration::from_secs(2));
    assert_eq!(shut_out, ErrorKind::TimedOut);
}

fn forward_is_told(forward: &Process) {
    for line in [
        "line 4: DNS is about a machine's own network",
        "Forwarding 'tcp://127.0.0.1:8004' to 'tcp://10.9.0.2:8000'",
        "Forwarding 'udp://[::1]:8006' to 'udp://[fd09::2]:8000'",
    ] {
        assert_eq!(forward.count_lines(line), 1, "{line}\n{}", forward.output());
    }
}

#[test]
fn debians_wireguard_go_is_a_peer() {
    needs!(
        Need::Namespaces,
        Need::Program("wg"),
        Need::Program("wireguard-go")
    );
    unconfined_only!("it asks for the kernel's TCP");
    everything_passes("wireguard-go", "kernel");
}

#[test]
fn debians_wireguard_go_is_a_peer_of_relays_own_tcp() {
    needs!(
        Need::Namespaces,
        Need::Program("wg"),
        Need::Program("wireguard-go")
    );
    everything_passes("wireguard-go", "user");
}

/// Where it is installed; it is no Debian package.
#[test]
fn boringtun_cli_is_a_peer() {
    needs!(Need::Namespaces, Need::Program("wg"));
    match program("boringtun-cli") {
        Ok(_) => everything_passes("boringtun-cli", "auto"),
        Err(reason) => say(reason),
    }
}

#[test]
fn streams_outlive_a_peers_new_start_and_its_new_address() {
    needs!(
        Need::Namespaces,
        Need::Program("wg"),
        Need::Program("wireguard-go")
    );
    let mut site = Site::new("wireguard-go");
    // It listens wherever it is started again, and is found over IPv6 at first.
    let any = (Ipv6Addr::UNSPECIFIED, 8000);
    let _app = App::start(&site.there, any);
    let forward = site.forward(&SocketAddr::new(IpAddr::V6(site.there.ipv6), PORT).to_string());
    let stream = site.here.local(8004).expect("connect");
    apps::echo(&stream, b"before").expect("echo");

    // New keys of the session, the same interface: what was open goes on.
    let mut old = site.running.take().expect("running");
    old.signal(Signal::SIGTERM);
    old.wait(PATIENCE);
    site.start();
    apps::echo_more(&stream, b"after a new start").expect("echo");

    // It is somewhere else, and says so by what it sends.
    let moved = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x99);
    let old = site.there.ipv6;
    let ip = |words: String| site.there.namespace.ip(&words);
    ip(format!("addr add {moved}/64 dev eth0 nodad"));
    ip(format!("addr del {old}/64 dev eth0"));
    let endpoint = format!("[{}]:{}", site.here.ipv6, udp_port(&forward));
    let peer = [
        "set",
        &site.device,
        "peer",
        &site.own.public,
        "endpoint",
        &endpoint,
    ];
    site.there.namespace.tool("wg", &peer);
    let keepalive = [
        "set",
        &site.device,
        "peer",
        &site.own.public,
        "persistent-keepalive",
        "1",
    ];
    site.there.namespace.tool("wg", &keepalive);
    apps::echo_more(&stream, b"from elsewhere").expect("echo");
}

/// The UDP port of relay's end.
fn udp_port(forward: &Process) -> u16 {
    let table = std::fs::read_to_string(format!("/proc/{}/net/udp6", forward.id()));
    let table = table.expect("table of sockets");
    let any = "00000000000000000000000000000000:";
    let ports = table.lines().filter_map(|line| {
        let local = line.split_whitespace().nth(1)?.strip_prefix(any)?;
        u16::from_str_radix(local, 16).ok()
    });
    ports.into_iter().next().expect("a UDP socket")
}

#[test]
fn a_wrong_key_and_a_silent_endpoint_are_told() {
    needs!(
        Need::Namespaces,
        Need::Program("wg"),
        Need::Program("wireguard-go")
    );
    let site = Site::new("wireguard-go");
    let endpoint = format!("{}:{PORT}", site.there.ipv4);
    let wrong = site.config(&endpoint, &Keys::new().public);
    let forward = site.relay(&wrong, &["--tcp", "8004:10.9.0.2:8000"]);
    let nobody = site.write(
        "nobody.conf",
        &std::fs::read_to_string(&wrong)
            .expect("file")
            .replace(&endpoint, "192.0.2.1:9"),
    );
    let no_way = Ipv4Addr::new(10, 77, 0, 254);
    site.here
        .namespace
        .ip(&format!("route del default via {no_way}"));
    let unreachable = site.relay(&nobody, &["--tcp", "8005:10.9.0.2:8000"]);
    let line = forward.wait_line("does not answer at", PATIENCE);
    assert!(
        line.contains(&endpoint) && line.contains("PublicKey"),
        "{line}"
    );
    let line = unreachable.wait_line("does not answer at", PATIENCE);
    assert!(
        line.contains("192.0.2.1:9") && line.contains("unreachable"),
        "{line}"
    );
    assert_eq!(forward.count_lines("Ready!"), 0);

    let no_peer = site.relay(&wrong, &["--tcp", "8006:10.8.0.1:80"]);
    no_peer.wait_line("no [Peer] has 10.8.0.1 in its AllowedIPs", PATIENCE);
}
