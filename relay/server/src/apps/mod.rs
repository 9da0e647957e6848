//! The dashboard route: which app a request means, who may see it, and what is changed on the way.
//!
//! Everything in here decides and rewrites; nothing touches a socket or the database.

pub mod access;
pub mod cookies;
pub mod cors;
pub mod forwarded;
pub mod hostname;
pub mod identity;
pub mod names;
pub mod pattern;
pub mod ports;
pub mod redirect;
pub mod settings;
pub mod token;
