//! The set-up inside the helper: namespaces, device, addresses, routes and the settings of the
//! namespace's TCP.

use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;

use super::device;
use super::netlink::{Netlink, Route};
use super::protocol::{Place, Setup, Step};
use super::reason::{Hints, reason};

/// The addresses of agents and clients, and of services, as Coder assigns them.
const PREFIXES: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0xfd60, 0x627a, 0xa42b, 0, 0, 0, 0, 0), 48),
];
/// What every path carries.
const PROVEN_MTU: u16 = 1280;
/// A super-packet of this size fits one UDP send together with what WireGuard adds, whatever the
/// size of its segments.
const GSO_MAX_SIZE: u32 = 59_840;
const QUEUE: u32 = 4096;
/// Below this a long path would be slower than a few lost packets make it.
const MIN_RECEIVE_WINDOW: u32 = 1 << 20;
const LOOPBACK_INDEX: u32 = 1;

/// The kernel's priority of a route that names none.
const USUAL_PRIORITY: u32 = 1024;

/// The outcome: the devices, and what is needed to change their routes later.
pub(super) struct Interface {
    pub(super) place: Place,
    pub(super) netlink: Netlink,
    /// The kernel's number of each device.
    pub(super) indices: Vec<u32>,
    pub(super) largest: u16,
    pub(super) tcp_offload: bool,
    pub(super) udp_offload: bool,
    pub(super) early_data: bool,
    pub(super) notes: Vec<String>,
}

impl Interface {
    /// Sets what a stream may hold at most that was received and not read. A namespace that is not
    /// relay's own is left as it is.
    pub(super) fn set_receive(&mut self, most: u32) -> Result<(), Errno> {
        if self.place == Place::OwnNamespace {
            return Ok(());
        }
        fs::write("/proc/sys/net/ipv4/tcp_rmem", receive_setting(most))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Why there is no device.
pub(super) struct Failure {
    pub(super) errno: Errno,
    pub(super) reason: String,
}

pub(super) fn run(setup: &Setup) -> Result<(Vec<OwnedFd>, Interface), Failure> {
    let hints = Hints::read();
    let fail = |step| {
        move |errno| Failure {
            errno,
            reason: reason(step, errno, hints),
        }
    };
    let refused = enter_namespace(setup).err();
    let device = open_device(setup).map_err(fail(Step::OpenDevice))?;
    let (place, pattern) = match refused {
        None => (Place::PrivateNamespace, "relay0"),
        Some(_) => (Place::OwnNamespace, "relay%d"),
    };
    let made = setup
        .faults
        .check(Step::MakeInterface)
        .and_then(|()| device::make_interface(&device, pattern));
    let name = match (made, refused) {
        (Ok(name), _) => name,
        // Without a namespace nobody expects the device to be allowed: the namespace is what is
        // missing.
        (Err(Errno::PERM), Some(errno)) => return Err(fail(Step::UserNamespace)(errno)),
        (Err(errno), _) => return Err(fail(Step::MakeInterface)(errno)),
    };
    let mut notes = Vec::new();
    interface_settings(&name, &mut notes);
    let mut early_data = false;
    if place == Place::PrivateNamespace {
        if let Err(errno) = device::set_persistent(&device) {
            notes.push(format!("the TUN device is not persistent: {errno}"));
        }
        settings(setup.receive_window, &mut notes);
        early_data = allow_early_data(&mut notes);
    }
    let (tcp_offload, udp_offload) = set_offload(&device, setup, &mut notes);
    let configured = setup
        .faults
        .check(Step::Configure)
        .and_then(|()| configure(&name, place, setup, &mut notes));
    let (mut netlink, index) = configured.map_err(fail(Step::Configure))?;
    let (mut devices, mut indices) = (vec![device], vec![index]);
    let offload = (tcp_offload, udp_offload);
    for number in 1..setup.devices {
        if place == Place::OwnNamespace {
            notes.push("one loop only: more need a namespace of their own".to_owned());
            break;
        }
        match add_device(number, &mut netlink, setup, offload, &mut notes) {
            Ok((device, index)) => {
                devices.push(device);
                indices.push(index);
            }
            Err(errno) => {
                notes.push(format!(
                    "{number} loops only: no further TUN device: {errno}"
                ));
                break;
            }
        }
    }
    let interface = Interface {
        place,
        netlink,
        indices,
        largest: setup.mtu,
        tcp_offload,
        udp_offload,
        early_data,
        notes,
    };
    Ok((devices, interface))
}

/// Makes a further device of the private namespace. It has no address of its own: the kernel takes
/// packets to those of the first device on any.
fn add_device(
    number: u8,
    netlink: &mut Netlink,
    setup: &Setup,
    offload: (bool, bool),
    notes: &mut Vec<String>,
) -> Result<(OwnedFd, u32), Errno> {
    let device = device::open()?;
    let name = device::make_interface(&device, &format!("relay{number}"))?;
    interface_settings(&name, notes);
    device::set_persistent(&device)?;
    let flags = match offload {
        (true, true) => device::OFFLOAD_TCP | device::OFFLOAD_UDP,
        (true, false) => device::OFFLOAD_TCP,
        (false, _) => 0,
    };
    device::set_offload(&device, flags)?;
    let index = interface_index(&name)?;
    shape(netlink, index, setup, notes)?;
    netlink.up(index)?;
    // For sockets of this device whose peer has no route any more: the first device has the routes
    // of all others.
    let priority = USUAL_PRIORITY + u32::from(number);
    set_prefixes(netlink, index, Place::PrivateNamespace, setup, priority)?;
    Ok((device, index))
}

fn open_device(setup: &Setup) -> Result<OwnedFd, Errno> {
    setup.faults.check(Step::OpenDevice)?;
    device::open()
}

/// Enters a network namespace, by its own right or else inside a user namespace.
fn enter_namespace(setup: &Setup) -> Result<(), Errno> {
    let direct = setup
        .faults
        .check(Step::NetworkNamespace)
        .and_then(|()| device::unshare(false));
    if direct.is_ok() {
        return Ok(());
    }
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    setup.faults.check(Step::UserNamespace)?;
    device::unshare(true)?;
    // Without a map the process is nobody: it still has its capabilities here, so a map that is
    // refused is not the end.
    let (user, group) = (user.as_raw(), group.as_raw());
    let _ = fs::write("/proc/self/setgroups", "deny");
    let _ = fs::write("/proc/self/uid_map", format!("{user} {user} 1"));
    let _ = fs::write("/proc/self/gid_map", format!("{group} {group} 1"));
    Ok(())
}

/// Asks for as much as is wanted and the kernel knows: UDP super-packets came with Linux 6.2.
fn set_offload(device: &OwnedFd, setup: &Setup, notes: &mut Vec<String>) -> (bool, bool) {
    let attempt = |step, flags| {
        setup.faults.check(step)?;
        setup.faults.check(Step::Offload)?;
        device::set_offload(device, flags)
    };
    if setup.tcp_offload && setup.udp_offload {
        let flags = device::OFFLOAD_TCP | device::OFFLOAD_UDP;
        match attempt(Step::UdpOffload, flags) {
            Ok(()) => return (true, true),
            Err(errno) => notes.push(format!("no UDP super-packets on the TUN device: {errno}")),
        }
    }
    if setup.tcp_offload {
        match attempt(Step::Offload, device::OFFLOAD_TCP) {
            Ok(()) => return (true, false),
            Err(errno) => notes.push(format!("no super-packets on the TUN device: {errno}")),
        }
    }
    if let Err(errno) = device::set_offload(device, 0) {
        notes.push(format!("the TUN device keeps its offloads: {errno}"));
    }
    (false, false)
}

fn configure(
    name: &str,
    place: Place,
    setup: &Setup,
    notes: &mut Vec<String>,
) -> Result<(Netlink, u32), Errno> {
    let mut netlink = Netlink::open()?;
    let index = interface_index(name)?;
    shape(&mut netlink, index, setup, notes)?;
    if place == Place::PrivateNamespace {
        netlink.up(LOOPBACK_INDEX)?;
    }
    for address in &setup.addresses {
        netlink.add_address(index, *address)?;
    }
    netlink.up(index)?;
    set_prefixes(&mut netlink, index, place, setup, USUAL_PRIORITY)?;
    wait_for_addresses(&mut netlink, &setup.addresses)?;
    Ok((netlink, index))
}

fn interface_index(name: &str) -> Result<u32, Errno> {
    nix::net::if_::if_nametoindex(name).map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

/// The sizes of a device's packets and of its queue.
fn shape(
    netlink: &mut Netlink,
    index: u32,
    setup: &Setup,
    notes: &mut Vec<String>,
) -> Result<(), Errno> {
    netlink.set_mtu(index, setup.mtu)?;
    for (what, outcome) in [
        ("the size", netlink.set_gso_max_size(index, GSO_MAX_SIZE)),
        ("the queue", netlink.set_queue(index, QUEUE)),
    ] {
        if let Err(errno) = outcome {
            notes.push(format!("{what} of the TUN device stays as it is: {errno}"));
        }
    }
    Ok(())
}

fn set_prefixes(
    netlink: &mut Netlink,
    index: u32,
    place: Place,
    setup: &Setup,
    priority: u32,
) -> Result<(), Errno> {
    for prefix in PREFIXES {
        let route = Route {
            prefix,
            mtu: PROVEN_MTU,
            largest: setup.mtu,
            replace: place == Place::PrivateNamespace,
            priority,
        };
        netlink.set_route(index, route)?;
    }
    Ok(())
}

/// The kernel takes packets to a new address a moment after it has acknowledged the address; the
/// first ones would be lost and come again only after a second.
fn wait_for_addresses(netlink: &mut Netlink, addresses: &[Ipv6Addr]) -> Result<(), Errno> {
    let mut tries = 0;
    for address in addresses {
        while !netlink.is_local(*address)? {
            tries += 1;
            if tries > 5000 {
                return Err(Errno::TIMEDOUT);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(())
}

/// Settings of the device alone, before it comes up: IPv6 on, and no address but those it is given.
fn interface_settings(name: &str, notes: &mut Vec<String>) {
    for (setting, value) in [
        ("disable_ipv6", "0"),
        ("accept_ra", "0"),
        ("addr_gen_mode", "1"),
    ] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
        if let Err(error) = fs::write(path, value) {
            notes.push(format!(
                "{setting} of the TUN device stays as it is: {error}"
            ));
        }
    }
}

/// Settings of the private namespace. Those an older kernel lacks are noted, not needed.
fn settings(receive_window: u32, notes: &mut Vec<String>) {
    let receive = receive_setting(receive_window);
    let settings = [
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv4/tcp_rmem", receive.as_str()),
        ("ipv4/tcp_wmem", "4096 65536 8388608"),
        ("ipv4/tcp_no_metrics_save", "1"),
        ("ipv4/tcp_slow_start_after_idle", "0"),
        ("ipv4/tcp_tw_reuse", "1"),
        ("ipv4/tcp_max_syn_backlog", "8192"),
        ("ipv4/ip_local_port_range", "1024 65535"),
        // The parent binds low ports, and has no capability in here.
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("core/somaxconn", "8192"),
        // A path that comes back is noticed within a second. Retries are then a second apart, so
        // their numbers are raised to keep a stream alive as long as before.
        ("ipv4/tcp_rto_max_ms", "1000"),
        ("ipv4/tcp_retries2", "255"),
        ("ipv4/tcp_orphan_retries", "60"),
        ("ipv4/tcp_syn_retries", "20"),
        ("ipv4/tcp_synack_retries", "20"),
    ];
    let mut bounded = true;
    for (name, value) in settings {
        let backoff = [
            "retries2",
            "orphan_retries",
            "syn_retries",
            "synack_retries",
        ];
        if !bounded && backoff.iter().any(|known| name.ends_with(known)) {
            continue;
        }
        if let Err(error) = fs::write(format!("/proc/sys/net/{name}"), value) {
            bounded &= !name.ends_with("rto_max_ms");
            notes.push(format!("net/{name} stays as it is: {error}"));
        }
    }
}

/// The value of `tcp_rmem` (kernel: networking/ip-sysctl).
fn receive_setting(most: u32) -> String {
    format!("4096 131072 {}", most.max(MIN_RECEIVE_WINDOW))
}

/// Lets streams carry data in their first packet, both ways and without cookies: WireGuard has
/// proven who the peer is. Nothing a path did may switch it off for an hour.
fn allow_early_data(notes: &mut Vec<String>) -> bool {
    const CLIENT: u32 = 0x1;
    const SERVER: u32 = 0x2;
    const CLIENT_WITHOUT_COOKIE: u32 = 0x4;
    const SERVER_WITHOUT_COOKIE: u32 = 0x200;
    const EVERY_LISTENER: u32 = 0x400;
    let wanted = CLIENT | SERVER | CLIENT_WITHOUT_COOKIE | SERVER_WITHOUT_COOKIE | EVERY_LISTENER;
    [
        ("tcp_fastopen_blackhole_timeout_sec", 0),
        ("tcp_fastopen", wanted),
    ]
    .into_iter()
    .all(|(name, value)| {
        let written = fs::write(format!("/proc/sys/net/ipv4/{name}"), value.to_string());
        if let Err(error) = &written {
            notes.push(format!(
                "no data in first packets, as {name} stays: {error}"
            ));
        }
        written.is_ok()
    })
}
