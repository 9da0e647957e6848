//! Streams both ways.
