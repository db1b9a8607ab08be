//! The script of the proxies between the process and its servers: counts the messages, and breaks one at a chosen
//! place.
//!
//! A process can stop, and a connection can break, at any instant; but all instants between two messages look the same
//! from outside. So it is enough to try each message, once before it has arrived and once after it was answered. A
//! *boundary* is one such [message](crate::wire). One [`Script`] numbers the boundaries of both proxies in one
//! sequence, so that "the fifth message of this request" has a meaning, whether it goes to Postgres or to Stripe.
//!
//! The script has only faults that networks, servers and kernels have: messages arrive whole or not at all, in order,
//! and an answer may be lost but is never invented. [`Script::plant`] is the exception: it plants bugs that the tests
//! must find.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;

pub use crate::wire::{Boundary, Bug, Proxy, Target};
use crate::wire::{Bugs, Carrier, Upstream};

/// A message that is not held by now never will be.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens at a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed, and its message never arrives.
    Kill,
    /// The connection breaks, and the message never arrives.
    DropBeforeSend,
    /// The message is carried out, and the connection breaks before the answer.
    DropBeforeReply,
    /// The message is carried out, and the process is killed before it has the answer.
    KillBeforeReply,
    /// Postgres ends this backend before the message arrives, and says so.
    Terminate,
    /// The message waits for [`Script::release`].
    Hold,
    /// The message is carried out, and its answer waits for [`Script::release`].
    HoldReply,
}

impl Fault {
    /// The faults that break something.
    pub const BREAKING: [Self; 5] =
        [Self::Kill, Self::DropBeforeSend, Self::DropBeforeReply, Self::KillBeforeReply, Self::Terminate];
    /// The faults that make a worker late.
    pub const HOLDING: [Self; 2] = [Self::Hold, Self::HoldReply];

    /// Returns whether the fault can happen at this boundary: Stripe has no backends.
    pub fn fits(self, boundary: &Boundary) -> bool {
        self != Self::Terminate || boundary.target == Target::Postgres
    }
}

/// A planned fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    fault: Fault,
    /// How many boundaries after the strike before, or after arming; 1 is the next.
    after: usize,
    /// If set, only boundaries equal to this one count: polls may come in between, and change nothing about the work.
    like: Option<Boundary>,
}

impl Strike {
    /// Strikes at the `n`th boundary from now.
    pub fn at(n: usize, fault: Fault) -> Self {
        Self { fault, after: n, like: None }
    }

    /// Strikes at the last of these boundaries, when it is crossed as often as it is in them.
    pub fn at_last_of(boundaries: &[Boundary], fault: Fault) -> Self {
        let last = boundaries.last().expect("a boundary");
        let after = boundaries.iter().filter(|boundary| *boundary == last).count();
        Self { fault, after, like: Some(last.clone()) }
    }
}

/// The planned faults, in their order.
pub type Plan = Vec<Strike>;

/// Counts the boundaries of some proxies and decides what happens at each. Clones are the same script.
#[derive(Clone, Default)]
pub struct Script(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    held: watch::Sender<bool>,
    bugs: Bugs,
}

#[derive(Default)]
struct State {
    counting: Counting,
    crossed: Vec<Boundary>,
    plan: VecDeque<Strike>,
    fired: Vec<(Fault, Boundary)>,
    victim: Option<Box<dyn Fn() + Send>>,
    calls: usize,
}

#[derive(Default)]
enum Counting {
    #[default]
    Off,
    /// Starts at the first label that contains this.
    From(&'static str),
    On,
}

impl Script {
    /// Counts from now on, and breaks messages as planned.
    pub fn arm(&self, plan: Plan) {
        self.start(Counting::On, plan);
    }

    /// Like [`Script::arm`], from the first boundary whose label contains `first`: for roles that begin by themselves,
    /// so that no test can arm the script between their start and their work.
    pub fn arm_from(&self, first: &'static str, plan: Plan) {
        self.start(Counting::From(first), plan);
    }

    fn start(&self, counting: Counting, plan: Plan) {
        let mut state = self.state();
        (state.counting, state.plan) = (counting, plan.into());
        state.crossed.clear();
        state.fired.clear();
    }

    /// Stops counting and breaking. Returns the boundaries that were crossed and the faults that struck since arming.
    pub fn disarm(&self) -> (Vec<Boundary>, Vec<(Fault, Boundary)>) {
        let mut state = self.state();
        state.counting = Counting::Off;
        state.plan.clear();
        (std::mem::take(&mut state.crossed), std::mem::take(&mut state.fired))
    }

    /// Sets how to kill the process.
    pub fn aim(&self, kill: impl Fn() + Send + 'static) {
        self.state().victim = Some(Box::new(kill));
    }

    /// Pauses the count until a label contains `first`: the boundaries before it belong to the start of a process.
    pub fn pause_until(&self, first: &'static str) {
        self.state().counting = Counting::From(first);
    }

    /// Returns how many connections to Stripe are open, or still have a call under way although the process no longer
    /// waits.
    pub fn calls_to_stripe(&self) -> usize {
        self.state().calls
    }

    /// Waits until a message is held.
    pub async fn until_held(&self) {
        let mut held = self.0.held.subscribe();
        let held = tokio::time::timeout(PATIENCE, held.wait_for(|held| *held)).await;
        held.expect("something is held by now").expect("the sender is ours");
    }

    /// Lets the held messages go on.
    pub fn release(&self) {
        self.0.held.send_replace(false);
    }

    /// Applies `bug` to all messages from now on.
    pub fn plant(&self, bug: Bug) {
        self.0.bugs.plant(bug);
    }

    /// Removes the bug: all messages pass unchanged again.
    pub fn remove_bug(&self) {
        self.0.bugs.remove_bug();
    }

    /// Returns why the planted bug has had no effect, if so: the test has then not shown that the bug is found.
    pub fn not_planted(&self) -> Option<String> {
        self.0.bugs.not_planted()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while locked")
    }

    fn cross(&self, boundary: Boundary) -> Option<Fault> {
        let mut state = self.state();
        match state.counting {
            Counting::Off => return None,
            Counting::From(first) if !boundary.label.contains(first) => return None,
            Counting::From(_) | Counting::On => state.counting = Counting::On,
        }
        state.crossed.push(boundary.clone());
        let strike = state.plan.front_mut()?;
        if strike.like.as_ref().is_some_and(|like| *like != boundary) {
            return None;
        }
        strike.after = strike.after.saturating_sub(1);
        // A fault that does not fit strikes at the next boundary that it fits.
        if strike.after > 0 || !strike.fault.fits(&boundary) {
            return None;
        }
        let fault = strike.fault;
        state.plan.pop_front();
        state.fired.push((fault, boundary));
        Some(fault)
    }

    fn kill(&self) {
        self.state().victim.as_ref().expect("aimed before a fault that kills")();
    }

    async fn hold(&self) {
        let mut held = self.0.held.subscribe();
        self.0.held.send_replace(true);
        held.wait_for(|held| !*held).await.expect("the sender is ours");
    }
}

impl Carrier for Script {
    type Call = Call;

    fn call(&self) -> Call {
        self.state().calls += 1;
        Call(self.clone())
    }

    fn bugs(&self) -> &Bugs {
        &self.0.bugs
    }

    async fn carry(
        &self,
        boundary: Boundary,
        message: &[u8],
        upstream: &mut impl Upstream,
    ) -> io::Result<Option<Vec<u8>>> {
        let fault = self.cross(boundary);
        match fault {
            Some(Fault::Kill) => {
                self.kill();
                return Ok(None);
            }
            Some(Fault::DropBeforeSend) => return Ok(None),
            Some(Fault::Terminate) => return upstream.terminate().await.map(Some),
            Some(Fault::Hold) => self.hold().await,
            Some(Fault::DropBeforeReply | Fault::KillBeforeReply | Fault::HoldReply) | None => {}
        }
        let reply = upstream.exchange(message).await?;
        match fault {
            Some(Fault::DropBeforeReply) => return Ok(None),
            Some(Fault::KillBeforeReply) => {
                self.kill();
                return Ok(None);
            }
            Some(Fault::HoldReply) => self.hold().await,
            _ => {}
        }
        Ok(Some(reply))
    }
}

/// A connection to Stripe, for as long as it is open.
pub struct Call(Script);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.state().calls -= 1;
    }
}
