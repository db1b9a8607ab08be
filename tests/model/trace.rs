//! Counterexamples as text.

use std::fmt::{self, Display, Formatter, Write};

use stateright::Path;

use crate::database::{Key, Row, Token};
use crate::protocol::{Action, Listing, Reply, State};
use crate::stripe::{Answer, Outcome};
use crate::worker::Step;

/// Returns the steps that lead to a state, one line each, with what the database and Stripe hold after them.
pub(crate) fn trace(path: Path<State, Action>) -> String {
    let mut text = String::new();
    let steps = path.into_vec();
    for (number, pair) in steps.windows(2).enumerate() {
        let [(before, Some(action)), (after, _)] = pair else { continue };
        let _ = writeln!(text, "{}", line(number + 1, &describe(action, before), after));
    }
    text
}

/// Returns one line of a trace.
pub(crate) fn line(number: usize, step: &str, after: &State) -> String {
    format!("{number:4}. {step:<62}  {after}")
}

/// Returns the description of an action in the state before it.
pub(crate) fn describe(action: &Action, before: &State) -> String {
    AttemptResult { action, before }.to_string()
}

/// An action, with the state before it.
struct AttemptResult<'a> {
    action: &'a Action,
    before: &'a State,
}

impl AttemptResult<'_> {
    fn step(&self, worker: usize) -> &'static str {
        match self.before.workers[worker].attempt().map(|attempt| attempt.step) {
            Some(Step::LookUp) => "look-up",
            Some(Step::Charge) => "charge",
            Some(Step::Advance) => "advance",
            Some(Step::Close(_)) => "close",
            Some(Step::Release) => "release",
            Some(Step::Park) => "park",
            None => "answer",
        }
    }
}

impl Display for AttemptResult<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self.action {
            Action::Request { worker } => write!(f, "{}: a client's request arrives", name(worker)),
            Action::Claim { worker } => write!(f, "{}: the completer takes the request up", name(worker)),
            Action::Statement { worker, reply } => {
                let reply = match reply {
                    Reply::Arrives => "",
                    Reply::Lost => ": carried out, but the reply is lost",
                    Reply::Failed => ": not carried out",
                };
                write!(f, "{}: {}{reply}", name(worker), self.step(worker))
            }
            Action::LookUp { worker, listing } => {
                let attempt = self.before.workers[worker].attempt();
                let found = attempt.is_some_and(|attempt| self.before.stripe.has_charge(attempt.foreign_call_key));
                let listing = match listing {
                    Listing::Complete if found => "finds it",
                    Listing::Complete => "there is none",
                    Listing::Failed => "gets no list",
                    Listing::Undecidable => "gets a list that decides nothing",
                };
                write!(f, "{}: looks the charge up: {listing}", name(worker))
            }
            Action::Charge { worker, outcome } => match outcome {
                Outcome::Answered(answer) => write!(f, "{}: charge: Stripe says {answer}", name(worker)),
                Outcome::ReplyLost(answer) => {
                    write!(f, "{}: charge: Stripe says {answer}, but the reply is lost", name(worker))
                }
                Outcome::NotMade => write!(f, "{}: charge: not sent, or refused", name(worker)),
            },
            Action::GiveUp { worker } => write!(f, "{}: sees that the lease has run out", name(worker)),
            Action::Tell { worker } => write!(f, "{}: tells the client", name(worker)),
            Action::WorkerEnds { worker } => write!(f, "{}: ends before {}", name(worker), self.step(worker)),
            Action::DatabaseCrashes { kept } => {
                let lost = self.before.database.unflushed() - kept;
                write!(f, "the database crashes; commits lost: {lost}")
            }
            Action::HandBack => write!(f, "the lease's process is taken for dead, and it is handed back"),
            Action::RetentionPasses => write!(f, "23 hours pass"),
            Action::StripeForgets => write!(f, "Stripe forgets its idempotency keys"),
            Action::Reap => write!(f, "the reaper comes by"),
            Action::RetryParked => write!(f, "a person lets the key be tried again"),
        }
    }
}

impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.database.current().key {
            Key::Absent => f.write_str("no key")?,
            Key::Present(row) => row.fmt(f)?,
            Key::Removed(_) => f.write_str("key removed")?,
        }
        match self.database.unflushed() {
            0 => {}
            unflushed => write!(f, ", {unflushed} not on disk")?,
        }
        match self.database.current().receipts {
            0 => {}
            receipts => write!(f, "; receipts: {receipts}")?,
        }
        write!(f, "; charges: {}", self.stripe.charges())
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.recovery_point)?;
        if let Some(response) = self.response {
            write!(f, " ({response:?})")?;
        }
        if let Some(lease) = self.lease {
            let (Token::Random(token) | Token::Counted(token)) = lease.token;
            write!(f, ", lease {token}")?;
        }
        if self.parked {
            f.write_str(", parked")?;
        }
        Ok(())
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Charged => "charged",
            Self::Declined => "declined",
            Self::Failed { charged: true } => "500, and has charged",
            Self::Failed { charged: false } => "500, and has not charged",
        })
    }
}

/// A, B, C …
fn name(worker: usize) -> char {
    ('A'..='Z').nth(worker).unwrap_or('?')
}
