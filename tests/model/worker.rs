//! A worker: whoever drives the request, for a client or for the completer.
//!
//! Between any two of its steps a worker may be paused for as long as the others like, or end for ever. A zombie
//! is therefore nothing special, just a worker whose turn comes late. The completer's workers tell a client too,
//! which is more than they do: what they store must be fit to be told.

use crate::database::{Response, Token};

/// What one worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Worker {
    Idle,
    /// Believes that it holds the lease.
    Attempting(Attempt),
    /// Is about to tell the client what is stored.
    Answering(Response),
}

/// What a worker took away when it took the lease, and what it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Attempt {
    pub(crate) token: Token,
    /// See [`Lease::acquisition`](crate::database::Lease::acquisition).
    pub(crate) acquisition: u8,
    /// The number of the foreign call that is next.
    pub(crate) call: u8,
    pub(crate) foreign_call_key: u8,
    pub(crate) clock: Clock,
    pub(crate) step: Step,
}

/// What the worker's own clock says, when it looks right before it asks Stripe for a charge: has the lease run out? It does
/// not look before a look-up, which changes nothing.
///
/// Hours need no modelling but for one comparison. Stripe forgets a key a day after the charge was asked for; a
/// lease lasts for minutes. So a lease taken before that charge has run out when Stripe forgets it, and so has one
/// that was taken within `stripe.key_retention`, which ends an hour before. And so has one that another has taken over,
/// but for [`Change::LoserChargesWhenStripeForgets`](crate::change::Change::LoserChargesWhenStripeForgets). At any
/// other time a worker may believe in its lease for as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Clock {
    /// The lease may still be running when Stripe forgets.
    Outlasts,
    /// It has run out by then.
    FallsShort,
    /// It has run out.
    RanOut,
    /// The worker does not look again:
    /// [`Change::ClockCheckedBeforeLookUpOnly`](crate::change::Change::ClockCheckedBeforeLookUpOnly).
    Unwatched,
}

/// One call, to the database or to Stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// Is there a charge with our key already?
    LookUp,
    Charge,
    /// From one foreign call to the next.
    Advance,
    Close(Response),
    Release,
    Park,
}

impl Worker {
    pub(crate) fn attempt(&self) -> Option<&Attempt> {
        match self {
            Self::Attempting(attempt) => Some(attempt),
            Self::Idle | Self::Answering(_) => None,
        }
    }

    pub(crate) fn attempt_mut(&mut self) -> Option<&mut Attempt> {
        match self {
            Self::Attempting(attempt) => Some(attempt),
            Self::Idle | Self::Answering(_) => None,
        }
    }
}

impl Attempt {
    /// The same attempt, about to do something else.
    pub(crate) fn at(self, step: Step) -> Worker {
        Worker::Attempting(Self { step, ..self })
    }
}

impl Step {
    /// Whether its statement asks for the recovery point, and not for the lease alone.
    pub(crate) fn is_phase(self) -> bool {
        match self {
            Self::Advance | Self::Close(_) => true,
            Self::LookUp | Self::Charge | Self::Release | Self::Park => false,
        }
    }

    /// Whether the worker may still ask Stripe.
    pub(crate) fn is_before_charge(self) -> bool {
        match self {
            Self::LookUp | Self::Charge => true,
            // The next call has a clock of its own.
            Self::Advance | Self::Close(_) | Self::Release | Self::Park => false,
        }
    }
}
