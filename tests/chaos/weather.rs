//! The weather of a run: how Stripe behaves while something else breaks.

use super::kind::Kind;
use super::lane::Lane;
use super::proxy::Bug;

/// The fault of a request's first call to Stripe, and what Stripe remembers later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// The sandbox's name of the fault.
    pub fault: &'static str,
    pub memory: Memory,
}

/// What Stripe still knows of a call's key when a failed attempt is followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Everything.
    Keeps,
    /// Nothing: the process was down for two days.
    Forgets,
    /// Nothing, and its list shows the charges only as pending, until a person asks.
    ForgetsAndIsVague,
}

/// After these, the card is charged and the client does not know.
const CHARGED: [&str; 5] = ["charged_then_server_error", "reply_lost", "truncated", "slow_reply", "no_id"];
/// After these, the card is not charged; nor is it after `hold`, at first.
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

    /// Returns all weathers but the fair one. A list can be vague only about a charge that was made.
    pub fn faulty() -> Vec<Self> {
        let all = |fault| [Memory::Keeps, Memory::Forgets].map(|memory| Self { fault, memory });
        let vague = |fault| Self { fault, memory: Memory::ForgetsAndIsVague };
        CHARGED.into_iter().chain(NOT_CHARGED).flat_map(all).chain(CHARGED.map(vague)).collect()
    }

    /// Returns whether the first charge is made but its reply does not say so.
    pub fn charges_without_reply(self) -> bool {
        CHARGED.contains(&self.fault)
    }

    /// Returns the statuses that a request may end with if it ends with `status` in fair weather. When Stripe has
    /// forgotten a decline, the next attempt may succeed.
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
            lane.app.script(&[self.fault]).await;
        }
        match self.memory {
            Memory::ForgetsAndIsVague => lane.script.plant(Bug::FromStripe(pending)),
            Memory::Keeps | Memory::Forgets => lane.script.remove_bug(),
        }
    }
}

fn pending(reply: &str) -> String {
    let list = reply.contains("\"data\":[");
    if list { reply.replace("\"succeeded\"", "\"pending\"") } else { reply.to_owned() }
}
