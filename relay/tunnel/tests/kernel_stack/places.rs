//! Where a stack can be had, and what is said where it cannot.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_tunnel::stack::{NetHelper, Offloads, StackOptions, Step, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::pair::*;
use crate::skip;

#[tokio::test]
async fn what_is_missing_is_said_in_one_line() {
    for (step, errno, expected) in [
        (Step::OpenDevice, libc::ENOENT, "modprobe tun"),
        (Step::OpenDevice, libc::EACCES, "chmod 0666"),
        (Step::MakeInterface, libc::EPERM, "network interface"),
        (Step::Configure, libc::EACCES, "disable_ipv6=0"),
    ] {
        let helper = NetHelper::spawn().unwrap().with_fault(step, errno);
        let error = start(helper, &[CLIENT], StackOptions::default()).unwrap_err();
        let line = error.to_string();
        if !line.contains(expected) {
            skip(&line);
        }
        assert!(
            line.starts_with("no kernel stack: ") && !line.contains('\n'),
            "{line}"
        );
    }
}

#[tokio::test]
async fn kernels_without_some_offloads_do_with_less() {
    for (step, tcp, udp) in [
        (Step::UdpOffload, true, false),
        (Step::Offload, false, false),
    ] {
        let helper = NetHelper::spawn().unwrap().with_fault(step, libc::EINVAL);
        let started = start(helper, &[CLIENT], StackOptions::default());
        let (tun, _stack) = match started {
            Ok(started) => started,
            Err(error) => return skip(error),
        };
        let offloads = tun.offloads(Offloads::default());
        assert_eq!((offloads.tun_tcp, offloads.tun_udp), (tcp, udp));
    }
}

/// Set where a test runs this program again, so that what is meant to run there runs only there.
const INSIDE: &str = "RELAY_TEST_INSIDE";

pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs until it is killed, for `the_helper_ends_with_relay_and_not_before`.
#[tokio::test]
#[ignore = "the_helper_ends_with_relay_and_not_before runs it"]
async fn a_stack_that_waits() {
    if !inside() {
        return;
    }
    let helper = NetHelper::spawn().unwrap();
    let _helper = start(helper, &[CLIENT], StackOptions::default());
    println!("waiting");
    tokio::time::sleep(PATIENCE).await;
}

#[test]
fn the_helper_ends_with_relay_and_not_before() {
    let mut relay = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "places::a_stack_that_waits",
            "--nocapture",
        ])
        .env(INSIDE, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(relay.stdout.take().unwrap());
    assert!(
        output
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("waiting"))
    );
    let helper = helper_of(relay.id()).expect("a helper");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        kill(helper, signal).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(kill(helper, None).is_ok(), "it ended by a signal for relay");
    assert!(
        anonymous_kibibytes(helper) < 2048,
        "it holds too much memory"
    );
    relay.kill().unwrap();
    relay.wait().unwrap();
    let end = Instant::now() + PATIENCE;
    while kill(helper, None).is_ok() {
        assert!(Instant::now() < end, "it outlived relay");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn helper_of(process: u32) -> Option<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    threads.flatten().find_map(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).ok()?;
        children
            .split_whitespace()
            .next()?
            .parse()
            .ok()
            .map(Pid::from_raw)
    })
}

fn anonymous_kibibytes(process: Pid) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs in a namespace that `own_namespace_mode` made for it: as a container does that may have the
/// device and no namespaces.
#[tokio::test]
#[ignore = "own_namespace_mode runs it"]
async fn inside_its_own_namespace() {
    if !inside() {
        return;
    }
    let Some(pair) = pair_with(StackOptions::default(), Place::Own) else {
        return;
    };
    large(&pair, 1420);
    exchange(&pair, 8 * MEBIBYTE).await;
    // An application of the same port neither clashes nor is reached past relay.
    let application = tokio::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)).await;
    let application = application.unwrap();
    let error = pair.connect(8080).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let mut incoming = pair.agent.incoming();
    let agent = async {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let offer = next(&mut incoming).await;
            let port = offer.port();
            let mut stream = offer.accept().await.unwrap();
            stream.write_u16(port).await.unwrap();
            streams.push(stream);
        }
        streams
    };
    let clients = async { tokio::join!(pair.connect(8080), pair.connect(8081)) };
    let (_streams, (first, second)) = tokio::join!(agent, clients);
    assert_eq!(first.unwrap().read_u16().await.unwrap(), 8080);
    assert_eq!(second.unwrap().read_u16().await.unwrap(), 8081);
    let untouched = timeout(Duration::from_millis(1), application.accept()).await;
    assert!(untouched.is_err());
    // The other direction needs no rewriting.
    let mut back = pair.client.incoming();
    let accept = async { next(&mut back).await.accept().await.unwrap() };
    let remote = SocketAddrV6::new(CLIENT, 7000, 0, 0);
    let (called, mut taken) = tokio::join!(pair.agent.connect(AGENT, remote), accept);
    called.unwrap().write_all(b"hello").await.unwrap();
    let mut text = String::new();
    taken.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn own_namespace_mode() {
    let script = "exec \"$0\" --ignored --exact places::inside_its_own_namespace --nocapture";
    run_under("unshare", &["--net", "sh", "-c", script]);
}

/// Runs in what `containers_work_or_say_what_they_lack` made for it.
#[tokio::test]
#[ignore = "containers_work_or_say_what_they_lack runs it"]
async fn inside_a_container() {
    if !inside() {
        return;
    }
    let started = start(
        NetHelper::spawn().unwrap(),
        &[CLIENT],
        StackOptions::default(),
    );
    match started {
        Ok(_) => println!("started"),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn containers_work_or_say_what_they_lack() {
    for (capabilities, expected) in [
        ("-sys_admin", "started"),
        (
            "-sys_admin,-net_admin",
            "no kernel stack: the limit of namespaces",
        ),
    ] {
        let script = format!(
            "set -e; echo 0 > /proc/sys/user/max_user_namespaces; \
             exec setpriv --bounding-set={capabilities} --inh-caps={capabilities} \
             \"$0\" --ignored --exact places::inside_a_container --nocapture"
        );
        let arguments = ["--user", "--map-root-user", "--net", "sh", "-c", &script];
        if let Some(text) = run_under("unshare", &arguments) {
            assert!(text.contains(expected), "{text}");
        }
    }
}

/// Runs this program once more below another command.
fn run_under(command: &str, arguments: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        skip("only root may make namespaces for a test");
        return None;
    }
    let output = std::process::Command::new(command)
        .env(INSIDE, "1")
        .args(arguments)
        .arg(std::env::current_exe().unwrap())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            skip(format_args!("{command}: {error}"));
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if let Some((_, reason)) = text.lines().find_map(|line| line.split_once("skip: ")) {
        skip(reason);
        return None;
    }
    assert!(output.status.success(), "{text}{errors}");
    Some(text.into_owned())
}

/// The same as an unprivileged user whose device may be opened: the exchange is run once more, by
/// this program under another user, where only its mount namespace has such a device.
#[test]
fn nobody_needs_root() {
    let script = "set -e; d=$(mktemp -d); mount -t tmpfs none $d; mknod -m 666 $d/tun c 10 200; \
                  mount --bind $d/tun /dev/net/tun; \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$0\" --exact \
                  streams::sixty_four_mebibytes_each_way_arrive_unchanged --nocapture";
    run_under(
        "unshare",
        &["--mount", "--propagation", "private", "sh", "-c", script],
    );
}
