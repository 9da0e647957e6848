//! Numbers of messages (RFC 4250 §4.1.2) and of reasons.

pub(in crate::ssh) const DISCONNECT: u8 = 1;
pub(in crate::ssh) const IGNORE: u8 = 2;
pub(in crate::ssh) const UNIMPLEMENTED: u8 = 3;
pub(in crate::ssh) const DEBUG: u8 = 4;
pub(in crate::ssh) const SERVICE_REQUEST: u8 = 5;
pub(in crate::ssh) const SERVICE_ACCEPT: u8 = 6;
pub(in crate::ssh) const EXT_INFO: u8 = 7;
pub(in crate::ssh) const KEXINIT: u8 = 20;
pub(in crate::ssh) const NEWKEYS: u8 = 21;
pub(in crate::ssh) const KEX_ECDH_INIT: u8 = 30;
pub(in crate::ssh) const KEX_ECDH_REPLY: u8 = 31;
pub(in crate::ssh) const USERAUTH_REQUEST: u8 = 50;
pub(in crate::ssh) const USERAUTH_SUCCESS: u8 = 52;
pub(in crate::ssh) const USERAUTH_PK_OK: u8 = 60;
pub(in crate::ssh) const GLOBAL_REQUEST: u8 = 80;
pub(in crate::ssh) const REQUEST_SUCCESS: u8 = 81;
pub(in crate::ssh) const REQUEST_FAILURE: u8 = 82;
pub(in crate::ssh) const CHANNEL_OPEN: u8 = 90;
pub(in crate::ssh) const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
pub(in crate::ssh) const CHANNEL_OPEN_FAILURE: u8 = 92;
pub(in crate::ssh) const CHANNEL_WINDOW_ADJUST: u8 = 93;
pub(in crate::ssh) const CHANNEL_DATA: u8 = 94;
pub(in crate::ssh) const CHANNEL_EXTENDED_DATA: u8 = 95;
pub(in crate::ssh) const CHANNEL_EOF: u8 = 96;
pub(in crate::ssh) const CHANNEL_CLOSE: u8 = 97;
pub(in crate::ssh) const CHANNEL_REQUEST: u8 = 98;
pub(in crate::ssh) const CHANNEL_SUCCESS: u8 = 99;
pub(in crate::ssh) const CHANNEL_FAILURE: u8 = 100;

/// Why a connection is ended (RFC 4253 §11.1): the peer broke the protocol.
pub(in crate::ssh) const PROTOCOL_ERROR: u32 = 2;

/// Extended data that is standard error (RFC 4254 §5.2).
pub(in crate::ssh) const STDERR: u32 = 1;
