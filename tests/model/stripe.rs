//! Stripe: a ledger, which forgets nothing, and idempotency keys, which it forgets.
//!
//! A request happens at one moment. This includes one that the network delays: it has the same effect on Stripe as a
//! worker that is paused before it calls. A look-up sees every charge made before it.

/// What Stripe does with a charge whose key it does not know, and stores under that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Answer {
    Charged,
    Declined,
    /// A 500 of Stripe itself, which is stored and repeated like any other answer, whether money moved or not.
    Failed {
        charged: bool,
    },
}

impl Answer {
    /// The plainest last.
    pub(crate) const ALL: [Self; 4] =
        [Self::Failed { charged: false }, Self::Failed { charged: true }, Self::Declined, Self::Charged];

    fn charges(self) -> bool {
        match self {
            Self::Charged => true,
            Self::Declined => false,
            Self::Failed { charged } => charged,
        }
    }
}

/// The outcome of one attempt to charge the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Stripe's answer arrives.
    Answered(Answer),
    /// Stripe does and stores the same, but the worker does not get the answer.
    ReplyLost(Answer),
    /// Nothing is done or stored: no connection, the key in use by another request just now, too many requests, a
    /// proxy's 502. The kind of error makes no difference to what the worker may conclude.
    NotMade,
}

/// What Stripe knows about an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Entry {
    foreign_call_key: u8,
    /// The number of the call.
    call: u8,
    remembered: Option<Answer>,
    charges: u8,
}

/// Stripe's data of the only customer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Stripe {
    entries: Vec<Entry>,
}

impl Stripe {
    /// Returns the answer stored under this key.
    pub(crate) fn remembered(&self, foreign_call_key: u8) -> Option<Answer> {
        self.entry(foreign_call_key).and_then(|entry| entry.remembered)
    }

    /// Returns whether any key has a stored answer.
    pub(crate) fn remembers(&self) -> bool {
        self.entries.iter().any(|entry| entry.remembered.is_some())
    }

    /// Acts on a request and stores the answer, unless one is stored under its key already. Returns whether it did.
    pub(crate) fn charge(&mut self, call: u8, foreign_call_key: u8, answer: Answer) -> bool {
        if self.remembered(foreign_call_key).is_some() {
            return false;
        }
        let charges = u8::from(answer.charges());
        match self.entries.iter_mut().find(|entry| entry.foreign_call_key == foreign_call_key) {
            Some(entry) => {
                entry.remembered = Some(answer);
                entry.charges += charges;
            }
            None => self.entries.push(Entry { foreign_call_key, call, remembered: Some(answer), charges }),
        }
        true
    }

    /// Returns whether the ledger has a charge made with this key.
    pub(crate) fn has_charge(&self, foreign_call_key: u8) -> bool {
        self.entry(foreign_call_key).is_some_and(|entry| entry.charges > 0)
    }

    /// Returns the number of charges in the ledger that the call of this number made.
    pub(crate) fn charges_of(&self, call: u8) -> u8 {
        self.entries.iter().filter(|entry| entry.call == call).map(|entry| entry.charges).sum()
    }

    /// Returns the number of all charges in the ledger.
    pub(crate) fn charges(&self) -> u8 {
        self.entries.iter().map(|entry| entry.charges).sum()
    }

    /// Forgets the stored answers; the ledger stays.
    pub(crate) fn forget_keys(&mut self) {
        for entry in &mut self.entries {
            entry.remembered = None;
        }
    }

    /// Returns the keys that it has ever seen.
    pub(crate) fn keys(&self) -> impl Iterator<Item = u8> {
        self.entries.iter().map(|entry| entry.foreign_call_key)
    }

    /// Replaces keys by others with the same meaning.
    pub(crate) fn rename_keys(&mut self, mut rename: impl FnMut(u8) -> u8) {
        for entry in &mut self.entries {
            entry.foreign_call_key = rename(entry.foreign_call_key);
        }
    }

    fn entry(&self, foreign_call_key: u8) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.foreign_call_key == foreign_call_key)
    }
}
