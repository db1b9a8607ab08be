//! The parts of the process.

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
