//! A worker drives the request, for a client or for the completer.
//!
//! Between any two of its steps a worker may be paused for any time, or end for ever. So a zombie is nothing special:
//! it is a worker whose next step comes late. In the model the completer's workers answer a client, too, although the
//! real ones do not: what they store must be a valid answer.

use crate::database::{Response, Token};

/// What one worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Worker {
    Idle,
    /// Acts as the holder of the lease, which it may have lost.
    Attempting(Attempt),
    /// Is about to give the client the stored answer.
    Answering(Response),
}

/// What a worker has read when it took the lease, and what it does next.
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

/// What the worker's own clock shows just before it makes a charge: has the lease run out? The worker does not check
/// the clock before a look-up, which changes nothing.
///
/// Only one comparison of times has to be modelled. Stripe forgets a key a day after the charge was requested; a lease
/// lasts for minutes. So a lease taken before that charge has run out when Stripe forgets it, and so has one that was
/// taken within `stripe.key_retention`, which ends an hour before. So has one that another worker has taken over,
/// except with [`Change::LoserChargesWhenStripeForgets`](crate::change::Change::LoserChargesWhenStripeForgets). At any
/// other time a worker may act on its lease for as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Clock {
    /// The lease may still be running when Stripe forgets.
    Outlasts,
    /// It has run out by then.
    FallsShort,
    /// It has run out.
    RanOut,
    /// The worker does not check its clock again:
    /// [`Change::ClockCheckedBeforeLookUpOnly`](crate::change::Change::ClockCheckedBeforeLookUpOnly).
    Unwatched,
}

/// One call, to the database or to Stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// Looks for a charge with this key.
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
    /// Returns the same attempt, with another next step.
    pub(crate) fn at(self, step: Step) -> Worker {
        Worker::Attempting(Self { step, ..self })
    }
}

impl Step {
    /// Returns whether its statement checks the recovery point, and not the lease alone.
    pub(crate) fn is_phase(self) -> bool {
        match self {
            Self::Advance | Self::Close(_) => true,
            Self::LookUp | Self::Charge | Self::Release | Self::Park => false,
        }
    }

    /// Returns whether the worker may still call Stripe.
    pub(crate) fn is_before_charge(self) -> bool {
        match self {
            Self::LookUp | Self::Charge => true,
            // The next call has its own clock.
            Self::Advance | Self::Close(_) | Self::Release | Self::Park => false,
        }
    }
}
