//! What the benchmarks of engines share: connections to measure, and the machine's busy time.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// The ends of a connection over loopback, without delay (`TCP_NODELAY`).
pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a listener has an address");
    let near = TcpStream::connect(address).expect("the listener is there");
    let (far, _) = listener.accept().expect("the connection is there");
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("TCP has this option");
    }
    (near, far)
}

/// How long all processors were busy since the machine started (proc_stat(5)): in steps of a tick,
/// 10 ms as a rule.
pub(crate) fn machine_time() -> Duration {
    let counts = std::fs::read_to_string("/proc/stat").expect("the kernel counts");
    let all = counts.lines().next().expect("it has a line");
    let counts: Vec<u64> = all
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = counts[..] else {
        panic!("it has ten numbers: {all}");
    };
    in_ticks(user + nice + system + irq + softirq)
}

/// The length of so many of the kernel's ticks.
pub(crate) fn in_ticks(ticks: u64) -> Duration {
    let in_a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Duration::from_secs_f64(ticks as f64 / in_a_second as f64)
}
