//! The relay map that peers get, and the URL by which they reach this server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use relay_wire::derp_map::{DerpMap, Node, Region};
use url::Url;

use crate::error::{Error, Result};

/// The embedded relay's region.
const EMBEDDED: u16 = 999;
/// The first STUN server's region; each has one of its own.
const STUN: u16 = 1000;

/// Where peers find the STUN server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stun {
    /// Its address, where that is not the access URL's host.
    pub(crate) host: Option<IpAddr>,
    /// Its port.
    pub(crate) port: u16,
}

/// Checks a configured URL, or makes one from the address the server listens on.
pub(crate) fn access_url(configured: Option<&Url>, local: SocketAddr, tls: bool) -> Result<Url> {
    let url = match configured {
        Some(url) => url.clone(),
        None => {
            let ip = match local.ip() {
                ip if ip.is_unspecified() => own_address(ip.is_ipv6()),
                ip => ip,
            };
            let scheme = if tls { "https" } else { "http" };
            let text = format!("{scheme}://{}", SocketAddr::new(ip, local.port()));
            Url::parse(&text).map_err(|_| Error::AccessUrl { url: text })?
        }
    };
    if matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err(Error::AccessUrl {
            url: url.to_string(),
        })
    }
}

/// The address by which this machine is seen from its default route; nothing is sent. A wildcard
/// IPv6 socket takes IPv4 as well, and more peers have that.
fn own_address(v6: bool) -> IpAddr {
    // Addresses for documentation (RFC 5737, RFC 3849): they lead to the default route.
    let four = ("0.0.0.0:0", "192.0.2.1:9");
    let six = ("[::]:0", "[2001:db8::1]:9");
    let own = |(any, far): (&str, &str)| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(far).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified()).then_some(ip)
    };
    match v6 {
        false => own(four).unwrap_or(Ipv4Addr::LOCALHOST.into()),
        true => own(four)
            .or_else(|| own(six))
            .unwrap_or(Ipv6Addr::LOCALHOST.into()),
    }
}

/// The map: this server's relay, and its STUN servers.
pub(crate) fn derp_map(access: &Url, stun: &[Stun]) -> DerpMap {
    let host = access.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']).to_owned();
    let relay = Node {
        name: format!("{EMBEDDED}b"),
        region_id: EMBEDDED,
        host_name: host.clone(),
        stun_port: -1,
        derp_port: i32::from(access.port_or_known_default().unwrap_or(443)),
        force_http: access.scheme() == "http",
        ..Node::default()
    };
    let mut map = DerpMap::default();
    map.regions.insert(
        EMBEDDED,
        Region {
            embedded_relay: true,
            id: EMBEDDED,
            code: "coder".to_owned(),
            name: "Coder Embedded Relay".to_owned(),
            avoid: false,
            nodes: vec![relay],
        },
    );
    for (id, stun) in (STUN..).zip(stun) {
        let host = stun.host.map_or_else(|| host.clone(), |ip| ip.to_string());
        map.regions.insert(id, stun_region(id, host, stun.port));
    }
    map
}

/// The map for this process itself: its relay is where it listens, whatever stands before that.
pub(crate) fn own(map: &DerpMap, local: SocketAddr, tls: bool) -> DerpMap {
    let mut map = map.clone();
    let ip = match local.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    for region in map.regions.values_mut().filter(|r| r.embedded_relay) {
        for node in &mut region.nodes {
            node.host_name = ip.to_string();
            node.derp_port = i32::from(local.port());
            node.force_http = !tls;
            // The certificate is for other names, and the way does not leave this machine.
            node.insecure_for_tests = tls;
        }
    }
    map
}

fn stun_region(id: u16, host_name: String, port: u16) -> Region {
    Region {
        embedded_relay: false,
        id,
        code: format!("coder_stun_{id}"),
        name: format!("Coder STUN {id}"),
        avoid: false,
        nodes: vec![Node {
            name: format!("{id}stun0"),
            region_id: id,
            host_name,
            stun_port: i32::from(port),
            stun_only: true,
            ..Node::default()
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_comes_from_the_address_where_none_is_given() {
        let url = |address: &str, tls| {
            access_url(None, address.parse().unwrap(), tls)
                .unwrap()
                .to_string()
        };
        assert_eq!(url("10.0.0.1:3000", false), "http://10.0.0.1:3000/");
        assert_eq!(url("[::1]:443", true), "https://[::1]/");
        assert!(!url("0.0.0.0:80", false).contains("0.0.0.0"));
        assert!(!url("[::]:80", false).contains("[::]"));
        let ftp = Url::parse("ftp://x").unwrap();
        let error = access_url(Some(&ftp), "10.0.0.1:1".parse().unwrap(), false).unwrap_err();
        assert!(error.to_string().contains("ftp://x"), "{error}");
    }

    #[test]
    fn the_server_itself_reaches_its_relay_where_it_listens() {
        let url = Url::parse("https://relay.example.com").unwrap();
        let map = derp_map(&url, &[]);
        let relay = |local: &str, tls| {
            let own = own(&map, local.parse().unwrap(), tls);
            let node = &own.regions[&999].nodes[0];
            (
                node.relay_url().unwrap().to_string(),
                node.insecure_for_tests,
            )
        };
        let plain = relay("0.0.0.0:3000", false);
        assert_eq!(plain, ("http://127.0.0.1:3000/derp".to_owned(), false));
        let tls = relay("[::]:443", true);
        assert_eq!(tls, ("https://[::1]/derp".to_owned(), true));
        let one = relay("192.0.2.1:80", false).0;
        assert_eq!(one, "http://192.0.2.1/derp");
    }

    #[test]
    fn the_map_names_the_relay_and_the_stun_server() {
        let url = Url::parse("http://[::1]:3000").unwrap();
        let stun = |host| [Stun { host, port: 3478 }, Stun { host, port: 3479 }];
        let map = derp_map(&url, &stun(None));
        let relay = &map.regions[&999].nodes[0];
        assert_eq!(relay.stun(), None);
        assert_eq!(
            relay.relay_url().unwrap().as_str(),
            "http://[::1]:3000/derp"
        );
        let node = &map.regions[&1000].nodes[0];
        assert_eq!((node.stun(), node.relay_url()), (Some(3478), None));
        assert_eq!(node.host_name, "::1");
        assert_eq!(map.regions[&1001].nodes[0].stun(), Some(3479));
        let elsewhere = derp_map(&url, &stun(Some(Ipv4Addr::LOCALHOST.into())));
        assert_eq!(elsewhere.regions[&1000].nodes[0].host_name, "127.0.0.1");
        assert_eq!(derp_map(&url, &[]).regions.len(), 1);
    }
}
