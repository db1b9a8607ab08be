//! What a mutated model does differently from the protocol.

/// One thing that is left out or done wrong. Each has a test that must find where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A phase's statement asks neither for the lease token nor for the recovery point.
    FenceRemoved,
    /// The lease token counts up in the key's row, instead of being random, and a take-over is lost: as by a failover to a
    /// standby that lagged behind.
    TokenFromCounter,
    /// Each attempt sends Stripe a key of its own.
    ForeignCallKeyPerAttempt,
    /// An outcome that proves nothing is answered for good, as the original did with any error at Stripe.
    TransientErrorFinal,
    /// What was opened is not on disk when Stripe is asked.
    OpenNotFlushed,
    /// The answer is not on disk when the client is told.
    CloseNotFlushed,
    /// A lease that was taken over is not on disk when its holder goes on, so that a crash can bring the last holder's
    /// back.
    TakeOverNotFlushed,
    /// Past Stripe's memory, the charge is made without looking for an earlier one.
    LookUpRemoved,
    /// A worker asks Stripe without a look at its clock, although its lease may have run out a day ago.
    ClockNotChecked,
    /// A worker looks at its clock before it looks the charge up, but not again before it makes one.
    ClockCheckedBeforeLookUpOnly,
    /// A worker that has lost its lease charges at the very time at which Stripe forgets: its clock lags behind the
    /// database's, or the network holds its request up. Not the protocol's fault, but the limit of what it can do.
    LoserChargesWhenStripeForgets,
    /// The reaper removes whatever is old.
    ReaperRemovesUnfinished,
}
