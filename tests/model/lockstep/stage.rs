//! The stage of walks: a database and a sandbox of Stripe that hold one key at a time, and the seats of the workers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atomic_phases::clock::Clock;
use atomic_phases::database::Database;
use atomic_phases::processes::{self, Process};
use rocket_rides_atomic::database::schema::{self, Older};
use rocket_rides_atomic::http::Listener;
use rocket_rides_atomic::stripe;
use rocket_rides_atomic::stripe::sandbox::{self, ChargeStatus, FaultControl, Faults, Ledger};
use rocket_rides_atomic::users::User;
use tokio_postgres::{Client, Statement};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::gate::Gate;
use super::operation::Means;
use super::seat::{self, Seat};
use super::times::STRIPE_TIMEOUT;
use crate::support::app::TempDir;
use crate::support::cluster;
use crate::wire::{Bug, Bugs, Proxy};

/// Every step reads all rows, and those that have been removed since the last vacuum.
const VACUUM_EVERY: usize = 50;
const VACUUM: &str = "VACUUM idempotency_keys, rides, audit_records, staged_jobs, lockstep.commits";

/// What the walk itself writes fires no trigger, so no simulated crash undoes it.
const UNSEEN: &str = "SET session_replication_role = replica; SET synchronous_commit = off;
                      SET plan_cache_mode = force_generic_plan";

pub(super) struct Stage<O> {
    pub(super) operation: O,
    pub(super) seats: Vec<Seat>,
    /// For everything that has no seat: the reaper, a person, and the probes.
    pub(super) house: Database,
    way_in: Proxy,
    /// The number of keys so far.
    opened: usize,
    pub(super) ledger: Arc<Ledger>,
    pub(super) faults: Arc<FaultControl>,
    pub(super) bugs: Arc<Bugs>,
    /// Reads all rows and moves all times; its writes fire no trigger.
    pub(super) observer: Client,
    observe: Statement,
    /// Locks rows that must then be skipped.
    pub(super) locker: Client,
    stripe: stripe::Client,
    database: tokio_postgres::Config,
    sandbox: SocketAddr,
    _sandbox: DropGuard,
    _dir: TempDir,
}

/// A new key.
pub(super) struct Opening {
    pub(super) user: User,
    pub(super) key: String,
    /// The number of the recorded state in which the key does not exist.
    pub(super) empty: i64,
}

/// What was read after a step.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) key: Option<SeenKey>,
    pub(super) rides: i64,
    pub(super) charge: Option<String>,
    pub(super) audit_records: i64,
    pub(super) jobs: i64,
    /// Numbers of the commits since the last look, and which of them waited for the disk.
    pub(super) commits: Vec<(i64, bool)>,
}

/// The key's row. Times are ages in seconds.
#[derive(Debug)]
pub(super) struct SeenKey {
    pub(super) id: i64,
    pub(super) lease_token: Option<Uuid>,
    pub(super) process_id: Option<Uuid>,
    pub(super) recovery_point: String,
    pub(super) step: i16,
    pub(super) response: Option<(i32, String)>,
    pub(super) parked: bool,
    pub(super) completer_attempts: i32,
    pub(super) foreign_call_key: Uuid,
    pub(super) attempts: i32,
    pub(super) created: f64,
    pub(super) locked: Option<f64>,
    pub(super) last_run: f64,
    pub(super) due: f64,
    pub(super) intended: f64,
    pub(super) request: String,
}

impl<O> Stage<O> {
    pub(super) async fn new(operation: O, workers: usize) -> Self {
        let database = cluster::database().await;
        let dir = TempDir::new();
        let bugs = Arc::new(Bugs::default());
        let gate = Gate::open(&bugs);
        let proxy = Proxy::postgres(&gate, &database).await;
        schema::ensure(&seat::connect(&proxy, &database).await, Older::Refuse).await.unwrap();
        let observer = cluster::connect(&database).await;
        observer.batch_execute(include_str!("setup.sql")).await.unwrap();
        observer.batch_execute(UNSEEN).await.unwrap();
        let observe = observer.prepare(include_str!("observe.sql")).await.unwrap();
        let locker = cluster::connect(&database).await;

        let listener = Arc::new(Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap());
        let address = listener.address();
        let ledger = Arc::new(Ledger::open(&dir.path().join("ledger.jsonl"), Duration::MAX).unwrap());
        let faults = Arc::new(FaultControl::new(Faults::default()));
        let stop = CancellationToken::new();
        tokio::spawn(sandbox::serve(listener, Arc::clone(&ledger), Arc::clone(&faults), stop.clone()));
        let stripe =
            stripe::Client::new(&format!("http://{address}"), &"sk_test_model".into(), STRIPE_TIMEOUT).unwrap();

        let house = seat::connect(&proxy, &database).await;
        let mut seats = Vec::new();
        for _ in 0..workers {
            let process = Process::new(None, "1");
            processes::beat(&house, &process).await.unwrap();
            seats.push(Seat::new(&bugs, &database, address, process.id).await);
        }
        Self {
            operation,
            seats,
            house,
            way_in: proxy,
            opened: 0,
            ledger,
            faults,
            bugs,
            observer,
            observe,
            locker,
            stripe,
            database,
            sandbox: address,
            _sandbox: stop.drop_guard(),
            _dir: dir,
        }
    }

    /// Returns the means for everything that has no seat.
    pub(super) fn means(&self) -> Means {
        Means { database: self.house.clone(), stripe: self.stripe.clone(), clock: Clock::default() }
    }

    /// Plants a bug in all messages from the program to Postgres from now on. Statements that are already prepared
    /// would not have it, so all connections are opened again.
    pub(super) async fn plant(&mut self, bug: Bug) {
        self.bugs.plant(bug);
        for seat in &mut self.seats {
            *seat = Seat::new(&self.bugs, &self.database, self.sandbox, seat.process).await;
        }
        self.house = seat::connect(&self.way_in, &self.database).await;
    }

    /// Clears the stage for a new key of a new customer, which has its own list of charges.
    pub(super) async fn open(&mut self) -> Opening {
        for seat in &mut self.seats {
            seat.end().await;
        }
        self.opened += 1;
        if self.opened.is_multiple_of(VACUUM_EVERY) {
            self.observer.batch_execute(VACUUM).await.unwrap();
        }
        let key = Uuid::new_v4();
        let stripe_customer_id =
            self.stripe.create_customer("user@example.com", "tok_visa", key).await.expect("a customer");
        let insert = "INSERT INTO users (email, stripe_customer_id) VALUES ($1, $2) RETURNING id, lockstep.begin()";
        let row = self.observer.query_one(insert, &[&key.to_string(), &stripe_customer_id]).await.unwrap();
        Opening { user: User { id: row.get(0), stripe_customer_id }, key: key.to_string(), empty: row.get(1) }
    }

    /// Reads everything. More than one key is an error, because the model has no such state.
    pub(super) async fn look(&self, since: i64) -> Result<Seen, String> {
        let rows = self.observer.query(&self.observe, &[&since]).await.unwrap();
        let [row] = rows.as_slice() else { return Err(format!("there are {} keys", rows.len())) };
        let response = row.get::<_, Option<i32>>("response_code").map(|code| (code, row.get("response_body")));
        let key = row.get::<_, Option<i64>>("id").map(|id| SeenKey {
            id,
            lease_token: row.get("lease_token"),
            process_id: row.get("process_id"),
            recovery_point: row.get("recovery_point"),
            step: row.get("step"),
            response,
            parked: row.get("parked"),
            completer_attempts: row.get("completer_attempts"),
            foreign_call_key: row.get("foreign_call_key"),
            attempts: row.get("attempts"),
            created: row.get("created"),
            locked: row.get("locked"),
            last_run: row.get("last_run"),
            due: row.get("due"),
            intended: row.get("intended"),
            request: row.get("request"),
        });
        let (commits, flushed): (Vec<i64>, Vec<bool>) = (row.get("commits"), row.get("flushed"));
        Ok(Seen {
            key,
            rides: row.get("rides"),
            charge: row.get("charge"),
            audit_records: row.get("audit_records"),
            jobs: row.get("jobs"),
            commits: commits.into_iter().zip(flushed).collect(),
        })
    }

    /// Returns the charges that this customer paid, and the keys that they were made with.
    pub(super) fn charges(&self, customer: &str) -> Vec<(String, Uuid)> {
        let charges = self.ledger.charges_of(customer);
        charges
            .iter()
            .filter(|charge| charge.status == ChargeStatus::Succeeded)
            .map(|charge| {
                let key = charge.idempotency_key.as_deref().unwrap_or_default();
                (charge.id.clone(), key.parse().unwrap_or_default())
            })
            .collect()
    }
}
