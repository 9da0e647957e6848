//! What a peer may ask for.

use prost::Message;
use relay_wire::addr::{LEGACY_AGENT, agent_address, parse_prefix, service_address};
use relay_wire::proto::tailnet::{CoordinateRequest, Node, coordinate_request};
use uuid::Uuid;

/// Most peers that are told in one message to go ahead.
pub(super) const READY: usize = 1024;
/// Largest node: it is kept, and sent to every peer.
const NODE: usize = 64 << 10;

/// What kind of peer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A client of this agent.
    Client {
        /// The only peer it may open a tunnel to.
        agent: Uuid,
    },
    /// This server's own end of tunnels: a client of every agent.
    Server,
    /// An agent.
    Agent,
}

/// Says why a request is not granted.
pub(super) fn check(id: Uuid, role: Role, request: &CoordinateRequest) -> Result<(), String> {
    let reason = update(id, role, request)
        .and_then(|()| tunnel(role, "add", request.add_tunnel.as_ref()))
        .and_then(|()| tunnel(role, "remove", request.remove_tunnel.as_ref()))
        .and_then(|()| ready(role, request));
    reason.map_err(|reason| format!("authorization: {reason}"))
}

fn update(id: Uuid, role: Role, request: &CoordinateRequest) -> Result<(), String> {
    let Some(update) = &request.update_self else {
        return Ok(());
    };
    let node = update.node.as_ref().ok_or("update_self without a node")?;
    if node.encoded_len() > NODE {
        return Err(format!("node of more than {NODE} bytes"));
    }
    addresses(id, role, node)
}

fn addresses(id: Uuid, role: Role, node: &Node) -> Result<(), String> {
    for text in node.addresses.iter().chain(&node.allowed_ips) {
        let address = parse_prefix(text).map_err(|error| {
            match text.rsplit_once('/').map(|(_, bits)| bits.parse::<u8>()) {
                Some(Ok(bits)) if bits != 128 => {
                    format!("invalid address bits, expected 128, got {bits}")
                }
                _ => format!("parse node address {text:?}: {error}"),
            }
        })?;
        let own = [agent_address(&id), service_address(&id), LEGACY_AGENT];
        if role == Role::Agent && !own.contains(&address) {
            return Err(format!("invalid node address, got {address}"));
        }
    }
    Ok(())
}

fn tunnel(
    role: Role,
    what: &str,
    tunnel: Option<&coordinate_request::Tunnel>,
) -> Result<(), String> {
    let Some(tunnel) = tunnel else { return Ok(()) };
    let only = match role {
        Role::Client { agent } => Some(agent),
        Role::Server => None,
        Role::Agent => return Err("agents cannot open tunnels".to_owned()),
    };
    let id = Uuid::from_slice(&tunnel.id).map_err(|_| {
        let have = tunnel.id.len();
        format!("parse {what} tunnel id: invalid UUID (got {have} bytes)")
    })?;
    match only {
        Some(agent) if id != agent => Err(format!("invalid agent id, expected {agent}, got {id}")),
        _ => Ok(()),
    }
}

fn ready(role: Role, request: &CoordinateRequest) -> Result<(), String> {
    match role {
        Role::Client { .. } | Role::Server if !request.ready_for_handshake.is_empty() => {
            Err("clients may not send ready_for_handshake".to_owned())
        }
        _ => Ok(()),
    }
}
