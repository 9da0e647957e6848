//! What listens on TCP ports of this machine, from procfs (proc(5), coder_facts §2.17).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

/// A row of `/proc/net/tcp` or `tcp6` in state LISTEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// The socket's inode, which `/proc/PID/fd` names as well.
    pub inode: u64,
}

/// A listening port as the agent's HTTP API tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// The process's name; empty when it cannot be read.
    pub process_name: String,
    /// Always `tcp`.
    pub network: &'static str,
    /// The port.
    pub port: u16,
}

/// The smallest port that is told: those below are the agent's own services.
const FIRST_PORT: u16 = 9;

/// All ports that something listens on, each once, by number; `own` ports are left out.
///
/// # Errors
/// When `/proc/net/tcp` cannot be read; a missing `tcp6` is no error.
pub fn ports(own: &[u16]) -> std::io::Result<Vec<Port>> {
    let mut listeners = parse(&fs::read_to_string("/proc/net/tcp")?);
    if let Ok(text) = fs::read_to_string("/proc/net/tcp6") {
        listeners.extend(parse(&text));
    }
    let names = process_names(&listeners);
    let mut found = BTreeMap::new();
    for listener in listeners {
        let port = listener.address.port();
        if port >= FIRST_PORT && !own.contains(&port) {
            found.entry(port).or_insert_with(|| Port {
                process_name: names.get(&listener.inode).cloned().unwrap_or_default(),
                network: "tcp",
                port,
            });
        }
    }
    Ok(found.into_values().collect())
}

/// The LISTEN rows of a procfs table of TCP sockets; rows that do not parse are left out.
pub fn parse(table: &str) -> Vec<Listener> {
    table.lines().skip(1).filter_map(parse_row).collect()
}

fn parse_row(row: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = row.split_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = SocketAddr::new(parse_address(address)?, port);
    Some(Listener {
        address,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// The kernel writes an address as 32-bit words in the machine's byte order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// The names of the processes that hold these sockets, by inode, as far as they can be read.
fn process_names(listeners: &[Listener]) -> HashMap<u64, String> {
    let mut names = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return names;
    };
    for process in processes.flatten() {
        let path = process.path();
        let Ok(descriptors) = fs::read_dir(path.join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let Some(inode) = socket_inode(&descriptor.path()) else {
                continue;
            };
            if listeners.iter().any(|listener| listener.inode == inode) {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                names.entry(inode).or_insert_with(|| name.trim().to_owned());
            }
        }
    }
    names
}

fn socket_inode(descriptor: &std::path::Path) -> Option<u64> {
    let target = fs::read_link(descriptor).ok()?;
    let inode = target
        .to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?;
    inode.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn procfs_rows_of_the_vectors_parse() {
        let text = include_str!("../../../tests/vectors/listening_ports.json");
        let rows: Vec<Value> = serde_json::from_str(text).unwrap();
        let mut checked = 0;
        for row in rows {
            let Some(table) = row["input"]["proc_net_tcp"].as_str() else {
                continue;
            };
            let found: Vec<Value> = parse(table)
                .iter()
                .map(|l| json!({"address": l.address.ip().to_string(), "port": l.address.port()}))
                .collect();
            assert_eq!(
                json!({ "listening": found }),
                row["expect"],
                "{}",
                row["name"]
            );
            checked += 1;
        }
        assert_eq!(checked, 2);
    }

    #[test]
    fn own_listeners_are_found_on_both_families_with_the_name() {
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let all = ports(&[]).unwrap();
            let found = all.iter().find(|found| found.port == port).unwrap();
            assert_eq!(found.process_name, name.trim());
            assert!(
                ports(&[port])
                    .unwrap()
                    .iter()
                    .all(|found| found.port != port)
            );
        }
    }

    #[test]
    fn broken_tables_are_no_trouble() {
        for table in ["", "x", "a\nb c d 0A", "h\n0: zz:1 0:0 0A 0 0 0 0 0 1"] {
            assert_eq!(parse(table), []);
        }
    }
}
