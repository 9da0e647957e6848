//! Files and forwards that are right, and what is said of those that are not.

use std::net::IpAddr;

use super::*;
use crate::spec::Proto;

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const SHARED: &str = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=";

fn error(text: &str) -> String {
    text.parse::<Config>().unwrap_err().to_string()
}

fn with_interface(settings: &str) -> String {
    format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1/24\n{settings}\n[Peer]\nPublicKey = {PUBLIC}\n"
    )
}

fn with_peer(settings: &str) -> String {
    format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1/24\n[Peer]\nPublicKey = {PUBLIC}\n{settings}\n"
    )
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_setting_of_a_file_is_read() {
    let text = format!(
        "# a comment\n\
         [interface]\n\
         Address = 10.192.122.1/24, fd00::1/64 # two\n\
         address=10.10.0.1\n\
         PRIVATEKEY = {PRIVATE}\r\n\
         ListenPort = 51820\n\
         MTU = 1400\n\
         DNS = 10.0.0.53, example.com\n\
         PostUp = iptables -A FORWARD -i %i -j ACCEPT\n\
         \n\
         [Peer]\n\
         PublicKey={PUBLIC}\n\
         PresharedKey = {SHARED}\n\
         AllowedIPs = 10.192.122.3/32, 10.192.124.77/24\n\
         AllowedIPs = fd00::/64,10.1.1.1\n\
         Endpoint = [2001:db8::7]:51820\n\
         PersistentKeepalive = 25\n\
         [PEER]\n\
         PublicKey = {OTHER}\n\
         Endpoint = vpn.example.com:1\n\
         PersistentKeepalive = off\n"
    );
    let config: Config = text.parse().unwrap();
    let Interface {
        addresses,
        mtu,
        listen_port,
        ..
    } = &config.interface;
    assert_eq!(
        addresses[..],
        [ip("10.192.122.1"), ip("fd00::1"), ip("10.10.0.1")]
    );
    assert_eq!((*mtu, *listen_port), (Some(1400), Some(51820)));
    assert_eq!(config.ignored, [(8, "DNS"), (9, "PostUp")]);
    let [first, second] = &config.peers[..] else {
        panic!("{} peers", config.peers.len());
    };
    assert_eq!((first.name(), second.name()), (PUBLIC.into(), OTHER.into()));
    let allowed: Vec<String> = first.allowed.iter().map(Network::to_string).collect();
    assert_eq!(
        allowed,
        [
            "10.192.122.3/32",
            "10.192.124.0/24",
            "fd00::/64",
            "10.1.1.1/32"
        ]
    );
    let hosts = [first, second].map(|peer| peer.endpoint.as_ref().unwrap().to_string());
    assert_eq!(hosts, ["[2001:db8::7]:51820", "vpn.example.com:1"]);
    assert_eq!((first.keepalive, second.keepalive), (Some(25), None));
    assert!(first.preshared_key.is_some() && second.preshared_key.is_none());
}

#[test]
fn what_is_wrong_is_named_by_its_line() {
    for (text, expected) in [
        (
            with_interface("MTU = 1"),
            "line 4: MTU is a number of bytes",
        ),
        (
            with_interface("MTU = +1400"),
            "line 4: MTU is a number of bytes",
        ),
        (
            with_interface("ListenPort = 65536"),
            "line 4: ListenPort is",
        ),
        (
            with_interface("Address = fd00::1/64\nMTU = 1200"),
            "line 5: an MTU of 1200 is too small",
        ),
        (
            with_interface("Adress = 1"),
            "line 4: [Interface] has no setting \"Adress\"",
        ),
        (
            with_interface("Address = 10.0.0.1/33"),
            "line 4: \"10.0.0.1/33\" is not an address",
        ),
        (
            with_interface("[Interface]"),
            "line 4: there is a second [Interface]",
        ),
        (with_interface("[Server]"), "line 4: this is no section"),
        (
            with_interface("nonsense"),
            "line 4: this is neither a section nor",
        ),
        (
            with_peer("Endpoint = 2001:db8::7:51820"),
            "line 6: Endpoint is HOST:PORT",
        ),
        (
            with_peer("Endpoint = host"),
            "line 6: Endpoint is HOST:PORT",
        ),
        (
            with_peer("Endpoint = host:0"),
            "line 6: Endpoint is HOST:PORT",
        ),
        (
            with_peer("AllowedIPs = 10.0.0.0/8, ten"),
            "line 6: \"ten\" is not an address",
        ),
        (
            with_peer("PersistentKeepalive = on"),
            "line 6: PersistentKeepalive is",
        ),
        (
            with_peer("PrivateKey = x"),
            "line 6: [Peer] has no setting \"PrivateKey\"",
        ),
        (
            with_peer(&format!("[Peer]\nPublicKey = {PUBLIC}")),
            "line 7: another [Peer] has this",
        ),
        (
            with_peer("[Peer]\nAllowedIPs = ::/0"),
            "line 6: this [Peer] has no PublicKey",
        ),
        (
            with_peer("PublicKey = short="),
            "line 6: PublicKey is no WireGuard key",
        ),
        (
            "Address = 1".to_owned(),
            "line 1: a setting stands before any section",
        ),
        (String::new(), "the file has no PrivateKey"),
        (
            format!("[Interface]\nPrivateKey={PRIVATE}"),
            "the file has no Address",
        ),
        (
            format!("[Interface]\nPrivateKey={PRIVATE}\nAddress=::1"),
            "the file has no [Peer]",
        ),
    ] {
        let error = error(&text);
        assert!(error.starts_with(expected), "{error:?}, not {expected:?}");
    }
}

#[test]
fn an_end_is_not_its_own_peer() {
    let own = crate::keys::NodePrivate::from_bytes(
        *with_peer("")
            .parse::<Config>()
            .unwrap()
            .interface
            .private_key
            .as_bytes(),
    );
    let mut config = with_peer("").parse::<Config>().unwrap();
    config.peers[0].public_key = *own.public().as_bytes();
    let text = with_peer("").replace(PUBLIC, &config.peers[0].name());
    assert!(error(&text).starts_with("line 5: PublicKey is this end's own"));
}

#[test]
fn no_secret_is_ever_shown() {
    let secrets = [PRIVATE, SHARED];
    let config: Config = with_peer(&format!("PresharedKey = {SHARED}"))
        .parse()
        .unwrap();
    let shown = format!("{config:?}");
    assert!(
        secrets.iter().all(|secret| !shown.contains(secret)),
        "{shown}"
    );
    assert!(!shown.contains(&format!("{:?}", config.interface.private_key.as_bytes())));
    for text in [
        with_interface(PRIVATE),
        with_interface(&format!("{PRIVATE} = x")),
        with_interface(&format!("PrivateKey = {}", &PRIVATE[1..])),
        with_interface(&format!("Address = {PRIVATE}")),
        with_peer(SHARED),
        with_peer(&format!("PresharedKey = {SHARED}{SHARED}")),
        with_peer(&format!("AllowedIPs = {SHARED}")),
        with_peer(&format!("Endpoint = {SHARED}")),
    ] {
        let error = error(&text);
        let leaks = |secret: &&str| error.contains(&secret[1..20]);
        assert!(!secrets.iter().any(leaks), "{error}");
    }
}

#[test]
fn a_network_has_the_addresses_that_begin_like_it() {
    let network = |text: &str| text.parse::<Network>().unwrap();
    for (range, inside, outside) in [
        ("10.1.2.3/8", "10.255.0.1", "11.0.0.0"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
        ("0.0.0.0/0", "255.255.255.255", "::1"),
        ("::/0", "fd00::1", "10.0.0.1"),
        ("fd00::1/127", "fd00::", "fd00::2"),
        ("fd00::1/128", "fd00::1", "fd00::"),
    ] {
        assert!(network(range).contains(ip(inside)), "{range} {inside}");
        assert!(!network(range).contains(ip(outside)), "{range} {outside}");
    }
    for bad in [
        "",
        "/8",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "10.0.0.0/33",
        "::/129",
        "a/8",
    ] {
        assert!(bad.parse::<Network>().is_err(), "{bad}");
    }
}

#[test]
fn forwards_name_a_host_in_the_tunnel() {
    for text in [
        "8080:10.0.0.2:80",
        "8080:[fd00::2]:80",
        "127.0.0.1:8080:10.0.0.2:80",
        "[::1]:8080:[fd00::2]:80",
    ] {
        let forward = Forward::parse(Proto::Tcp, text).unwrap();
        assert_eq!((forward.local, forward.port), (8080, 80));
        assert_eq!(forward.to_string(), text);
    }
    for (text, expected) in [
        ("8080", "write LOCAL:HOST:PORT"),
        ("8080:80", "write LOCAL:HOST:PORT"),
        ("1:2:3:4:5", "write LOCAL:HOST:PORT"),
        ("8080:fd00::2:80", "write LOCAL:HOST:PORT"),
        (
            "8080:[10.0.0.2]:80",
            "the host must be an address in the tunnel",
        ),
        (
            "8080:db.internal:80",
            "the host must be an address in the tunnel",
        ),
        ("0:10.0.0.2:80", "a port is a number"),
        ("8080:10.0.0.2:65536", "a port is a number"),
        ("host:8080:10.0.0.2:80", "the address to listen on"),
    ] {
        let error = Forward::parse(Proto::Udp, text).unwrap_err().to_string();
        let expected = format!("--udp {text:?}: {expected}");
        assert!(error.starts_with(&expected), "{error:?}, not {expected:?}");
    }
}
