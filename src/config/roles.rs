//! Which parts of the process there are, and which of them are on.

use serde::Deserialize;

use super::Config;

/// A part of the process that can be on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Role {
    /// The private database server, on when `database.embedded` is and no `database.url` is given.
    Postgres,
    /// The stand-in for Stripe.
    StripeSandbox,
    /// Answers HTTP.
    Api,
    /// Finishes what clients abandoned.
    Completer,
    /// Moves staged jobs into the queue.
    Enqueuer,
    /// Works the default queue.
    Worker,
    /// Removes old keys, and jobs that were finished long ago.
    Reaper,
    /// Sends random traffic.
    Simulator,
}

impl Role {
    /// Every role, in the order in which they start.
    pub const ALL: [Self; 8] = [
        Self::Postgres,
        Self::StripeSandbox,
        Self::Api,
        Self::Completer,
        Self::Enqueuer,
        Self::Worker,
        Self::Reaper,
        Self::Simulator,
    ];

    /// Its name in config, flags and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::StripeSandbox => "stripe_sandbox",
            Self::Api => "api",
            Self::Completer => "completer",
            Self::Enqueuer => "enqueuer",
            Self::Worker => "worker",
            Self::Reaper => "reaper",
            Self::Simulator => "simulator",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `[roles]`: which roles this process runs. Several processes may run any mix against one database.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are the names in `Role`")]
pub struct Roles {
    pub api: bool,
    pub completer: bool,
    pub enqueuer: bool,
    pub worker: bool,
    pub reaper: bool,
    pub simulator: bool,
    pub stripe_sandbox: bool,
}

impl Default for Roles {
    /// What production needs; the simulator and the sandbox belong to a demonstration.
    fn default() -> Self {
        Self {
            api: true,
            completer: true,
            enqueuer: true,
            worker: true,
            reaper: true,
            simulator: false,
            stripe_sandbox: false,
        }
    }
}

impl Config {
    /// Whether this process runs `role`.
    pub fn runs(&self, role: Role) -> bool {
        match role {
            Role::Postgres => self.database.embedded && self.database.url.is_none(),
            Role::StripeSandbox => self.roles.stripe_sandbox,
            Role::Api => self.roles.api,
            Role::Completer => self.roles.completer,
            Role::Enqueuer => self.roles.enqueuer,
            Role::Worker => self.roles.worker,
            Role::Reaper => self.roles.reaper,
            Role::Simulator => self.roles.simulator,
        }
    }

    /// The roles that this process runs, in the order in which they start.
    pub fn enabled_roles(&self) -> Vec<Role> {
        Role::ALL.into_iter().filter(|role| self.runs(*role)).collect()
    }

    pub(super) fn set_role(&mut self, role: Role, on: bool) {
        *match role {
            Role::Postgres => &mut self.database.embedded,
            Role::StripeSandbox => &mut self.roles.stripe_sandbox,
            Role::Api => &mut self.roles.api,
            Role::Completer => &mut self.roles.completer,
            Role::Enqueuer => &mut self.roles.enqueuer,
            Role::Worker => &mut self.roles.worker,
            Role::Reaper => &mut self.roles.reaper,
            Role::Simulator => &mut self.roles.simulator,
        } = on;
    }
}
