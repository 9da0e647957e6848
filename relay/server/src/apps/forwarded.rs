//! Who the client is behind trusted proxies, and the forwarding headers that the app gets
//! (coder_facts §2.12).

use std::net::IpAddr;
use std::str::FromStr;

use http::HeaderMap;
use http::header::{HOST, HeaderName, HeaderValue};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// An address range, as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no address range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address range; write for example 10.0.0.0/8 or fd00::/8")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let parsed = || {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address.parse().ok()?, Some(bits.parse().ok()?)),
                None => (text.parse().ok()?, None),
            };
            let most = if IpAddr::is_ipv4(&address) { 32 } else { 128 };
            let bits = bits.unwrap_or(most);
            (bits <= most).then_some(Self { address, bits })
        };
        parsed().ok_or_else(|| NetworkError(text.to_owned()))
    }
}

impl Network {
    /// Whether `address` lies inside; an IPv4-mapped address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u8| {
            let shift = u32::from(width - self.bits);
            self.bits == 0 || a >> shift == b >> shift
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

/// Which proxies in front of this server are believed, and about what.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Their addresses.
    pub origins: Vec<Network>,
    /// The headers that name the client, the first one that is there wins.
    pub headers: Vec<HeaderName>,
}

impl Trust {
    fn trusts(&self, address: IpAddr) -> bool {
        self.origins.iter().any(|network| network.contains(address))
    }

    /// The client's address: the peer's own, unless the peer is a trusted proxy that names another.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        let named = self
            .headers
            .iter()
            .find_map(|name| self.named(name, headers));
        named.unwrap_or(peer)
    }

    fn named(&self, name: &HeaderName, headers: &HeaderMap) -> Option<IpAddr> {
        let lines = || {
            headers
                .get_all(name)
                .iter()
                .filter_map(|line| line.to_str().ok())
        };
        if name != FORWARDED_FOR {
            return lines().next()?.trim().parse().ok();
        }
        let hops: Vec<&str> = lines().flat_map(|line| line.split(',')).collect();
        // The last hop is the nearest proxy's word; what a client wrote stands further left.
        let nearest: Vec<IpAddr> = (hops.iter().rev())
            .map_while(|hop| hop.trim().parse().ok())
            .collect();
        let untrusted = nearest.iter().find(|hop| !self.trusts(**hop));
        untrusted.or(nearest.last()).copied()
    }

    /// The host that the client asked for: a trusted peer may name it.
    pub fn host<'a>(&self, peer: IpAddr, headers: &'a HeaderMap) -> Option<&'a str> {
        let forwarded = headers.get(FORWARDED_HOST).filter(|_| self.trusts(peer));
        forwarded.or_else(|| headers.get(HOST))?.to_str().ok()
    }

    /// Removes every header by which an untrusted peer could pass for a proxy.
    pub fn filter(&self, peer: IpAddr, headers: &mut HeaderMap) {
        if self.trusts(peer) {
            return;
        }
        for name in &self.headers {
            headers.remove(name);
        }
        for name in [FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST] {
            headers.remove(name);
        }
    }

    /// Sets the headers that the app sees, and gives the client's address.
    pub fn towards_app(&self, peer: IpAddr, tls: bool, headers: &mut HeaderMap) -> IpAddr {
        let client = self.client(peer, headers);
        self.filter(peer, headers);
        let before: Vec<String> = headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|line| line.to_str().ok().map(str::to_owned))
            .collect();
        let before = before.join(",");
        let chain = match () {
            () if !self.trusts(peer) => client.to_string(),
            () if starts_with(&before, client) => format!("{before},{peer}"),
            () => format!("{client},{peer}"),
        };
        if let Ok(chain) = HeaderValue::from_str(&chain) {
            headers.insert(FORWARDED_FOR, chain);
        }
        if !self.trusts(peer) || !headers.contains_key(FORWARDED_PROTO) {
            let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
            headers.insert(FORWARDED_PROTO, proto);
        }
        client
    }
}

fn starts_with(chain: &str, client: IpAddr) -> bool {
    let first = chain.split(',').next().unwrap_or_default();
    first.trim().parse() == Ok(client)
}

/// `sec-websocket-key` as RFC 6455 writes it: some servers compare the case.
pub fn wire_case(name: &str) -> String {
    super::cors::canonical(name).replace("Websocket", "WebSocket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_and_mapped_ones() {
        let network: Network = "10.0.0.0/8".parse().unwrap();
        assert!(network.contains("10.9.8.7".parse().unwrap()));
        assert!(network.contains("::ffff:10.1.1.1".parse().unwrap()));
        assert!(!network.contains("11.0.0.1".parse().unwrap()));
        assert!(
            "0.0.0.0/0"
                .parse::<Network>()
                .unwrap()
                .contains("1.2.3.4".parse().unwrap())
        );
        assert!("10.0.0.0/33".parse::<Network>().is_err());
    }

    #[test]
    fn what_a_client_writes_in_front_does_not_hide_what_the_proxy_says() {
        let trust = Trust {
            origins: vec!["10.0.0.0/8".parse().unwrap()],
            headers: vec![FORWARDED_FOR],
        };
        let mut headers = HeaderMap::new();
        let line = "nonsense, 1.2.3.4, 5.6.7.8, 10.0.0.2";
        headers.insert(FORWARDED_FOR, line.parse().unwrap());
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(trust.client(peer, &headers).to_string(), "5.6.7.8");
    }
}
