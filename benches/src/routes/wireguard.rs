//! WireGuard peers. The daemons talk over the loopback of one network namespace; each device is
//! moved to a namespace of its own, so that the kernel's TCP goes through the tunnel and no network
//! of the machine is touched.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use relay_wire::keys::NodePrivate;
use tempfile::TempPath;

use super::{OpenRoute, Place, READY, free_port, inside, wait_for_port};
use crate::link::Host;
use crate::load::App;
use crate::processes::Process;
use crate::{Error, Route};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// UDP ports on the loopback that only the two daemons see.
const NEAR_PORT: u16 = 51_820;
const FAR_PORT: u16 = 51_821;
/// WireGuard's usual MTU over a path of 1500.
const MTU: &str = "1420";

/// A Curve25519 key pair as other programs write it.
pub(super) struct Key {
    private: [u8; 32],
    public: [u8; 32],
}

impl Key {
    pub(super) fn of(key: &NodePrivate) -> Self {
        let mut public = [0; 32];
        // The wire form is two letters and the key.
        public.copy_from_slice(&key.public().to_wire()[2..]);
        Self {
            private: key.to_bytes(),
            public,
        }
    }

    fn generate() -> Self {
        Self::of(&NodePrivate::generate(&mut rand::rng()))
    }

    pub(super) fn private_base64(&self) -> String {
        STANDARD.encode(self.private)
    }

    pub(super) fn public_base64(&self) -> String {
        STANDARD.encode(self.public)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(super) fn no_namespace(source: io::Error) -> Error {
    Error::System {
        what: "cannot make a network namespace (it takes root and the `ip` program)".to_owned(),
        source,
    }
}

/// One daemon with its device.
struct Daemon<'a> {
    program: &'a Path,
    device: String,
    key: &'a Key,
    port: u16,
    address: Ipv4Addr,
}

impl Daemon<'_> {
    /// Starts the daemon on `path`'s loopback and moves its device to `home`.
    fn start(
        &self,
        path: &Host,
        home: &Host,
        peer: &Key,
        peer_at: Option<u16>,
    ) -> Result<Process, Error> {
        let mut command = Command::new(self.program);
        command.args(["--foreground", "--disable-drop-privileges", &self.device]);
        let name = self
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let mut process = inside(path.enter(|| Process::start(&name, &mut command)))?;
        self.configure(&mut process, peer, peer_at)?;
        let address = format!("{}/24", self.address);
        path.give(&self.device, home)
            .and_then(|()| home.ip(&["addr", "add", &address, "dev", &self.device]))
            .and_then(|()| home.ip(&["link", "set", &self.device, "mtu", MTU, "up"]))
            .map_err(Error::system(format!("cannot set up the device of {name}")))?;
        Ok(process)
    }

    /// Where it is told its keys; not every daemon removes that when it ends.
    fn socket(&self) -> String {
        format!("/var/run/wireguard/{}.sock", self.device)
    }

    fn leftover(&self) -> Result<TempPath, Error> {
        let failed = Error::system("cannot name the control socket");
        TempPath::try_from_path(self.socket()).map_err(failed)
    }

    /// Tells the daemon its keys over its control socket.
    fn configure(
        &self,
        process: &mut Process,
        peer: &Key,
        peer_at: Option<u16>,
    ) -> Result<(), Error> {
        let socket = self.socket();
        let end = Instant::now() + READY;
        let mut stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < end && process.runs() => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return Err(process.unready(READY)),
            }
        };
        let mut text = format!(
            "set=1\nprivate_key={}\nlisten_port={}\npublic_key={}\nallowed_ip=10.78.0.0/24\n",
            hex(&self.key.private),
            self.port,
            hex(&peer.public)
        );
        if let Some(port) = peer_at {
            let _ = writeln!(text, "endpoint=127.0.0.1:{port}");
        }
        text.push('\n');
        let failed = |source| Error::system(format!("cannot configure {socket}"))(source);
        stream.set_read_timeout(Some(READY)).map_err(failed)?;
        stream.write_all(text.as_bytes()).map_err(failed)?;
        let mut answer = [0; 64];
        let count = stream.read(&mut answer).map_err(failed)?;
        let answer = String::from_utf8_lossy(&answer[..count]);
        match answer.contains("errno=0") {
            true => Ok(()),
            false => Err(failed(io::Error::other(answer.trim().to_owned()))),
        }
    }
}

/// A device's name that no other run has at this moment.
fn device(route: Route, end: char) -> String {
    let letter = route.name().chars().next().unwrap_or('x');
    format!("rb{:x}{letter}{end}", std::process::id())
}

/// The namespace between the daemons, and the far end with the app in it.
struct Ground {
    path: Host,
    far: Host,
    app: App,
}

impl Ground {
    fn new() -> Result<Self, Error> {
        let path = Host::bare().map_err(no_namespace)?;
        let far = Host::bare().map_err(no_namespace)?;
        let app = far.enter(App::start).and_then(|app| app);
        let app = app.map_err(no_namespace)?;
        Ok(Self { path, far, app })
    }
}

/// Two devices of the same program, and the kernel's TCP between them.
pub(super) fn devices(route: Route, program: &Path) -> Result<OpenRoute, Error> {
    let Ground { path, far, app } = Ground::new()?;
    let near = Host::bare().map_err(no_namespace)?;
    let (near_key, far_key) = (Key::generate(), Key::generate());
    let far_daemon = Daemon {
        program,
        device: device(route, 'f'),
        key: &far_key,
        port: FAR_PORT,
        address: FAR,
    };
    let near_daemon = Daemon {
        program,
        device: device(route, 'n'),
        key: &near_key,
        port: NEAR_PORT,
        address: NEAR,
    };
    let local = (FAR, app.port()).into();
    let begin = Instant::now();
    let server = far_daemon.start(&path, &far, &near_key, Some(NEAR_PORT))?;
    let mut client = near_daemon.start(&path, &near, &far_key, Some(FAR_PORT))?;
    inside(near.enter(|| wait_for_port(&mut client, local)))?;
    Ok(OpenRoute {
        start: Some(begin.elapsed()),
        place: Some(Place { near, app }),
        _files: vec![near_daemon.leftover()?, far_daemon.leftover()?],
        ..OpenRoute::plain(route, local, vec![client, server])
    })
}

/// onetun's user-space TCP, to a device of `daemon`.
pub(super) fn onetun(program: &Path, daemon: &Path) -> Result<OpenRoute, Error> {
    let Ground { path, far, app } = Ground::new()?;
    let (near_key, far_key) = (Key::generate(), Key::generate());
    let far_daemon = Daemon {
        program: daemon,
        device: device(Route::Onetun, 'f'),
        key: &far_key,
        port: FAR_PORT,
        address: FAR,
    };
    let server = far_daemon.start(&path, &far, &near_key, None)?;
    let local = inside(path.enter(|| free_port(Ipv4Addr::LOCALHOST)))?;
    let mut command = Command::new(program);
    command
        .arg(format!("{local}:{FAR}:{}:TCP,UDP", app.port()))
        .args(["--endpoint-addr", &format!("127.0.0.1:{FAR_PORT}")])
        .args(["--endpoint-public-key", &far_key.public_base64()])
        .args(["--source-peer-ip", &NEAR.to_string(), "--log", "warn"])
        .env("ONETUN_PRIVATE_KEY", near_key.private_base64());
    let begin = Instant::now();
    let client = inside(path.enter(|| {
        let mut client = Process::start("onetun", &mut command)?;
        wait_for_port(&mut client, local)?;
        Ok(client)
    }))?;
    Ok(OpenRoute {
        start: Some(begin.elapsed()),
        place: Some(Place { near: path, app }),
        _files: vec![far_daemon.leftover()?],
        ..OpenRoute::plain(Route::Onetun, local, vec![client, server])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_and_differ() {
        let names: Vec<String> = [Route::Boringtun, Route::Gotatun, Route::Onetun]
            .into_iter()
            .flat_map(|route| [device(route, 'n'), device(route, 'f')])
            .collect();
        assert!(names.iter().all(|name| name.len() < 16), "{names:?}");
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }

    #[test]
    fn a_key_is_written_in_base64_of_44_letters() {
        let key = Key::generate();
        assert_eq!(key.public_base64().len(), 44);
        assert_ne!(key.public_base64(), key.private_base64());
        assert_eq!(hex(&[0, 171, 16]), "00ab10");
    }
}
