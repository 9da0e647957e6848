//! A range of addresses, as `AllowedIPs` names it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The range around `address`; `None` when there are not so many bits.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Network> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => Ipv4Addr::from(u32::from(v4) & mask4(prefix)).into(),
            IpAddr::V6(v6) if prefix <= 128 => {
                Ipv6Addr::from(u128::from(v6) & mask6(prefix)).into()
            }
            _ => return None,
        };
        Some(Network { address, prefix })
    }

    /// How many bits are the same: the more, the more exactly a packet is meant.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(address)) => {
                u32::from(address) & mask4(self.prefix) == u32::from(own)
            }
            (IpAddr::V6(own), IpAddr::V6(address)) => {
                u128::from(address) & mask6(self.prefix) == u128::from(own)
            }
            _ => false,
        }
    }
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix))
        .unwrap_or_default()
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(prefix))
        .unwrap_or_default()
}

impl FromStr for Network {
    type Err = ();

    /// An address, alone or with the number of its bits that count.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(drop)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix.map(str::trim) {
            None => all,
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map_err(drop)?
            }
            Some(_) => return Err(()),
        };
        Network::new(address, prefix).ok_or(())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}
