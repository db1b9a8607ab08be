//! The program's own test support.

#[path = "../../../../../tests/support/cluster.rs"]
pub mod cluster;
#[path = "../../../../../tests/support/framing.rs"]
pub mod framing;
#[path = "../../../../../tests/support/tap.rs"]
pub mod tap;
#[path = "../../../../../tests/support/temp.rs"]
pub mod temp;
