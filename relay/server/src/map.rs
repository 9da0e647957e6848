//! The relay map that peers get, and the URL by which they reach this server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use relay_wire::derp_map::{DerpMap, Node, Region};
use url::Url;

use crate::error::{Error, Result};

/// The embedded relay's region.
const EMBEDDED: u16 = 999;
/// The STUN server's region.
const STUN: u16 = 1000;

/// Checks a configured URL, or makes one from the address the server listens on.
pub(crate) fn access_url(configured: Option<&Url>, local: SocketAddr, tls: bool) -> Result<Url> {
    let url = match configured {
        Some(url) => url.clone(),
        None => {
            let ip = match local.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
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

/// The map: this server's relay, and its STUN server where there is one.
pub(crate) fn derp_map(access: &Url, stun: Option<SocketAddr>) -> DerpMap {
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
    if let Some(address) = stun {
        map.regions.insert(STUN, stun_region(host, address.port()));
    }
    map
}

fn stun_region(host_name: String, port: u16) -> Region {
    Region {
        embedded_relay: false,
        id: STUN,
        code: format!("coder_stun_{STUN}"),
        name: format!("Coder STUN {STUN}"),
        avoid: false,
        nodes: vec![Node {
            name: format!("{STUN}stun0"),
            region_id: STUN,
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
        assert_eq!(url("0.0.0.0:80", false), "http://127.0.0.1/");
        assert_eq!(url("[::]:443", true), "https://[::1]/");
        let ftp = Url::parse("ftp://x").unwrap();
        let error = access_url(Some(&ftp), "10.0.0.1:1".parse().unwrap(), false).unwrap_err();
        assert!(error.to_string().contains("ftp://x"), "{error}");
    }

    #[test]
    fn the_map_names_the_relay_and_the_stun_server() {
        let url = Url::parse("http://[::1]:3000").unwrap();
        let map = derp_map(&url, Some("[::1]:3478".parse().unwrap()));
        let relay = &map.regions[&999].nodes[0];
        assert_eq!(relay.stun(), None);
        assert_eq!(
            relay.relay_url().unwrap().as_str(),
            "http://[::1]:3000/derp"
        );
        let stun = &map.regions[&1000].nodes[0];
        assert_eq!((stun.stun(), stun.relay_url()), (Some(3478), None));
        assert_eq!(derp_map(&url, None).regions.len(), 1);
    }
}
