//! Stands between the process and what it talks to, counts what crosses, and breaks it at a chosen crossing.
//!
//! A process can stop, and a connection can break, at any instant; but all instants between two messages look the
//! same from outside. So it is enough to try each message, once before it has arrived and once after it was answered.
//! A *boundary* is one such message: to Postgres a flight (all up to a `Sync`, or a simple query), to Stripe a
//! request. One [`Script`] numbers the boundaries of both proxies in one sequence, so that "the fifth thing this
//! request does" has a meaning, whomever it is said to.
//!
//! Only faults that networks, servers and kernels have: messages arrive whole or not at all, in order, and an answer
//! is lost but never invented. [`Script::plant`] is the exception, for bugs that are planted to be found.

mod bug;
mod postgres;
mod stripe;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use bug::Bug;

/// What has not been held by now never will be.
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
    /// Those that break something.
    pub const BREAKING: [Self; 5] =
        [Self::Kill, Self::DropBeforeSend, Self::DropBeforeReply, Self::KillBeforeReply, Self::Terminate];
    /// Those that make a worker late.
    pub const HOLDING: [Self; 2] = [Self::Hold, Self::HoldReply];

    /// Whether it can happen there: Stripe has no backends.
    pub fn fits(self, boundary: &Boundary) -> bool {
        self != Self::Terminate || boundary.target == Target::Postgres
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Postgres,
    Stripe,
}

/// A message that crosses, as reports name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary {
    pub target: Target,
    pub label: String,
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.target, self.label)
    }
}

/// A fault to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    fault: Fault,
    /// At so many boundaries after the strike before, or after arming; 1 is the next.
    after: usize,
    /// Only those like this one count: polls may come in between, and change nothing about the work.
    like: Option<Boundary>,
}

impl Strike {
    /// At the `n`th boundary from now.
    pub fn at(n: usize, fault: Fault) -> Self {
        Self { fault, after: n, like: None }
    }

    /// At the last of these boundaries, when it is crossed as often as it is in them.
    pub fn at_last_of(boundaries: &[Boundary], fault: Fault) -> Self {
        let last = boundaries.last().expect("a boundary");
        let after = boundaries.iter().filter(|boundary| *boundary == last).count();
        Self { fault, after, like: Some(last.clone()) }
    }
}

/// Faults to come, in their order.
pub type Plan = Vec<Strike>;

/// Counts the boundaries of some proxies and decides what happens at each. Clones are the same script.
#[derive(Clone, Default)]
pub struct Script(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    held: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    counting: Counting,
    crossed: Vec<Boundary>,
    plan: VecDeque<Strike>,
    fired: Vec<(Fault, Boundary)>,
    victim: Option<Box<dyn Fn() + Send>>,
    bug: Option<bug::Planted>,
    calls: usize,
}

#[derive(Default)]
enum Counting {
    #[default]
    Off,
    /// Not before a label that contains this.
    From(&'static str),
    On,
}

impl Script {
    /// Counts from now on, and breaks what the plan says.
    pub fn arm(&self, plan: Plan) {
        self.start(Counting::On, plan);
    }

    /// As [`Script::arm`], from the first boundary on whose label contains `first`: for roles that begin by
    /// themselves, so that nobody can arm between their start and their work.
    pub fn arm_from(&self, first: &'static str, plan: Plan) {
        self.start(Counting::From(first), plan);
    }

    fn start(&self, counting: Counting, plan: Plan) {
        let mut state = self.state();
        (state.counting, state.plan) = (counting, plan.into());
        state.crossed.clear();
        state.fired.clear();
    }

    /// Breaks nothing any more, and says what has crossed and what was broken since arming.
    pub fn disarm(&self) -> (Vec<Boundary>, Vec<(Fault, Boundary)>) {
        let mut state = self.state();
        state.counting = Counting::Off;
        state.plan.clear();
        (std::mem::take(&mut state.crossed), std::mem::take(&mut state.fired))
    }

    /// How to kill the process, from now on.
    pub fn aim(&self, kill: impl Fn() + Send + 'static) {
        self.state().victim = Some(Box::new(kill));
    }

    /// Goes on counting only where a label contains `first`: what comes before is a process that starts again.
    pub fn pause_until(&self, first: &'static str) {
        self.state().counting = Counting::From(first);
    }

    /// How many connections to Stripe are open, or have something under way there that nobody waits for any more.
    pub fn calls_to_stripe(&self) -> usize {
        self.state().calls
    }

    /// Waits until something is held.
    pub async fn until_held(&self) {
        let mut held = self.0.held.subscribe();
        let held = tokio::time::timeout(PATIENCE, held.wait_for(|held| *held)).await;
        held.expect("something is held by now").expect("the sender is ours");
    }

    /// Lets go on what is held.
    pub fn release(&self) {
        self.0.held.send_replace(false);
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

    /// Takes one message across. `None`: it breaks here, and both sides must be closed.
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

/// The far side of a connection.
trait Upstream {
    /// Sends a message and reads all of its answer.
    async fn exchange(&mut self, message: &[u8]) -> io::Result<Vec<u8>>;
    /// Has the far side end this connection, and reads what it says to that.
    async fn terminate(&mut self) -> io::Result<Vec<u8>>;
}

/// A listening proxy; when it is dropped, its connections break.
pub struct Proxy {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Between the process and this Postgres, which must trust its user.
    pub async fn postgres(script: &Script, upstream: &tokio_postgres::Config) -> Self {
        let (script, upstream) = (script.clone(), upstream.clone());
        Self::serve(move |client| postgres::relay(client, script.clone(), upstream.clone())).await
    }

    /// Between the process and this sandbox of Stripe.
    pub async fn stripe(script: &Script, upstream: SocketAddr) -> Self {
        let script = script.clone();
        Self::serve(move |client| stripe::relay(client, script.clone(), upstream)).await
    }

    async fn serve<F>(relay: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).expect("nodelay");
                connections.spawn(relay(client));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Cuts a stream of bytes into messages.
struct Messages<R> {
    source: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    fn new(source: R) -> Self {
        Self { source, buffer: Vec::new() }
    }

    /// The next message, or `None` at the end of the stream. `length` says how long the message is that these bytes
    /// begin, once they tell. Dropping the future loses nothing.
    async fn next(&mut self, length: impl Fn(&[u8]) -> Option<usize>) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = length(&self.buffer).filter(|length| *length <= self.buffer.len()) {
                return Ok(Some(self.buffer.drain(..length).collect()));
            }
            if self.source.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
