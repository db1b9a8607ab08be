//! A seat belongs to one of the model's workers: the program's own attempt runs here as a task, behind a gate.

use std::sync::Arc;
use std::time::Duration;

use atomic_phases::clock::Clock;
use atomic_phases::database::{Database, tls};
use rocket_rides_atomic::stripe;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::gate::{Fate, Gate, HeldReply, PendingMessage};
use super::operation::{AttemptResult, Means};
use super::times::STRIPE_TIMEOUT;
use crate::support::app::pool_of;
use crate::wire::{Bugs, Proxy};

/// A worker that neither sends a message nor ends for this long hangs.
const PATIENCE: Duration = Duration::from_secs(25);

pub(super) struct Seat {
    /// The process whose attempts run here.
    pub(super) process: Uuid,
    knocks: UnboundedReceiver<PendingMessage>,
    database: Database,
    stripe: stripe::Client,
    /// The clock of the attempt that is under way, and how far it is ahead.
    clock: Clock,
    ahead: Duration,
    task: Option<JoinHandle<AttemptResult>>,
    held: Option<HeldReply>,
    _proxies: [Proxy; 2],
}

/// What a worker does when it goes on.
pub(super) enum Next {
    Asks(PendingMessage),
    Ends(AttemptResult),
    Hangs,
}

impl Seat {
    pub(super) async fn new(
        bugs: &Arc<Bugs>,
        database: &tokio_postgres::Config,
        sandbox: std::net::SocketAddr,
        process: Uuid,
    ) -> Self {
        let (gate, knocks) = Gate::new(bugs);
        let proxies = [Proxy::postgres(&gate, database).await, Proxy::stripe(&gate, sandbox).await];
        Self {
            process,
            knocks,
            database: connect(&proxies[0], database).await.of_process(process),
            stripe: stripe::Client::new(&proxies[1].stripe_url(), &"sk_test_model".into(), STRIPE_TIMEOUT).unwrap(),
            clock: Clock::default(),
            ahead: Duration::ZERO,
            task: None,
            held: None,
            _proxies: proxies,
        }
    }

    /// Starts an attempt, which runs until its first step. Its clock is ahead by `ahead`.
    pub(super) fn start<F>(&mut self, ahead: Duration, attempt: impl FnOnce(Means) -> F)
    where
        F: Future<Output = AttemptResult> + Send + 'static,
    {
        assert!(self.task.is_none(), "one attempt at a time");
        (self.clock, self.ahead) = (Clock::default(), Duration::ZERO);
        self.be_ahead(ahead);
        let means =
            Means { database: self.database.clone(), stripe: self.stripe.clone(), clock: self.clock.clone() };
        self.task = Some(tokio::spawn(attempt(means)));
    }

    /// Sets how far the worker's clock is ahead of the clock that timed its lease.
    pub(super) fn be_ahead(&mut self, ahead: Duration) {
        self.clock.advance(ahead.saturating_sub(self.ahead));
        self.ahead = self.ahead.max(ahead);
    }

    /// Delivers the reply that the worker waits for, and lets it go on until it sends a message or ends.
    pub(super) async fn next(&mut self) -> Next {
        self.held = None;
        let task = self.task.as_mut().expect("an attempt");
        let next = async {
            tokio::select! {
                biased;
                Some(knock) = self.knocks.recv() => Next::Asks(knock),
                told = &mut *task => Next::Ends(told.unwrap_or_else(|panic| AttemptResult::Strange(panic.to_string()))),
            }
        };
        let next = tokio::time::timeout(PATIENCE, next).await.unwrap_or(Next::Hangs);
        if let Next::Ends(_) = next {
            self.task = None;
        }
        next
    }

    /// Carries out the message's fate. The worker gets the reply only when it goes on.
    pub(super) async fn carry_out(&mut self, knock: PendingMessage, fate: Fate) {
        self.held = Some(knock.carry_out(fate).await);
    }

    /// Ends the worker where it is; it never gets the reply to its last message.
    pub(super) async fn end(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
        self.held = None;
        while self.knocks.try_recv().is_ok() {}
    }
}

/// Returns a pool of one connection, through a proxy.
pub(super) async fn connect(proxy: &Proxy, database: &tokio_postgres::Config) -> Database {
    let (config, _) = tls::parse(&proxy.postgres_url(database)).unwrap();
    pool_of(&config, 1).await
}
