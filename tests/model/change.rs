//! What a mutated model does differently from the protocol.

/// One thing that is left out or done wrong. Each has a test that must find what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A phase's statement checks neither the lease token nor the recovery point.
    FenceRemoved,
    /// The lease token is a counter in the key's row, instead of random, and a take-over is lost: as by a failover to a
    /// standby that lagged behind.
    TokenFromCounter,
    /// Each attempt sends Stripe a key of its own.
    ForeignCallKeyPerAttempt,
    /// An outcome that proves nothing gets a final answer, as the original gave for any error at Stripe.
    TransientErrorFinal,
    /// The opened row is not on disk when Stripe is called.
    OpenNotFlushed,
    /// The answer is not on disk when the client gets it.
    CloseNotFlushed,
    /// A lease that was taken over is not on disk when its holder goes on, so that a crash can restore the former
    /// holder's lease.
    TakeOverNotFlushed,
    /// When Stripe may have forgotten the key, the charge is made without looking for an earlier one.
    LookUpRemoved,
    /// A worker calls Stripe without checking its clock, although its lease may have run out a day ago.
    ClockNotChecked,
    /// A worker checks its clock before it looks the charge up, but not again before it makes one.
    ClockCheckedBeforeLookUpOnly,
    /// A worker that has lost its lease charges at the very time at which Stripe forgets: its clock lags behind the
    /// database's, or the network delays its request. This is not a fault of the protocol, but its limit.
    LoserChargesWhenStripeForgets,
    /// The reaper removes every old key, finished or not.
    ReaperRemovesUnfinished,
}
