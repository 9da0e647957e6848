//! Client of the control plane: REST, the coordination stream, the agent API. It knows nothing of
//! packets.

pub mod rpc;
