//! How Stripe behaves while something else breaks.

use super::kind::Kind;
use super::lane::Lane;
use super::proxy::Bug;

/// What befalls a request's first charge, and what Stripe knows of it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// As the sandbox names it.
    pub fault: &'static str,
    pub memory: Memory,
}

/// What Stripe knows of a charge's key when an attempt comes after one that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// All.
    Keeps,
    /// Nothing: the process was down for two days.
    Forgets,
    /// Nothing, and its list says of the charges only that they are pending, until a person asks.
    ForgetsAndIsVague,
}

/// After these, the card is charged and the client does not know.
const CHARGED: [&str; 5] = ["charged_then_server_error", "reply_lost", "truncated", "slow_reply", "no_id"];
/// After these, it is not; nor is it after `hold`, at first.
const NOT_CHARGED: [&str; 9] = [
    "reset",
    "server_error",
    "rate_limited",
    "conflict",
    "bad_request",
    "unauthorized",
    "forbidden",
    "declined",
    "hold",
];

impl Weather {
    pub const FAIR: Self = Self { fault: "none", memory: Memory::Keeps };

    /// All but the fair. What is vague about a charge needs one that was made.
    pub fn foul() -> Vec<Self> {
        let all = |fault| [Memory::Keeps, Memory::Forgets].map(|memory| Self { fault, memory });
        let vague = |fault| Self { fault, memory: Memory::ForgetsAndIsVague };
        CHARGED.into_iter().chain(NOT_CHARGED).flat_map(all).chain(CHARGED.map(vague)).collect()
    }

    /// Whether the first charge is made, and its reply says nothing.
    pub fn charges_in_secret(self) -> bool {
        CHARGED.contains(&self.fault)
    }

    /// What a request may end with that would end with `status` in fair weather. A decline that Stripe has forgotten is
    /// as good as none.
    pub fn may_end_with(self, kind: Kind, status: u16) -> &'static [u16] {
        match (self.fault, self.memory) {
            _ if !kind.can_be_declined() => &[201],
            ("declined", Memory::Keeps) => &[402],
            ("declined", _) => &[201, 402],
            _ if status == 402 => &[402],
            _ => &[201],
        }
    }

    pub(super) async fn set_in(self, lane: &Lane) {
        if self.fault != Self::FAIR.fault {
            lane.world.script(&[self.fault]).await;
        }
        match self.memory {
            Memory::ForgetsAndIsVague => lane.script.plant(Bug::FromStripe(pending)),
            Memory::Keeps | Memory::Forgets => lane.script.uproot(),
        }
    }
}

fn pending(reply: &str) -> String {
    let list = reply.contains("\"data\":[");
    if list { reply.replace("\"succeeded\"", "\"pending\"") } else { reply.to_owned() }
}
