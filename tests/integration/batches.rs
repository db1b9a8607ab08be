//! Everything that goes through [`Batched`](atomic_phases::database::Batched): each caller in a batch gets its own
//! answer, and no other's.
//!
//! Every implementation is a [`Case`]: callers of all kinds that its statement can meet (found and missing, of another
//! user, with a lease that is no longer theirs, with a value that Postgres refuses), each with the answer that it must
//! get and the rows that must be in the tables afterwards. They are shuffled and sent as one batch, of one caller and
//! up to the maximum. A test reads `src` and fails for an implementation that no case covers.

mod gate;
mod jobs;
mod keys;
mod order;
mod rides;
mod users;

use std::collections::BTreeSet;

use atomic_phases::database::{Database, DatabaseError};
use futures_util::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::task::JoinHandle;

use crate::support::app::{TestApp, pool_of};
use crate::support::sources::code;
use gate::{Gate, LANES};

/// One and two, an odd number that is halved unevenly, and the most that one statement takes.
const WIDTHS: [usize; 4] = [1, 2, 33, 128];

/// An implementation of `Batched`, and its callers.
pub(crate) trait Case: Sized + Send + 'static {
    /// Its place in `src`.
    const COVERS: &'static str;
    /// What its statement waits for while another session has locked it.
    const WAITS_FOR: WaitsFor;
    /// Table and column that identify the rows that it writes, so that one statement can be distinguished from several.
    /// `None` for reads.
    const WRITES: Option<(&'static str, &'static str)> = None;

    /// Creates a caller of the `n`th kind; after the last kind comes the first again. The first kind is a plain one
    /// that succeeds.
    async fn caller(stage: &Stage, n: usize) -> Self;
    /// Creates a caller with a value that Postgres refuses; `None` if there is no such value.
    async fn refused(_: &Stage) -> Option<Self> {
        None
    }
    /// Returns the SQL that another session runs once the caller waits for its statement.
    fn meanwhile(&self) -> Option<String> {
        None
    }
    /// Makes the call and returns the answer as text.
    fn call(&self, database: &Database) -> impl Future<Output = String> + Send;
    /// Returns the answer that it must get.
    fn expected(&self) -> String;
    /// Returns its row in the table that it waits for.
    fn locks(&self) -> i64 {
        0
    }
    /// Panics unless its rows are as they must be; returns the row that it has written, if any.
    async fn check(&self, _: &TestApp) -> Option<i64> {
        None
    }
}

/// What keeps a statement waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WaitsFor {
    /// This table, where even reading is not possible.
    Table(&'static str),
    /// A row, by this column of this table.
    Row(&'static str, &'static str),
}

/// The app in which callers run, and their connections.
pub(crate) struct Stage {
    pub(crate) app: TestApp,
    pub(crate) database: Database,
}

impl Stage {
    async fn new() -> Self {
        let app = TestApp::start().await;
        // A connection for each batch that waits, and some for what the callers do before.
        let database = pool_of(&app.database_config, u32::try_from(LANES + 4).unwrap()).await;
        Self { app, database }
    }

    /// Creates `width` callers, of each kind in turn.
    async fn callers<C: Case>(&self, width: usize) -> Vec<C> {
        join_all((0..width).map(|n| C::caller(self, n))).await
    }

    /// Creates `width` callers of the first kind.
    async fn plain_callers<C: Case>(&self, width: usize) -> Vec<C> {
        join_all((0..width).map(|_| C::caller(self, 0))).await
    }
}

/// Returns the error as text: only whether the row caused it matters.
pub(crate) fn refusal(error: &DatabaseError) -> String {
    if error.is_transient() { format!("{error:?}") } else { "refused".to_owned() }
}

/// Runs a case at all widths, and at one more with a refused row among the others.
pub(crate) async fn each_gets_its_own<C: Case>() {
    let stage = Stage::new().await;
    for width in WIDTHS {
        run(&stage, stage.callers::<C>(width).await, true).await;
    }
    if let Some(refused) = C::refused(&stage).await {
        let mut callers = stage.callers::<C>(32).await;
        callers.push(refused);
        run(&stage, callers, false).await;
    }
}

async fn run<C: Case>(stage: &Stage, mut callers: Vec<C>, in_one: bool) {
    // Shuffled: the order of arrival must differ from the order of the rows that come back.
    let width = callers.len();
    callers.shuffle(&mut StdRng::seed_from_u64(width as u64));
    let meanwhile: Vec<String> = callers.iter().filter_map(C::meanwhile).collect();
    let gate = Gate::shut::<C>(stage).await;
    let calls: Vec<_> = callers.into_iter().map(|caller| spawn(caller, &stage.database)).collect();
    gate.until_all_wait(stage).await;
    for sql in meanwhile {
        stage.app.tamper(&sql).await;
    }
    gate.open().await;

    let mut written = Vec::new();
    for call in calls {
        let (caller, told) = call.await.unwrap();
        assert_eq!(told, caller.expected(), "{}, {width} wide", C::COVERS);
        written.extend(caller.check(&stage.app).await);
    }
    if let (Some((table, column)), true) = (C::WRITES, in_one) {
        let sql = format!("SELECT count(DISTINCT xmin::text) FROM {table} WHERE {column} = ANY($1)");
        let statements: i64 = stage.app.query(&sql, &[&written]).await[0].get(0);
        assert!(statements == 1, "{}: {statements} statements for {} rows", C::COVERS, written.len());
    }
}

fn spawn<C: Case>(caller: C, database: &Database) -> JoinHandle<(C, String)> {
    let database = database.clone();
    tokio::spawn(async move {
        let told = caller.call(&database).await;
        (caller, told)
    })
}

macro_rules! cases {
    ($($name:ident: $case:ty),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                each_gets_its_own::<$case>().await;
            }
        )+

        /// Returns the places in `src` that the cases cover.
        fn covered() -> BTreeSet<&'static str> {
            [$(<$case as Case>::COVERS),+].into()
        }
    };
}

cases! {
    requests_for_keys: keys::Asks,
    take_overs: keys::TakesOver,
    next_calls: keys::Advances,
    answers: keys::Finishes,
    releases: keys::Releases,
    rides_opened: rides::Opens,
    rides_paid: rides::Pays,
    users_by_address: users::ByEmail,
    jobs_finished: jobs::Finishes,
}

#[test]
fn every_implementation_has_a_case() {
    let mut implemented = BTreeSet::new();
    for (name, file) in code("rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        for implementation in text.split("impl Batched for ").skip(1) {
            let kind: String = implementation.chars().take_while(|c| c.is_alphanumeric()).collect();
            implemented.insert(format!("{name}: {kind}"));
        }
    }
    let covered = covered();
    let implemented = implemented.iter().map(String::as_str).collect();
    assert_eq!(covered, implemented, "each implementation of Batched has a case, and each case its implementation");
}
