//! What only a demonstration has.

pub mod raise_error;
