//! One statement for many requests: while a batch is under way, new callers of the same statement wait, and go together
//! in the next batch.
//!
//! What a statement costs is mostly the same for one row and for a hundred: the round trip, the wake-ups, the flush. So
//! the busier the database is, the cheaper each request becomes. A request that comes alone does not wait for others.
//!
//! A caller sees no difference between a batch and a statement of its own. A row that the database refuses fails alone,
//! because the batch is halved until that row is by itself. A caller that stops waiting does not stop the others,
//! because a batch runs in a task of its own. A statement for one caller alone needs no task and gets none: with one
//! client at a time, the wake-ups that this saves are a twentieth of a ride's cost.

use std::any::{Any, TypeId};
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::{Database, DatabaseError};

/// The most rows in a batch. More would not make a row cheaper, and every caller in a batch waits for its last row.
const MAX_BATCH_ROWS: usize = 128;
/// The most batches of one statement under way. While one of them makes progress, another starts only if it is full:
/// smaller ones cost more than they save (measured: two of any size book a tenth fewer rides at 256 connections), and
/// each takes a connection.
const MAX_IN_FLIGHT: usize = 4;
/// A batch that has been under way for this long hangs, on a row that another session has locked or on a network. New
/// callers do not wait for it.
const STALLED_AFTER: Duration = Duration::from_millis(100);
/// How often a batch is run at most, if a deadlock or a serialization failure undoes it as a whole.
const MAX_RUNS: usize = 3;

/// One item of a statement that takes arrays: what one caller wants of it.
pub trait Batched: Send + Sync + Sized + 'static {
    /// What the caller gets.
    type Output: Send + 'static;

    /// Returns the item's statement, where one type serves several. Only items of the same statement go together.
    fn statement(&self) -> &'static str {
        ""
    }

    /// Compares two items for the order of rows within a batch. Statements that lock rows lock them in this order, so
    /// that two batches never deadlock.
    fn order(&self, other: &Self) -> Ordering;

    /// Runs one statement for all of them and returns an output for each, in their order.
    fn run(
        database: &Database,
        items: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Output>, DatabaseError>> + Send;
}

/// Returns one parameter of a batch's statement: an array with an element for each item.
pub fn column<T, C>(items: impl IntoIterator<Item = T>, value: impl FnMut(T) -> C) -> Vec<C> {
    items.into_iter().map(value).collect()
}

impl Database {
    /// Runs `item`'s statement, together with the items of other callers that want the same statement now.
    ///
    /// When the caller is cancelled, the statement may still be carried out.
    pub async fn batched<T: Batched>(&self, item: T) -> Result<T::Output, DatabaseError> {
        match self.queues.of(&item).join(item, self) {
            Slot::RunNow(item, _guard) => {
                let outputs = run(self, std::slice::from_ref(&item)).await?;
                Ok(outputs.into_iter().next().expect("an output for each item"))
            }
            // There is no answer only if the statement's code panicked, and the panic has been printed.
            Slot::Queued(answer) => answer.await.unwrap_or(Err(DatabaseError::Lost(None))),
        }
    }
}

/// The queues, one for each statement.
#[derive(Debug, Default)]
pub(super) struct Queues(RwLock<HashMap<Kind, Arc<dyn Any + Send + Sync>>>);

/// An item's type, and the address of its statement's text.
type Kind = (TypeId, usize);

impl Queues {
    fn of<T: Batched>(&self, item: &T) -> Arc<Queue<T>> {
        let kind = (TypeId::of::<T>(), item.statement().as_ptr().addr());
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        let queue = known.unwrap_or_else(|| {
            let mut queues = self.0.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(queues.entry(kind).or_insert_with(|| Arc::new(Queue::<T>::default())))
        });
        queue.downcast().expect("kept under its own type")
    }
}

/// The callers that wait for one statement, and its batches under way.
struct Queue<T: Batched>(Mutex<State<T>>);

struct State<T: Batched> {
    waiting: VecDeque<Waiting<T>>,
    /// For each batch under way, the number of its place and when it began.
    under_way: Vec<(u64, Instant)>,
    last: u64,
}

struct Waiting<T: Batched> {
    item: T,
    answer: oneshot::Sender<Result<T::Output, DatabaseError>>,
}

impl<T: Batched> Default for Queue<T> {
    fn default() -> Self {
        Self(Mutex::new(State { waiting: VecDeque::new(), under_way: Vec::new(), last: 0 }))
    }
}

/// What a caller gets from joining a queue.
enum Slot<T: Batched> {
    /// The caller runs its statement at once, by itself.
    RunNow(T, SlotGuard<T>),
    /// The item goes with the next batch, which sends the answer here.
    Queued(oneshot::Receiver<Result<T::Output, DatabaseError>>),
}

/// One of the [`MAX_IN_FLIGHT`] places. When it is dropped, even by a cancelled caller, the items that came meanwhile go
/// next.
struct SlotGuard<T: Batched> {
    number: u64,
    queue: Arc<Queue<T>>,
    database: Database,
}

impl<T: Batched> Drop for SlotGuard<T> {
    fn drop(&mut self) {
        if let Some(batch) = self.queue.next_batch(self.number) {
            tokio::spawn(Arc::clone(&self.queue).work(self.number, batch, self.database.clone()));
        }
    }
}

impl<T: Batched> Queue<T> {
    fn join(self: Arc<Self>, item: T, database: &Database) -> Slot<T> {
        let mut state = self.state();
        if state.waiting.is_empty() && state.has_room() {
            let number = state.begin();
            drop(state);
            return Slot::RunNow(item, SlotGuard { number, queue: self, database: database.clone() });
        }
        let (answer, answered) = oneshot::channel();
        state.waiting.push_back(Waiting { item, answer });
        if state.has_room() {
            let (number, batch) = (state.begin(), state.take());
            drop(state);
            tokio::spawn(self.work(number, batch, database.clone()));
        }
        Slot::Queued(answered)
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs this batch and those that follow in its place, until no batch may start.
    async fn work(self: Arc<Self>, number: u64, batch: Vec<Waiting<T>>, database: Database) {
        let mut next = Some(batch);
        while let Some(batch) = next {
            // A panic has been printed, and the batch's callers see their senders dropped; the next batch must go on.
            let _ = AssertUnwindSafe(serve(batch, &database)).catch_unwind().await;
            next = self.next_batch(number);
        }
    }

    /// Returns the next batch for this place. If no item waits, or too few to start a batch, the place becomes free.
    fn next_batch(&self, number: u64) -> Option<Vec<Waiting<T>>> {
        let mut state = self.state();
        state.under_way.retain(|(other, _)| *other != number);
        if state.waiting.is_empty() || !state.has_room() {
            return None;
        }
        state.under_way.push((number, Instant::now()));
        Some(state.take())
    }
}

impl<T: Batched> State<T> {
    /// Whether a batch may begin: a place is free, and either a full batch waits or no batch under way makes progress.
    fn has_room(&self) -> bool {
        let gets_on = |(_, began): &(u64, Instant)| began.elapsed() < STALLED_AFTER;
        self.under_way.len() < MAX_IN_FLIGHT
            && (self.waiting.len() >= MAX_BATCH_ROWS || !self.under_way.iter().any(gets_on))
    }

    fn begin(&mut self) -> u64 {
        self.last += 1;
        self.under_way.push((self.last, Instant::now()));
        self.last
    }

    fn take(&mut self) -> Vec<Waiting<T>> {
        let size = self.waiting.len().min(MAX_BATCH_ROWS);
        self.waiting.drain(..size).collect()
    }
}

async fn serve<T: Batched>(mut batch: Vec<Waiting<T>>, database: &Database) {
    batch.sort_by(|a, b| a.item.order(&b.item));
    let (items, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.item, waiting.answer)).unzip();
    let mut answers: Vec<_> = answers.into_iter().map(Some).collect();
    let mut parts: Vec<_> = std::iter::once(0..items.len()).collect();
    while let Some(part) = parts.pop() {
        match run::<T>(database, &items[part.clone()]).await {
            Ok(outputs) => {
                assert_eq!(outputs.len(), part.len(), "an output for each item");
                for (answer, output) in answers[part].iter_mut().zip(outputs) {
                    tell(answer, Ok(output));
                }
            }
            Err(error) if part.len() > 1 && error.is_row_error() => parts.extend(halves(part)),
            Err(error) => answers[part].iter_mut().for_each(|answer| tell(answer, Err(error.clone()))),
        }
    }
}

async fn run<T: Batched>(database: &Database, items: &[T]) -> Result<Vec<T::Output>, DatabaseError> {
    let mut tries = 1;
    loop {
        match T::run(database, items).await {
            Err(error) if error.is_conflict() && tries < MAX_RUNS => tries += 1,
            done => return done,
        }
    }
}

/// Sends an output to its caller, which may have stopped waiting.
fn tell<O>(answer: &mut Option<oneshot::Sender<Result<O, DatabaseError>>>, output: Result<O, DatabaseError>) {
    if let Some(answer) = answer.take() {
        let _ = answer.send(output);
    }
}

fn halves(part: Range<usize>) -> [Range<usize>; 2] {
    let middle = part.start.midpoint(part.end);
    [middle..part.end, part.start..middle]
}
