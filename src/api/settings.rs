//! `[api]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[api]`: the HTTP side.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How clients authenticate.
    pub auth: Auth,
    /// Accept `auth = "email"` on an address that other machines can reach. Any client can claim any e-mail address, so
    /// this is for networks that are trusted by other means.
    pub insecure_auth: bool,
    /// Connections served at once; further ones wait in the kernel.
    pub connections: usize,
    /// How long the head of a request may take to arrive, and how long an idle connection is kept.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// How long the body of a request may take to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)),
            auth: Auth::Email,
            insecure_auth: false,
            connections: 2048,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
        }
    }
}

/// How clients authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// `Authorization` holds the user's e-mail address, without proof: meant for demonstrations.
    Email,
}
