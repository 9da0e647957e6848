//! The corners of the RFCs, packet by packet. See `script` for the language.

mod close;
mod early;
mod loss;
mod open;
mod options;
mod receive;
mod resets;
mod script;
mod window;
