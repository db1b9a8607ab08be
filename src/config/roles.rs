//! `[roles]`: which parts of the process are on.

use serde::Deserialize;

use super::Config;
use crate::role::Role;

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
