//! The workspace's side of the tunnel: joins the control plane, and serves the ports of this
//! machine's loopback to the peers that the control plane names.

pub mod health;
pub mod listening;
mod tcp;
mod udp;
