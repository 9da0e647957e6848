//! WebSockets and other upgrades.
