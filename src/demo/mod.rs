//! What only a demonstration has.

pub mod raise_error;
pub mod seed;
pub mod simulator;

use serde::Deserialize;

/// `[demo]`: what a demonstration has and production must not.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Seed the two users and accept the form field `raise_error`.
    pub enabled: bool,
}
